"""The step around a teleport: ask the trigger, move, judge the move, go on with the wrapped method."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import (
    InvalidInputError,
    Method,
    MicroBatches,
    NonFiniteGradientError,
    NonFiniteLossError,
    Problem,
    StepOptions,
    StepReport,
    TaskGradients,
    checks,
    step,
)
from mtl_core.extension import (
    AnyMethod,
    FixedWeights,
    Trace,
    Wrapper,
    begin,
    checked_gramian,
    collect_batch,
    finish,
    guarded,
    offers,
)
from mtl_teleport.acceptance import judge
from mtl_teleport.adapters.protocol import write_
from mtl_teleport.history import HTR, modulated
from mtl_teleport.isolation import Mode, as_at, isolated
from mtl_teleport.move import Proposal, Seen, described, length_of, rolled_back, with_after, written
from mtl_teleport.report import TeleportReport
from mtl_teleport.schedule import Schedule
from mtl_teleport.search_context import Search, first, open_search
from mtl_teleport.step_gradients import check_parameters, learning_rate, present_update
from mtl_teleport.triggers import Trigger

__all__ = ["Proposal", "Search", "Teleportation"]

WrappedMethod = AnyMethod | Callable[[Tensor], Tensor] | None


class Teleportation(Wrapper, ABC):
    """Base of the methods that now and then move the shared parameters, and otherwise are the method they wrap.

    A subclass proposes a displacement; everything else is here. See ``COST`` for the arguments.
    """

    def __init__(
        self,
        method: WrappedMethod,
        *,
        trigger: Trigger,
        start_after: int,
        max_per_epoch: int | None,
        steps_per_epoch: int | None,
        probe_batches: Iterable[Any] | None,
        max_probe_batches: int,
        max_drift: float | None,
        backtracks: int,
        mode: Mode = "train",
        htr: HTR,
        seed: int,
    ) -> None:
        super().__init__(FixedWeights() if method is None else method)
        self.trigger = trigger
        self.schedule = Schedule(start_after=start_after, max_per_epoch=max_per_epoch, steps_per_epoch=steps_per_epoch)
        self.probe_batches = probe_batches
        self.max_probe_batches = checks.positive_int("max_probe_batches", max_probe_batches)
        self.max_drift = None if max_drift is None else checks.positive("max_drift", max_drift)
        self.backtracks = int(checks.non_negative("backtracks", backtracks))
        self.mode: Mode = checks.one_of("mode", mode, get_args(Mode))
        self.htr: HTR = checks.one_of("htr", htr, get_args(HTR))
        self._generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def _propose(self, search: Search) -> Proposal:
        """Find a displacement; the model must be left as it is."""

    def start_epoch(self, epoch: int, /) -> None:
        """Tell that an epoch begins, counted from 0; handed on to the wrapped method."""
        self.schedule.start_epoch(epoch)
        super().start_epoch(epoch)

    def step(
        self, problem: Problem, batch: Any, optimizer: Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step of the wrapped method, with a teleport before it where the trigger asks for one.

        A step that teleports is, but for the optimiser's memory, the very step that would have been made from the
        new point: buffers and random state are first set back to where the step began.

        Args:
            problem: the model and its losses.
            batch: what the problem's losses take.
            optimizer: the optimiser of the problem's parameters.
            options: how the step treats heads, clipping and scaling.

        Returns:
            the wrapped method's report, with a ``TeleportReport`` among its events if a teleport was tried.

        Raises:
            InvalidInputError: the limits count epochs and none was ever told, or the shared parameters are complex or
                sharded.
            NonFiniteLossError: a loss is not finite before any move.

        Note:
            With a process group every rank gives its part of the batch, and its part of each probe batch. Losses and
            gradients of the search are means over the ranks and the adapter starts from the first rank's values, so
            that all ranks make the same move, or none.
        """
        options = StepOptions() if options is None else options
        with guarded(problem, optimizer, self, options):
            check_parameters(problem)
            started = self.schedule.begin_step()
            if started is not None:
                super().start_epoch(started)
            if not self.schedule.is_open:
                return self._plain_step(problem, batch, optimizer, options)
            notes = begin(problem, optimizer, options)
            report = self._step(problem, batch, optimizer, options)
        return replace(report, events=(*notes, *report.events))

    def _step(self, problem: Problem, batch: Any, optimizer: Optimizer, options: StepOptions) -> StepReport:
        """A step in which a teleport may happen."""
        trace = Trace(problem.model)
        gradients = collect_batch(problem, batch, options=options)
        try:
            gramian = checked_gramian(problem, batch, gradients, options)
        except NonFiniteGradientError:
            if not options.is_scaled:
                raise
            return self._continue(problem, batch, optimizer, options, gradients, trace)
        if not self.trigger(gramian):
            return self._continue(problem, batch, optimizer, options, gradients, trace)
        parts = tuple(batch) if isinstance(batch, MicroBatches) else (batch,)
        seen = Seen.of(gradients, present_update(problem, self.method, gradients, options))
        # A search needs room of its own; after a rollback the gradients are found again by the very same computation.
        del gradients
        report, previous = self._move(
            problem, parts, seen, learning_rate(optimizer, problem), options=options, trace=trace
        )
        del seen
        trace.restore()
        if not report.accepted:
            gradients = collect_batch(problem, batch, options=options)
            result = self._continue(problem, batch, optimizer, options, gradients, trace)
            return replace(result, events=(report, *result.events))
        try:
            report, result = self._from_there(problem, batch, optimizer, options, report, previous, trace)
        except BaseException:
            # Whatever it was, the weights go back to where the step began; the guard sees to everything else.
            write_(problem.named_shared, previous)
            raise
        return replace(result, events=(report, *result.events))

    def _from_there(
        self,
        problem: Problem,
        batch: Any,
        optimizer: Optimizer,
        options: StepOptions,
        report: TeleportReport,
        previous: dict[str, Tensor],
        trace: Trace,
    ) -> tuple[TeleportReport, StepReport]:
        """The step from the new point, or from the old one if the new one is of no use."""
        try:
            gradients = collect_batch(problem, batch, options=options)
            checked_gramian(problem, batch, gradients, options)
            report = with_after(report, gradients)
        except (NonFiniteLossError, NonFiniteGradientError) as error:
            write_(problem.named_shared, previous)
            trace.restore()
            gradients = collect_batch(problem, batch, options=options)
            report = rolled_back(report, f"at the new point in training mode: {error}")
        sigma = 1.0 if report.sigma is None else report.sigma
        mode: HTR = self.htr if report.accepted else "keep"
        with modulated(optimizer, sigma, problem.shared, mode=mode):
            return report, self._continue(problem, batch, optimizer, options, gradients, trace)

    def teleport(
        self, problem: Problem, batches: Sequence[Any], gradients: TaskGradients, *, lr: float | None = None
    ) -> TeleportReport:
        """Teleport once, whatever the trigger and the limits say.

        Args:
            problem: the model and its losses; its shared parameters are moved in place.
            batches: the probe batches.
            gradients: the task gradients at the present point, on the first of the batches.
            lr: the learning rate of the shared parameters, unless the method has one of its own.

        Returns:
            the report; its ``sigma`` is what ``modulated`` needs for the next optimiser step.

        Raises:
            InvalidInputError: there is no probe batch.
        """
        if not batches:
            raise InvalidInputError("`batches` must hold at least one probe batch, got none.")
        check_parameters(problem)
        seen = Seen.of(gradients, present_update(problem, self.method, gradients, StepOptions()))
        report, _ = self._move(problem, tuple(batches), seen, lr, given=True)
        if not report.accepted:
            return report
        trace = Trace(problem.model)
        after = collect_batch(problem, batches[0])
        trace.restore()
        return with_after(report, after)

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
        if offers(self.method, Method):
            trace.restore()
            return self._plain_step(problem, batch, optimizer, options)
        return finish(problem, batch, optimizer, self.method, gradients, options=options)

    def _move(
        self,
        problem: Problem,
        batches: tuple[Any, ...],
        seen: Seen,
        lr: float | None,
        *,
        given: bool = False,
        options: StepOptions = StepOptions(),
        trace: Trace | None = None,
    ) -> tuple[TeleportReport, dict[str, Tensor]]:
        """Search, judge and write.

        Returns:
            the report, which lacks what is measured after the move, and the values before of what has moved.
        """
        self.schedule.record()
        began = time.perf_counter()
        own_parts = batches[:1] if given else batches
        theta = length_of(problem.named_shared)
        with isolated(problem.model, mode=self.mode) as flags:
            search = open_search(
                problem,
                batches if given or self.probe_batches is None else first(self.probe_batches, self.max_probe_batches),
                own_parts,
                seen.gramian,
                lr=lr,
                options=options,
                generator=self._generator,
                step_mode=partial(as_at, problem.model, flags, Trace(problem.model) if trace is None else trace),
                mode=self.mode,
            )
            proposal = self._propose(search)
            verdict = judge(
                problem,
                search.batches,
                search.losses,
                proposal.delta,
                max_drift=self.max_drift,
                backtracks=self.backtracks,
                group=search.group,
                around=search.around,
            )
        proposal = replace(proposal, delta={})
        moved: tuple[float, float] | None = None
        previous: dict[str, Tensor] = {}
        if verdict.values is not None:
            sigma, length, previous = written(problem.named_shared, verdict.values, seen.update)
            moved = sigma, length
        report = described(
            problem,
            search,
            seen,
            proposal,
            verdict,
            theta=theta,
            moved=moved,
            seconds=time.perf_counter() - began,
            step=max(self.schedule.steps - 1, 0),
            epoch=self.schedule.epoch,
            trigger=self.trigger.name,
        )
        return report, previous

    def own_state(self) -> dict[str, Any]:
        """Counters and random state: a fresh object that loads them goes on exactly so."""
        return {"schedule": self.schedule.state_dict(), "generator": self._generator.get_state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Continue from ``own_state``.

        Raises:
            InvalidInputError: the state has another form.
        """
        if not {"schedule", "generator"} <= set(state):
            raise InvalidInputError(
                f"`state` must have the keys schedule and generator, got {sorted(state)}. Give what state_dict() "
                "returned."
            )
        self.schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"].cpu())
