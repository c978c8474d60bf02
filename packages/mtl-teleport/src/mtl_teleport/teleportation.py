"""The step around a teleport: ask the trigger, move, judge the move, go on with the wrapped method."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import checks
from mtl_core.combination import combine, combine_per_group
from mtl_core.errors import InvalidInputError, InvalidJacobianError, NonFiniteLossError
from mtl_core.gradients import TaskGradients
from mtl_core.problem import Problem
from mtl_core.report import StepOptions, StepReport
from mtl_core.step import AnyMethod, collect_problem, finish
from mtl_core.step import step as core_step
from mtl_teleport.acceptance import judge, probe_losses
from mtl_teleport.adapters.protocol import write_
from mtl_teleport.history import HTR, modulated, trajectory_cosine
from mtl_teleport.isolation import Trace, isolated
from mtl_teleport.report import TeleportReport, conflict_measures
from mtl_teleport.schedule import Schedule
from mtl_teleport.triggers import Trigger

__all__ = ["Proposal", "Search", "Teleportation"]

WrappedMethod = AnyMethod | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class Search:
    """What a search for a new point may use.

    Attributes:
        problem: the problem, its model in evaluation mode.
        batches: the probe batches.
        losses: their losses before, each ``[m]``, NaN where a task is absent.
        gramian: the Gramian ``[m, m]`` of the step's gradients, float64 on the CPU.
        lr: the learning rate of the shared parameters.
        generator: source of randomness, on the CPU.
    """

    problem: Problem
    batches: tuple[Any, ...]
    losses: tuple[Tensor, ...]
    gramian: Tensor
    lr: float | None
    generator: torch.Generator


@dataclass(frozen=True)
class Proposal:
    """A displacement by parameter name, and the work that it took to find."""

    delta: dict[str, Tensor]
    steps: int = 0
    forwards: int = 0
    backwards: int = 0


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
        trigger: Trigger,
        start_after: int,
        max_per_epoch: int | None,
        steps_per_epoch: int | None,
        probe_batches: Iterable[Any] | None,
        max_probe_batches: int,
        max_drift: float | None,
        backtracks: int,
        htr: HTR,
        seed: int,
    ) -> None:
        self.method = _Sum() if method is None else method
        self.trigger = trigger
        self.schedule = Schedule(start_after=start_after, max_per_epoch=max_per_epoch, steps_per_epoch=steps_per_epoch)
        self.probe_batches = probe_batches
        self.max_probe_batches = checks.positive_int("max_probe_batches", max_probe_batches)
        self.max_drift = None if max_drift is None else checks.positive("max_drift", max_drift)
        self.backtracks = int(checks.non_negative("backtracks", backtracks))
        self.htr: HTR = checks.one_of("htr", htr, get_args(HTR))
        self._generator = torch.Generator().manual_seed(seed)

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
        new point: buffers and random state are first set back to where the step began.

        Args:
            problem: the model and its losses.
            batch: what the problem's losses take.
            optimizer: the optimiser of the problem's parameters.
            options: how the step treats heads, clipping and scaling.

        Returns:
            the wrapped method's report, with a ``TeleportReport`` among its events if a teleport was tried.

        Raises:
            InvalidInputError: the limits count epochs and none was ever told, or a process group is given.
            NonFiniteLossError: a loss is not finite before any move.
        """
        options = StepOptions() if options is None else options
        if options.group is not None:
            raise InvalidInputError(
                f"`group` must be None for {type(self).__name__}, got a process group: each rank would move to a point "
                "of its own. Train on one process, or wrap the step in one that broadcasts the parameters."
            )
        started = self.schedule.begin_step()
        if started is not None:
            self._start_wrapped(started)
        if not self.schedule.is_open:
            return self._plain_step(problem, batch, optimizer, options)
        trace = Trace(problem.model)
        gradients = _gradients(problem, batch, optimizer, options)
        try:
            gramian = gradients.host_gramian
        except InvalidJacobianError:
            if options.scaler is None or not options.scaler.is_enabled():
                raise
            return self._continue(problem, batch, optimizer, options, gradients, trace)
        if not self.trigger(gramian):
            return self._continue(problem, batch, optimizer, options, gradients, trace)
        before = self._update_before(problem, gradients, options)
        previous = {name: p.detach().clone() for name, p in problem.named_shared.items()}
        report = self._move(problem, (batch,), gradients, before, _learning_rate(optimizer, problem))
        if not report.accepted:
            result = self._continue(problem, batch, optimizer, options, gradients, trace)
            return replace(result, events=(report, *result.events))
        del gradients
        trace.restore()
        try:
            gradients = _gradients(problem, batch, optimizer, options)
            report = _with_after(report, gradients)
        except (NonFiniteLossError, InvalidJacobianError) as error:
            write_(problem.named_shared, previous)
            trace.restore()
            gradients = _gradients(problem, batch, optimizer, options)
            report = _rolled_back(report, f"at the new point in training mode: {error}")
        sigma = 1.0 if report.sigma is None else report.sigma
        mode: HTR = self.htr if report.accepted else "keep"
        with modulated(optimizer, sigma, problem.shared, mode=mode):
            result = self._continue(problem, batch, optimizer, options, gradients, trace)
        return replace(result, events=(report, *result.events))

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
        before = self._update_before(problem, gradients, StepOptions())
        report = self._move(problem, tuple(batches), gradients, before, lr, given=True)
        if not report.accepted:
            return report
        trace = Trace(problem.model)
        after = collect_problem(problem, problem.losses(batches[0]))
        trace.restore()
        return _with_after(report, after)

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

    def _update_before(self, problem: Problem, gradients: TaskGradients, options: StepOptions) -> dict[str, Tensor]:
        """The update that the wrapped method would make before the teleport, without a trace in its state."""
        method: Any = copy.deepcopy(self.method)
        if callable(getattr(method, "step", None)):
            update = gradients.mean
        elif options.per != "model":
            update, _ = combine_per_group(problem, method, gradients, options.per)
        else:
            update, _ = combine(method, gradients, gradients.host_gramian)
        parts = torch.split(update.detach(), [p.numel() for p in problem.shared])
        return {n: part.view(p.shape) for part, (n, p) in zip(parts, problem.named_shared.items(), strict=True)}

    def _move(
        self,
        problem: Problem,
        batches: tuple[Any, ...],
        gradients: TaskGradients,
        update: dict[str, Tensor],
        lr: float | None,
        *,
        given: bool = False,
    ) -> TeleportReport:
        """Search, judge and write; the report lacks what is measured after the move."""
        self.schedule.record()
        began = time.perf_counter()
        shared = problem.named_shared
        with isolated(problem.model):
            if self.probe_batches is not None and not given:
                batches = tuple(islice(self.probe_batches, self.max_probe_batches))
                if not batches:
                    raise InvalidInputError(
                        "`probe_batches` must yield at least one batch whenever it is iterated, got none. Give a "
                        "list or a loader, not a generator."
                    )
            own = probe_losses(problem, batches)
            search = Search(problem, batches, own, gradients.host_gramian, lr, self._generator)
            proposal = self._propose(search)
            verdict = judge(problem, batches, own, proposal.delta, max_drift=self.max_drift, backtracks=self.backtracks)
        theta = _length(shared)
        moved: dict[str, Tensor] = {}
        if verdict.values is not None:
            moved = {name: value - shared[name].detach() for name, value in verdict.values.items()}
            write_(shared, verdict.values)
        length = _length(moved)
        cosines, norms, mean_norm = conflict_measures(gradients)
        return TeleportReport(
            step=self.schedule.steps - 1 if self.schedule.steps else 0,
            epoch=self.schedule.epoch,
            trigger=self.trigger.name,
            tasks=problem.tasks,
            accepted=verdict.values is not None,
            reason=verdict.reason,
            losses_before=_mean_losses(own),
            losses_after=_mean_losses(verdict.losses),
            drift=verdict.drift,
            cosines_before=cosines,
            cosines_after=None,
            norms_before=norms,
            norms_after=None,
            mean_norm_before=mean_norm,
            mean_norm_after=None,
            sigma=trajectory_cosine(moved, update) if verdict.values is not None else None,
            length=length,
            relative_length=length / theta if theta > 0 else math.inf if length > 0 else 0.0,
            scale=verdict.scale,
            adapter_steps=proposal.steps,
            seconds=time.perf_counter() - began,
            forwards=proposal.forwards + verdict.forwards + len(batches),
            backwards=proposal.backwards,
        )

    def state_dict(self) -> dict[str, Any]:
        """Counters, random state and the wrapped method's state: a fresh object that loads it goes on exactly so."""
        state = getattr(self.method, "state_dict", None)
        return {
            "schedule": self.schedule.state_dict(),
            "generator": self._generator.get_state(),
            "method": state() if callable(state) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``.

        Raises:
            InvalidInputError: the state has another form, or holds a method's state that the wrapped method cannot
                take.
        """
        if set(state) != {"schedule", "generator", "method"}:
            raise InvalidInputError(
                f"`state` must have the keys schedule, generator and method, got {sorted(state)}. Give what "
                "state_dict() returned."
            )
        load = getattr(self.method, "load_state_dict", None)
        if state["method"] is not None and not callable(load):
            raise InvalidInputError(
                f"`state` must fit the wrapped method, got a state for {type(self.method).__name__}, which takes "
                "none. Wrap the method it was saved with."
            )
        self.schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        if callable(load) and state["method"] is not None:
            load(state["method"])


def _gradients(problem: Problem, batch: Any, optimizer: Optimizer, options: StepOptions) -> TaskGradients:
    optimizer.zero_grad(set_to_none=True)
    return collect_problem(problem, problem.losses(batch), options=options)


def _mean_losses(losses: tuple[Tensor, ...]) -> tuple[float, ...]:
    return tuple(torch.stack(losses).to(torch.float64).nanmean(dim=0).tolist())


def _length(tensors: dict[str, Tensor] | dict[str, torch.nn.Parameter]) -> float:
    return math.sqrt(sum(float(t.detach().to(torch.float64).square().sum()) for t in tensors.values()))


def _with_after(report: TeleportReport, gradients: TaskGradients) -> TeleportReport:
    cosines, norms, mean_norm = conflict_measures(gradients)
    return replace(report, cosines_after=cosines, norms_after=norms, mean_norm_after=mean_norm)


def _rolled_back(report: TeleportReport, reason: str) -> TeleportReport:
    return replace(report, accepted=False, reason=reason, sigma=None, length=0.0, relative_length=0.0, scale=0.0)


def _learning_rate(optimizer: Optimizer, problem: Problem) -> float | None:
    """The learning rate of the first shared parameter."""
    first = problem.shared[0]
    for group in optimizer.param_groups:
        if any(p is first for p in group["params"]):
            return float(group["lr"]) if "lr" in group else None
    return None
