"""The step around a teleport: ask the trigger, move, judge the move, go on with the wrapped method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from torch.optim import Optimizer

from mtl_core.accumulation import MicroBatches
from mtl_core.distributed import broadcast_buffers_
from mtl_core.errors import InvalidInputError, InvalidJacobianError, NonFiniteLossError
from mtl_core.gradients import TaskGradients
from mtl_core.preservation import Trace
from mtl_core.problem import Problem
from mtl_core.report import StepOptions, StepReport
from mtl_core.stepping import finish
from mtl_core.stepping import step as core_step
from mtl_teleport.history import modulated
from mtl_teleport.inner_optimizer import inner_optimizer
from mtl_teleport.move import Seen, rolled_back, with_after
from mtl_teleport.moving import Moving
from mtl_teleport.report import TeleportReport
from mtl_teleport.step_gradients import check_parameters, learning_rate, present_update, step_gradients
from mtl_teleport.way_back import WayBack

__all__ = ["Teleportation"]


class Teleportation(Moving):
    """Base of the methods that now and then move the shared parameters, and otherwise are the method they wrap.

    A subclass proposes a displacement; everything else is here. See ``COST`` for the arguments.
    """

    def start_epoch(self, epoch: int) -> None:
        """Tell that an epoch begins, counted from 0; handed on to the wrapped method."""
        self.schedule.start_epoch(epoch)
        self._start_wrapped(epoch)

    def _start_wrapped(self, epoch: int) -> None:
        start = getattr(self.method, "start_epoch", None)
        if callable(start):
            start(epoch)

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
            InvalidInputError: the limits count epochs and none was ever told, the shared parameters are complex or
                sharded, the model recomputes by reentrant checkpoints, or ``optimizer`` is none and holds none.
            NonFiniteLossError: a loss is not finite before any move.

        Note:
            With a process group every rank gives its part of the batch, and its part of each probe batch. Losses and
            gradients of the search are means over the ranks and the adapter starts from the first rank's values, so
            that all ranks make the same move, or none.
        """
        options = StepOptions() if options is None else options
        check_parameters(problem)
        inner_optimizer(optimizer)
        counters = self._counters()
        try:
            return self._step(problem, batch, optimizer, options)
        except BaseException:
            self._set_counters(counters)
            raise

    def _step(self, problem: Problem, batch: Any, optimizer: Optimizer, options: StepOptions) -> StepReport:
        started = self.schedule.begin_step()
        if started is not None:
            self._start_wrapped(started)
        if not self.schedule.is_open:
            with self._memory_due(problem, optimizer):
                return self._plain_step(problem, batch, optimizer, options)
        if options.group is not None:
            broadcast_buffers_(problem.model, options.group)
        trace = Trace(problem.model)
        gradients = step_gradients(problem, batch, optimizer, options)
        if not self._wants(gradients, options):
            with self._memory_due(problem, optimizer):
                return self._continue(problem, batch, optimizer, options, gradients, trace)
        parts = tuple(batch) if isinstance(batch, MicroBatches) else (batch,)
        seen = Seen.of(gradients, present_update(problem, self.method, gradients, options))
        # A search needs room of its own; after a rollback the gradients are found again by the very same computation.
        del gradients
        optimizer.zero_grad(set_to_none=True)
        back = WayBack(problem.named_shared, inner_optimizer(optimizer))
        try:
            report = self._move(
                problem, parts, seen, back, lr=learning_rate(optimizer, problem), options=options, trace=trace
            )
            del seen
            return self._go_on(problem, batch, optimizer, options, report, back, trace)
        except BaseException:
            back.restore()
            trace.restore()
            raise

    def _wants(self, gradients: TaskGradients, options: StepOptions) -> bool:
        """Whether the trigger asks for a teleport; not where a gradient scaler is about to skip the step."""
        try:
            gramian = gradients.host_gramian
        except InvalidJacobianError:
            if options.scaler is None or not options.scaler.is_enabled():
                raise
            return False
        return self.trigger(gramian)

    def _go_on(
        self,
        problem: Problem,
        batch: Any,
        optimizer: Optimizer,
        options: StepOptions,
        report: TeleportReport,
        back: WayBack,
        trace: Trace,
    ) -> StepReport:
        """The step after a move, or after one that was given up."""
        trace.restore()
        try:
            gradients = step_gradients(problem, batch, optimizer, options)
            report = with_after(report, gradients) if report.accepted else report
        except (NonFiniteLossError, InvalidJacobianError) as error:
            if not report.accepted:
                raise
            back.restore()
            trace.restore()
            gradients = step_gradients(problem, batch, optimizer, options)
            report = rolled_back(report, f"at the new point in training mode: {error}")
        if report.accepted:
            self._due = report.sigma
        if report.accepted and self.own_step == "skip":
            optimizer.zero_grad(set_to_none=True)
            report = replace(report, kept=back.kept())
            names = problem.frozen_names
            return StepReport(gradients.losses, None, gradients.host_gramian, problem.tasks, (report,), tuple(names))
        with self._memory_due(problem, optimizer):
            result = self._continue(problem, batch, optimizer, options, gradients, trace)
        report = replace(report, kept=back.kept())
        return replace(result, events=(report, *result.events))

    @contextmanager
    def _memory_due(self, problem: Problem, optimizer: Optimizer) -> Iterator[None]:
        """Let the update inside the block reuse the optimiser's memory as the last teleport asks for."""
        if self._due is None:
            yield
            return
        with modulated(optimizer, self._due, problem.shared, mode=self.htr):
            yield
        self._due = None

    def _plain_step(self, problem: Problem, batch: Any, optimizer: Optimizer, options: StepOptions) -> StepReport:
        """The wrapped method's own step, forward pass included."""
        settings: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(options)}
        return core_step(problem, batch, optimizer, self.method, **settings)

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
        if callable(getattr(self.method, "step", None)):
            trace.restore()
            return self._plain_step(problem, batch, optimizer, options)
        return finish(problem, batch, optimizer, self.method, gradients, options=options)

    def state_dict(self) -> dict[str, Any]:
        """Counters, random state and the wrapped method's state: a fresh object that loads it goes on exactly so."""
        state = getattr(self.method, "state_dict", None)
        return {**self._counters(), "method": state() if callable(state) else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``.

        Raises:
            InvalidInputError: the state has another form, or holds a method's state that the wrapped method cannot
                take.
        """
        expected = [*self._counters(), "method"]
        if set(state) != set(expected):
            raise InvalidInputError(
                f"`state` must have the keys {', '.join(expected)}, got {sorted(state)}. Give what "
                "state_dict() returned."
            )
        load = getattr(self.method, "load_state_dict", None)
        if state["method"] is not None and not callable(load):
            raise InvalidInputError(
                f"`state` must fit the wrapped method, got a state for {type(self.method).__name__}, which takes "
                "none. Wrap the method it was saved with."
            )
        self._set_counters(state)
        if callable(load) and state["method"] is not None:
            load(state["method"])
