"""The step around a teleport: ask the trigger, move, judge the move, go on with the wrapped method."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import checks
from mtl_core.accumulation import MicroBatches
from mtl_core.distributed import broadcast_buffers_
from mtl_core.errors import InvalidInputError, InvalidJacobianError, NonFiniteLossError
from mtl_core.gradients import TaskGradients
from mtl_core.preservation import Trace
from mtl_core.problem import Problem
from mtl_core.report import StepOptions, StepReport
from mtl_core.stepping import AnyMethod, collect_problem, finish
from mtl_core.stepping import step as core_step
from mtl_teleport import arguments
from mtl_teleport.acceptance import judge
from mtl_teleport.history import HTR, modulated, trajectory_cosine
from mtl_teleport.inner_optimizer import inner_optimizer
from mtl_teleport.inner_product import length_of
from mtl_teleport.isolation import Mode, as_at, isolated
from mtl_teleport.move import Occasion, Proposal, Seen, described, rolled_back, with_after
from mtl_teleport.report import TeleportReport
from mtl_teleport.schedule import Schedule
from mtl_teleport.search_context import Search, StepView, first, open_search
from mtl_teleport.step_gradients import (
    check_parameters,
    learning_rate,
    present_update,
    reentrant_refused,
    step_gradients,
)
from mtl_teleport.triggers import Trigger, as_trigger
from mtl_teleport.way_back import WayBack

__all__ = ["Condition", "OwnStep", "Proposal", "Search", "Teleportation", "WrappedMethod"]

WrappedMethod = AnyMethod | Callable[[Tensor], Tensor] | None

Condition = Callable[[Tensor], object]
"""Any function of the Gramian ``[m, m]`` that says whether to teleport."""

OwnStep = Literal["update", "skip"]
"""Whether the step of a teleport goes on with the update from the new point, or ends there."""



class _Sum:
    """The plain sum of the losses, with unit weights for the tasks that are present."""

    needs = "losses"
    takes_present = True

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        return (losses if present is None else losses[present]).sum()


class Teleportation(ABC):
    """Base of the methods that now and then move the shared parameters, and otherwise are the method they wrap.

    A subclass proposes a displacement; everything else is here. See ``COST`` for the arguments.
    """

    def __init__(
        self,
        method: WrappedMethod,
        *,
        trigger: Trigger | Condition,
        start_after: int,
        max_per_epoch: int | None,
        steps_per_epoch: int | None,
        probe_batches: Iterable[Any] | None,
        max_probe_batches: int | None,
        max_drift: float | None,
        backtracks: int,
        mode: Mode = "train",
        htr: HTR,
        own_step: OwnStep = "update",
        seed: int,
    ) -> None:
        self.method = _Sum() if method is None else arguments.wrapped_method(method)
        self.trigger = as_trigger(trigger)
        self.schedule = Schedule(start_after=start_after, max_per_epoch=max_per_epoch, steps_per_epoch=steps_per_epoch)
        self.probe_batches = arguments.probe_batches(probe_batches)
        self.max_probe_batches = (
            None if max_probe_batches is None else checks.positive_int("max_probe_batches", max_probe_batches)
        )
        self.max_drift = None if max_drift is None else checks.positive("max_drift", max_drift)
        self.backtracks = arguments.whole("backtracks", backtracks, 0)
        self.mode: Mode = checks.one_of("mode", mode, get_args(Mode))
        self.htr: HTR = checks.one_of("htr", htr, get_args(HTR))
        self.own_step: OwnStep = checks.one_of("own_step", own_step, get_args(OwnStep))
        self._generator = torch.Generator().manual_seed(arguments.seed(seed))
        self._due: float | None = None

    @abstractmethod
    def _propose(self, search: Search) -> Proposal:
        """Find a displacement; the model must be left as it is."""

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
            return StepReport(
                gradients.losses, None, gradients.host_gramian, problem.tasks, (report,), tuple(names)
            )
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

    def teleport(
        self,
        problem: Problem,
        batches: Sequence[Any],
        gradients: TaskGradients,
        *,
        lr: float | None = None,
        optimizer: Optimizer | None = None,
    ) -> TeleportReport:
        """Teleport once, whatever the trigger and the limits say.

        If anything raises, the parameters are where they were.

        Args:
            problem: the model and its losses; its shared parameters are moved in place.
            batches: the probe batches.
            gradients: the task gradients at the present point, on the first of the batches.
            lr: the learning rate of the shared parameters, unless the method has one of its own or ``optimizer`` is
                given.
            optimizer: the optimiser of the shared parameters: copies of them that it keeps are moved along.

        Returns:
            the report; its ``sigma`` is what ``modulated`` needs for the next optimiser step.

        Raises:
            InvalidInputError: there is no probe batch.
        """
        if not batches:
            raise InvalidInputError("`batches` must hold at least one probe batch, got none.")
        check_parameters(problem)
        if optimizer is not None and lr is None:
            lr = learning_rate(optimizer, problem)
        back = WayBack(problem.named_shared, None if optimizer is None else inner_optimizer(optimizer))
        seen = Seen.of(gradients, present_update(problem, self.method, gradients, StepOptions()))
        trace, counters = Trace(problem.model), self._counters()
        try:
            report = self._move(problem, tuple(batches), seen, back, lr=lr, given=True)
            if not report.accepted:
                return report
            after = collect_problem(problem, problem.losses(batches[0]))
            trace.restore()
            return with_after(report, after)
        except BaseException:
            back.restore()
            trace.restore()
            self._set_counters(counters)
            raise

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

    def _move(
        self,
        problem: Problem,
        parts: tuple[Any, ...],
        seen: Seen,
        back: WayBack,
        *,
        lr: float | None,
        given: bool = False,
        options: StepOptions = StepOptions(),
        trace: Trace | None = None,
    ) -> TeleportReport:
        """Search, judge and write.

        Args:
            problem: the problem.
            parts: the step's batch in parts, or the probe batches themselves if they are ``given``.
            seen: the gradients before.
            back: what writes.
            lr: the learning rate of the shared parameters.
            given: whether ``parts`` are the probe batches.
            options: the step's.
            trace: taken where the step began, if before now.

        Returns:
            the report, which lacks what is measured after the move.
        """
        occasion = Occasion(
            max(self.schedule.steps - 1, 0),
            self.schedule.epoch,
            self.trigger.name,
            length_of(problem.named_shared),
            time.perf_counter(),
        )
        self.schedule.record()
        own = parts if given or self.probe_batches is None else first(self.probe_batches, self.max_probe_batches)
        trace = Trace(problem.model) if trace is None else trace
        with isolated(problem.model, mode=self.mode) as flags, reentrant_refused(problem, own[0]):
            view = StepView(parts[:1] if given else parts, partial(as_at, problem.model, flags, trace))
            search = open_search(
                problem, own, seen.gramian, view, lr=lr, options=options, generator=self._generator, mode=self.mode
            )
            proposal = self._propose(search)
            verdict = judge(search, proposal.delta, max_drift=self.max_drift, backtracks=self.backtracks)
        proposal = replace(proposal, delta={})
        moved: tuple[float, float] | None = None
        if verdict.values is not None:
            shared = problem.named_shared
            moved = trajectory_cosine(verdict.values, seen.update, start=shared), length_of(verdict.values, start=shared)
            back.write(verdict.values)
        return described(occasion, search, seen, proposal, verdict, moved)

    def _counters(self) -> dict[str, Any]:
        """What a step changes here, but for the wrapped method."""
        return {
            "schedule": self.schedule.state_dict(),
            "generator": self._generator.get_state(),
            "due": self._due,
        }

    def _set_counters(self, counters: dict[str, Any]) -> None:
        """Put it back."""
        self.schedule.load_state_dict(counters["schedule"])
        self._generator.set_state(counters["generator"])
        self._due = counters["due"]

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

