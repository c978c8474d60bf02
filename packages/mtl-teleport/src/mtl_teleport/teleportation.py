"""The step around a teleport: ask the trigger, move, judge the move, go on with the wrapped method."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from mtl_core import (
    Method,
    MicroBatches,
    NonFiniteGradientError,
    NonFiniteLossError,
    Problem,
    StepOptions,
    StepReport,
    TaskGradients,
    step,
)
from mtl_core.extension import (
    TakesSeveralBatches,
    Trace,
    Wrapper,
    begin,
    checked_gramian,
    collect_batch,
    finish,
    guarded,
    inner_optimizer,
    offers,
    together,
)
from mtl_teleport import ranks
from mtl_teleport.budget import gradients_passes, look_passes, step_passes
from mtl_teleport.move import Seen, rolled_back, with_after
from mtl_teleport.moving import Moving
from mtl_teleport.plan import LEAST_BATCHES
from mtl_teleport.report import TeleportReport
from mtl_teleport.step_gradients import check_parameters, learning_rate, present_update, with_losses
from mtl_teleport.structure import Structure
from mtl_teleport.way_back import SHARED_MEMORY, WayBack
from mtl_teleport.written import writing_refused

__all__ = ["Teleportation"]


class Teleportation(Moving):
    """Base of the methods that now and then move the shared parameters, and otherwise are the method they wrap.

    A subclass proposes a displacement; everything else is here. See ``COST`` for the arguments.
    """

    def start_epoch(self, epoch: int, /) -> None:
        """Tell that an epoch begins, counted from 0; handed on to the wrapped method."""
        self.schedule.start_epoch(epoch)
        super().start_epoch(epoch)

    def step(
        self, problem: Problem, batch: Any, optimizer: Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step of the wrapped method, with a teleport before it where the trigger asks for one.

        A step that teleports is, but for the optimiser's memory, the very step that would have been made from the
        new point: buffers and random state are first set back to where the step began. If anything raises, the
        parameters are where they were before the move, and so are the optimiser's copies of them, its memory of the
        shared parameters, buffers, random state and the counters here.

        Args:
            problem: the model and its losses.
            batch: what the problem's losses take.
            optimizer: the optimiser of the problem's parameters, or a wrapper that holds it.
            options: how the step treats heads, clipping and scaling.

        Returns:
            the wrapped method's report, with a ``TeleportReport`` among its events if a teleport was tried.

        Raises:
            InvalidInputError: the limits count epochs and none was ever told, the shared parameters are complex,
                sharded or without values, the model is scripted, registers a module twice or recomputes by reentrant
                checkpoints, the losses write into parameters, or ``optimizer`` is none and holds none, or has no
                learning rate for the shared parameters where one is needed.
            NonFiniteLossError: a loss is not finite before any move.

        Note:
            With a process group every rank gives its part of the batch, and its part of each probe batch. Losses and
            gradients of the search are means over the ranks and the adapter starts from the first rank's values, so
            that all ranks make the same move, or none.
        """
        options = StepOptions() if options is None else options
        with guarded(problem, optimizer, self, options) as guard:
            check_parameters(problem)
            # For its error: it must come before anything moves.
            self._check_optimizer(problem, inner_optimizer(optimizer))
            started = self.schedule.begin_step()
            if started is not None:
                super().start_epoch(started)
            self.budget.earn(step_passes(self.method, problem.n_tasks))
            # Nothing can happen in this step: the wrapped method's own route, which may need no gradient per task.
            if not (self.schedule.is_open and self._has_means(problem)):
                with self._due.paid(problem, optimizer, self.htr):
                    return self._plain_step(problem, batch, optimizer, options)
            notes = begin(problem, optimizer, options)
            if options.reversible:
                # Before a move: what the update itself would keep for its undoing are the weights after it, which
                # would be written over those that the way back has restored.
                guard.hold_update()
            report = self._step(problem, batch, optimizer, options)
        return replace(report, events=(*notes, *report.events))

    def _step(self, problem: Problem, batch: Any, optimizer: Optimizer, options: StepOptions) -> StepReport:
        """A step in which a teleport may happen."""
        # What conflicts is what the update is made of. The wrapped method gets what was given.
        given, batch = batch, _update_batch(self.method, batch)
        # Before the first forward pass: after a move the step begins once more from here, with the same dropout.
        trace = Trace(problem.model)
        with writing_refused(problem):
            gradients = collect_batch(problem, batch, options=options)
        self.budget.spend(look_passes(self.method, problem.n_tasks))
        # The memory may be due from an earlier teleport, whose own step made no update.
        if not self._wants(problem, batch, gradients, options):
            with self._due.paid(problem, optimizer, self.htr):
                return self._continue(problem, given, optimizer, options, gradients, trace)
        parts = (batch,)
        if isinstance(batch, MicroBatches):
            # Ranks go through their parts side by side, and must have equally many.
            parts = tuple(batch) if options.group is not None else with_losses(problem, batch)
        # A rank whose method raises must not leave the others in the search.
        with together(options.group):
            seen = Seen.of(gradients, *present_update(problem, self.method, gradients, options))
        # A search needs room of its own; after a rollback the gradients are found again by the very same computation.
        del gradients
        back, structure = WayBack(problem.named_shared, inner_optimizer(optimizer)), Structure(problem.model)
        try:
            report = self._move(
                problem, parts, seen, back, lr=learning_rate(optimizer, problem), options=options, trace=trace
            )
            del seen
            return self._go_on(problem, batch, given, optimizer, options, report, back, trace)
        except BaseException:
            structure.restore()
            back.restore()
            trace.restore()
            raise

    def _check_optimizer(self, problem: Problem, optimizer: Optimizer) -> None:
        """Refuse an optimiser, taken out of its wrappers, with which a move could not be found."""

    def _has_means(self, problem: Problem) -> bool:
        """Whether a look, and the smallest teleport after it, can be paid."""
        prices = self._prices(problem.n_tasks) if math.isfinite(self.budget.left) else None
        if prices is None:
            return True
        most = self.max_probe_batches or LEAST_BATCHES
        n_batches = 1 if self.probe_batches is None else min(LEAST_BATCHES, most)
        return self.budget.left >= look_passes(self.method, problem.n_tasks) + prices.least(n_batches)

    def _wants(self, problem: Problem, batch: Any, gradients: TaskGradients, options: StepOptions) -> bool:
        """Whether the trigger asks for a teleport; not where a gradient scaler is about to skip the step."""
        try:
            gramian = checked_gramian(problem, batch, gradients, options)
        except NonFiniteGradientError:
            if not options.is_scaled:
                raise
            return False
        return self._asks(gramian, problem, options)

    def _asks(self, gramian: Tensor, problem: Problem, options: StepOptions) -> bool:
        """What the trigger says of the step's Gramian."""
        return ranks.asked(self.trigger, gramian, options.group, problem.shared[0].device)

    def _go_on(
        self,
        problem: Problem,
        batch: Any,
        given: Any,
        optimizer: Optimizer,
        options: StepOptions,
        report: TeleportReport,
        back: WayBack,
        trace: Trace,
    ) -> StepReport:
        """The step after a move, or after one that was given up."""
        # Buffers and random numbers as at the beginning, so that nothing but the parameters differs.
        trace.restore()
        report = replace(report, passes=report.passes + gradients_passes(problem.n_tasks))
        self.budget.spend(report.passes)
        if report.accepted and not back.stands:
            back.restore()
            report = rolled_back(report, SHARED_MEMORY)
        try:
            gradients = collect_batch(problem, batch, options=options)
            checked_gramian(problem, batch, gradients, options)
            report = with_after(report, gradients) if report.accepted else report
        except (NonFiniteLossError, NonFiniteGradientError) as error:
            # Nothing has moved: it is the problem's own error. After a move it is a reason to go back, since the probe
            # batches did not show it.
            if not report.accepted:
                raise
            back.restore()
            trace.restore()
            gradients = collect_batch(problem, batch, options=options)
            report = rolled_back(report, f"at the new point in training mode: {error}")
            self.budget.spend(gradients_passes(problem.n_tasks))
            report = replace(report, passes=report.passes + gradients_passes(problem.n_tasks))
        if report.accepted:
            assert report.sigma is not None
            change, self._change = self._change, None
            self._due.add(problem.model, report.sigma, change)
        if report.accepted and self.own_step == "skip":
            report = replace(report, kept=back.kept())
            names = problem.frozen_names
            return StepReport(gradients.losses, None, gradients.host_gramian, problem.tasks, (report,), tuple(names))
        with self._due.paid(problem, optimizer, self.htr):
            result = self._continue(problem, given, optimizer, options, gradients, trace)
        report = replace(report, kept=back.kept())
        return replace(result, events=(report, *result.events))

    def _plain_step(self, problem: Problem, batch: Any, optimizer: Optimizer, options: StepOptions) -> StepReport:
        """The wrapped method's own step, forward pass included."""
        return step(problem, batch, optimizer, self.method, **vars(options))

    def _continue(
        self,
        problem: Problem,
        batch: Any,
        optimizer: Optimizer,
        options: StepOptions,
        gradients: TaskGradients,
        trace: Trace,
    ) -> StepReport:
        """The wrapped method's own step, from gradients that are already there if it can use them."""
        # It evaluates and differentiates by itself; its forward pass is to see what the first one did.
        if offers(self.method, Method):
            trace.restore()
            return self._plain_step(problem, batch, optimizer, options)
        return finish(problem, batch, optimizer, self.method, gradients, options=options)


def _update_batch(method: Any, batch: Any) -> Any:
    """The batch of which the update is made, where the method, whatever is around it, takes several at once."""
    while isinstance(method, Wrapper):
        method = method.method
    return method.update_batch(batch) if offers(method, TakesSeveralBatches) else batch
