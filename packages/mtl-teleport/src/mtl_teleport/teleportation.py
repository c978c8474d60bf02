"""The step around a teleport: ask the trigger, move, judge the move, go on with the wrapped method."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import checks
from mtl_core.accumulation import MicroBatches, accumulate
from mtl_core.combination import combine, combine_per_group
from mtl_core.distributed import broadcast_buffers_, is_sharded
from mtl_core.errors import InvalidInputError, InvalidJacobianError, NonFiniteLossError
from mtl_core.gradients import TaskGradients
from mtl_core.problem import Problem
from mtl_core.report import StepOptions, StepReport
from mtl_core.step import AnyMethod, collect_problem, finish
from mtl_core.step import step as core_step
from mtl_teleport import ranks
from mtl_teleport.acceptance import judge, probe_losses
from mtl_teleport.adapters.protocol import AdapterSession, write_
from mtl_teleport.history import HTR, modulated, trajectory_cosine
from mtl_teleport.isolation import Flags, Trace, as_at, isolated
from mtl_teleport.report import TeleportReport, conflict_measures
from mtl_teleport.schedule import Schedule
from mtl_teleport.search import task_gramian
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
        generator: source of randomness, on the CPU; the same on every rank of ``group``.
        start: the Gramian that ``look`` gives before anything has moved, if it is known.
        look: the Gramian of the step's own batch, in the mode in which the step evaluates it, at the present point of
            an adapter.
        group: a process group over which losses and gradients are means.
        loss_scale: factor on losses while they are differentiated.
    """

    problem: Problem
    batches: tuple[Any, ...]
    losses: tuple[Tensor, ...]
    gramian: Tensor
    lr: float | None
    generator: torch.Generator
    start: Tensor | None
    look: Callable[[AdapterSession], Tensor]
    group: dist.ProcessGroup | None
    loss_scale: float

    def prepare(self, session: AdapterSession) -> None:
        """Make a session that was just attached one of all ranks, with the values of the first."""
        session.group, session.loss_scale = self.group, self.loss_scale
        if self.group is not None:
            ranks.same_tensors_(session.trainable, self.group)


@dataclass(frozen=True)
class Proposal:
    """A displacement by parameter name, the work that it took to find, and the points that the search looked at."""

    delta: dict[str, Tensor]
    steps: int = 0
    forwards: int = 0
    backwards: int = 0
    path: tuple[tuple[tuple[float, ...], float], ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What a teleport remembers of the gradients before it."""

    gramian: Tensor
    update: dict[str, Tensor]
    measures: tuple[tuple[float, ...], tuple[float, ...], float]

    @classmethod
    def of(cls, gradients: TaskGradients, update: dict[str, Tensor]) -> _Seen:
        return cls(gradients.host_gramian, update, conflict_measures(gradients))


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
            InvalidInputError: the limits count epochs and none was ever told, or the shared parameters are complex or
                sharded.
            NonFiniteLossError: a loss is not finite before any move.

        Note:
            With a process group every rank gives its part of the batch, and its part of each probe batch. Losses and
            gradients of the search are means over the ranks and the adapter starts from the first rank's values, so
            that all ranks make the same move, or none.
        """
        options = StepOptions() if options is None else options
        _check_parameters(problem)
        started = self.schedule.begin_step()
        if started is not None:
            self._start_wrapped(started)
        if not self.schedule.is_open:
            return self._plain_step(problem, batch, optimizer, options)
        if options.group is not None:
            broadcast_buffers_(problem.model, options.group)
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
        parts = tuple(batch) if isinstance(batch, MicroBatches) else (batch,)
        seen = _Seen.of(gradients, self._update_before(problem, gradients, options))
        # A search needs room of its own; after a rollback the gradients are found again by the very same computation.
        del gradients
        optimizer.zero_grad(set_to_none=True)
        report, previous = self._move(
            problem, parts, seen, _learning_rate(optimizer, problem), options=options, trace=trace
        )
        del seen
        if not report.accepted:
            trace.restore()
            gradients = _gradients(problem, batch, optimizer, options)
            result = self._continue(problem, batch, optimizer, options, gradients, trace)
            return replace(result, events=(report, *result.events))
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
        _check_parameters(problem)
        seen = _Seen.of(gradients, self._update_before(problem, gradients, StepOptions()))
        report, _ = self._move(problem, tuple(batches), seen, lr, given=True)
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
            update = gradients.combine(torch.full((gradients.n_tasks,), 1.0 / gradients.n_tasks, dtype=torch.float64))
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
        seen: _Seen,
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
        shared, group, device = problem.named_shared, options.group, problem.shared[0].device
        scaler = options.scaler
        own_parts = batches[:1] if given else batches
        with isolated(problem.model) as flags:
            if self.probe_batches is not None and not given:
                batches = tuple(islice(self.probe_batches, self.max_probe_batches))
                if not batches:
                    raise InvalidInputError(
                        "`probe_batches` must yield at least one batch whenever it is iterated, got none. Give a "
                        "list or a loader, not a generator."
                    )
            seed = int(torch.randint(2**62, (), generator=self._generator))
            if group is not None:
                batches = batches[: ranks.fewest(len(batches), group, device)]
                seed = ranks.same_seed(seed, group, device)
            generator = torch.Generator().manual_seed(seed)
            own = probe_losses(problem, batches, group=group)
            search = Search(
                problem,
                batches,
                own,
                seen.gramian,
                lr,
                generator,
                # The Gramian by the features is another one than that of the gradients, and cannot be compared.
                start=None if options.keep == "features" else seen.gramian,
                look=_looking(problem, own_parts, flags, trace),
                group=group,
                loss_scale=scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0,
            )
            proposal = self._propose(search)
            verdict = judge(
                problem,
                batches,
                own,
                proposal.delta,
                max_drift=self.max_drift,
                backtracks=self.backtracks,
                group=group,
            )
        theta, length, sigma = _length(shared), 0.0, None
        previous: dict[str, Tensor] = {}
        if verdict.values is not None:
            sigma = trajectory_cosine(verdict.values, seen.update, start=shared)
            length = _length(verdict.values, start=shared)
            previous = _exchange(shared, verdict.values)
        cosines, norms, mean_norm = seen.measures
        report = TeleportReport(
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
            sigma=sigma,
            length=length,
            relative_length=length / theta if theta > 0 else math.inf if length > 0 else 0.0,
            scale=verdict.scale,
            adapter_steps=proposal.steps,
            search_losses=tuple(losses for losses, _ in proposal.path),
            search_growth=tuple(growth for _, growth in proposal.path),
            seconds=time.perf_counter() - began,
            forwards=proposal.forwards + verdict.forwards + len(batches),
            backwards=proposal.backwards,
        )
        return report, previous

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
    if isinstance(batch, MicroBatches):
        return accumulate(problem, batch, options=options)
    losses = problem.losses(batch)
    if options.group is not None:
        # All ranks must take the same way: one that raised by itself would leave the others waiting.
        values = losses.values.detach()
        if not ranks.agree(bool(torch.isfinite(values).all()), options.group, values.device):
            raise NonFiniteLossError("every task's loss must be finite on every rank, got one that is not.", tasks=())
    return collect_problem(problem, losses, options=options)


def _looking(
    problem: Problem, parts: tuple[Any, ...], flags: Flags, trace: Trace | None
) -> Callable[[AdapterSession], Tensor]:
    """How a search looks at the gradients that the step will see: in its mode, with its buffers and random numbers."""

    def look(session: AdapterSession) -> Tensor:
        with as_at(problem.model, flags, Trace(problem.model) if trace is None else trace):
            return task_gramian(session, *parts)

    return look


def _check_parameters(problem: Problem) -> None:
    named = problem.named_shared
    complex_ones = [name for name, p in named.items() if p.is_complex()]
    if complex_ones:
        raise InvalidInputError(
            f"`shared` must hold real parameters to be teleported, got complex {', '.join(complex_ones)}. Leave them "
            "out of `shared`, or keep their real and imaginary parts as two real parameters."
        )
    if is_sharded(named.values()):
        raise InvalidInputError(
            "`shared` must hold whole parameters to be teleported, got sharded ones. Replicate the model, with "
            "step(group=...)."
        )


def _mean_losses(losses: tuple[Tensor, ...]) -> tuple[float, ...]:
    return tuple(torch.stack(losses).to(torch.float64).nanmean(dim=0).tolist())


def _length(tensors: Mapping[str, Tensor], *, start: Mapping[str, Tensor] | None = None) -> float:
    """The norm of all tensors together, or of their difference from where they started."""
    squares = 0.0
    for name, tensor in tensors.items():
        step = tensor.detach() if start is None else tensor.detach() - start[name].detach()
        squares += float(step.to(torch.float64).square().sum())
    return math.sqrt(squares)


def _exchange(shared: Mapping[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write ``values``, and put into their place what was there; one copy at a time."""
    for name, value in values.items():
        before = shared[name].detach().clone()
        write_(shared, {name: value})
        values[name] = before
    return values


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
