"""One teleport of a problem: search, judge, write, and put back if anything goes wrong."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import InvalidInputError, Method, Problem, StepOptions, TaskGradients, checks
from mtl_core.extension import (
    AnyMethod,
    Trace,
    Wrapper,
    collect_batch,
    full_precision,
    inner_optimizer,
    offers,
    together,
)
from mtl_teleport import arguments, ranks
from mtl_teleport.acceptance import judge
from mtl_teleport.budget import Budget, change_passes, gradients_passes
from mtl_teleport.history import HTR, trajectory_cosine
from mtl_teleport.inner_product import length_of
from mtl_teleport.isolation import Mode, as_at, isolated
from mtl_teleport.memory_due import MemoryDue
from mtl_teleport.move import Occasion, Proposal, Seen, described, rolled_back, with_after
from mtl_teleport.next_step import next_step
from mtl_teleport.plan import Prices
from mtl_teleport.report import TeleportReport
from mtl_teleport.schedule import Schedule
from mtl_teleport.search_context import Search, StepView, first, open_search
from mtl_teleport.step_gradients import check_parameters, copied, learning_rate, present_update
from mtl_teleport.structure import Structure
from mtl_teleport.transport import Change, probe_gradient
from mtl_teleport.triggers import Trigger, as_trigger
from mtl_teleport.way_back import SHARED_MEMORY, WayBack

__all__ = ["Condition", "Moving", "OwnStep", "WrappedMethod"]

WrappedMethod = AnyMethod | Callable[[Tensor], Tensor] | None

Condition = Callable[[Tensor], object]
"""Any function of the Gramian ``[m, m]`` that says whether to teleport."""

OwnStep = Literal["update", "skip"]
"""Whether the step of a teleport goes on with the update from the new point, or ends there."""


class Moving(Wrapper, ABC):
    """What may move the shared parameters: when, how far, and from what it has counted so far.

    A subclass proposes a displacement. See ``COST`` for the arguments.
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
        budget: float | None = None,
    ) -> None:
        super().__init__(arguments.wrapped_method(method))
        if not offers(self.method, Method):
            copied(self.method)  # for its error: it is needed at the first teleport only
        self.trigger = as_trigger(trigger)
        self.schedule = Schedule(start_after=start_after, max_per_epoch=max_per_epoch, steps_per_epoch=steps_per_epoch)
        self.probe_batches = arguments.probe_batches(probe_batches)
        self.max_probe_batches = (
            None if max_probe_batches is None else checks.positive_int("max_probe_batches", max_probe_batches)
        )
        self.budget = Budget(budget)
        self.max_drift = None if max_drift is None else checks.positive("max_drift", max_drift)
        self.backtracks = arguments.whole("backtracks", backtracks, 0)
        self.mode: Mode = checks.one_of("mode", mode, get_args(Mode))
        self.htr: HTR = checks.one_of("htr", htr, get_args(HTR))
        self.own_step: OwnStep = checks.one_of("own_step", own_step, get_args(OwnStep))
        self._generator = torch.Generator().manual_seed(checks.seed("seed", seed))
        self._due = MemoryDue()
        # What the move that is being made does to the gradient.
        self._change: Change | None = None

    @abstractmethod
    def _propose(self, search: Search) -> Proposal:
        """Find a displacement; the model must be left as it is."""

    def _prices(self, n_tasks: int) -> Prices | None:
        """What a search costs, where it can be made to fit a budget."""
        return None

    @full_precision
    def teleport(
        self,
        problem: Problem,
        batches: Iterable[Any],
        gradients: TaskGradients,
        *,
        lr: float | None = None,
        optimizer: Optimizer | None = None,
    ) -> TeleportReport:
        """Teleport once, whatever the trigger and the limits say.

        If anything raises, the parameters are where they were.

        Args:
            problem: the model and its losses; its shared parameters are moved in place.
            batches: the probe batches, in a list or a loader.
            gradients: the task gradients at the present point, on the first of the batches.
            lr: the learning rate of the shared parameters, unless the method has one of its own or ``optimizer`` is
                given.
            optimizer: the optimiser of the shared parameters: copies of them that it keeps are moved along.

        Returns:
            the report; its ``sigma`` is what ``modulated`` needs for the next optimiser step.

        Raises:
            InvalidInputError: an argument is not what it must be, there is no probe batch, gradients are switched off,
                ``gradients`` are not of this problem's tasks and shared parameters, or these cannot be moved.
            InvalidParameterError: ``lr`` is negative or not finite.
        """
        batches = arguments.teleport_batches(batches)
        arguments.teleported(problem, gradients)
        check_parameters(problem)
        inner = None if optimizer is None else inner_optimizer(optimizer)
        lr = None if lr is None else checks.non_negative("lr", lr)
        if inner is not None and lr is None:
            lr = learning_rate(inner, problem)
        back = WayBack(problem.named_shared, inner)
        seen = Seen.of(gradients, *present_update(problem, self.method, gradients, StepOptions()))
        # There is no step around this, whose guard would put them back.
        trace, counters, structure = Trace(problem.model), self.own_state(), Structure(problem.model)
        try:
            report = self._move(problem, batches, seen, back, lr=lr, given=True)
            if not report.accepted:
                return report
            after = collect_batch(problem, batches[0])
            trace.restore()
            if not back.stands:
                back.restore()
                return rolled_back(report, SHARED_MEMORY)
            return with_after(replace(report, passes=report.passes + gradients_passes(problem.n_tasks)), after)
        except BaseException:
            structure.restore()
            back.restore()
            trace.restore()
            self.load_own_state(counters)
            raise

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
            # `begin_step` has counted the step that is under way; `teleport` by hand has none.
            max(self.schedule.steps - 1, 0),
            self.schedule.epoch,
            self.trigger.name,
            length_of(problem.named_shared),
            time.perf_counter(),
        )
        # Before its outcome is known: tries that fail count, or a search in vain would be repeated in every step.
        self.schedule.record()
        # Loading data may fail on one rank, and what follows is done by all.
        with together(options.group):
            own = parts if given or self.probe_batches is None else first(self.probe_batches, self.max_probe_batches)
        left = math.inf if given else self.budget.left
        prices = self._prices(problem.n_tasks) if math.isfinite(left) else None
        if prices is not None:
            own = own[: prices.batches(left)]
        if options.group is not None:
            lr = ranks.same_rate(lr, options.group, problem.shared[0].device)
        trace = Trace(problem.model) if trace is None else trace
        with isolated(problem.model, mode=self.mode) as flags:
            view = StepView(parts[:1] if given else parts, partial(as_at, problem.model, flags, trace))
            search = open_search(
                problem,
                own,
                seen.gramian,
                view,
                lr=lr,
                options=options,
                generator=self._generator,
                mode=self.mode,
                coming=partial(next_step, problem.named_shared, seen.weights, problem.n_tasks, lr, back.optimizer),
                left=left if prices is None else left - prices.after,
            )
            proposal = self._propose(search)
            made = len(search.batches) + proposal.passes
            verdict = judge(search, proposal.delta, max_drift=self.max_drift, backtracks=self._tries(search, made))
            self._change = self._changed(search, seen, verdict.values)
            made += verdict.forwards + (0 if self._change is None else change_passes(len(search.batches)))
        # As large as the parameters, and contained in the verdict's values.
        proposal = replace(proposal, delta={})
        moved: tuple[float, float] | None = None
        if verdict.values is not None:
            shared = problem.named_shared
            # Measured before `write`, which uses the values up and overwrites where they are measured from.
            moved = (
                trajectory_cosine(verdict.values, seen.update, start=shared),
                length_of(verdict.values, start=shared),
            )
            back.write(verdict.values)
        return described(occasion, search, seen, proposal, verdict, moved, made)

    def _tries(self, search: Search, made: int) -> int:
        """How often a displacement may be shortened, each time at an evaluation of every probe batch."""
        if math.isinf(search.left):
            return self.backtracks
        n_batches = len(search.batches)
        made += change_passes(n_batches) if self.htr == "transported" else 0
        return max(0, min(self.backtracks, int((search.left - made) // n_batches) - 1))

    def _changed(self, search: Search, seen: Seen, values: dict[str, Tensor] | None) -> Change | None:
        """What a move that is about to be written does to the combined gradient, where the memory is to know it."""
        if values is None or self.htr != "transported":
            return None
        n_tasks = search.problem.n_tasks
        weights = (
            torch.full((n_tasks,), 1.0 / n_tasks, dtype=torch.float64, device="cpu")
            if seen.weights is None
            else seen.weights
        )
        # One row per group of parameters: their mean stands for them.
        weights = weights.mean(dim=0) if weights.ndim > 1 else weights
        before = probe_gradient(search, weights)
        after = probe_gradient(search, weights, values)
        return {name: (before[name], after[name]) for name in before}

    def own_state(self) -> dict[str, Any]:
        """What a step changes here, but for the wrapped method."""
        return {
            "schedule": self.schedule.state_dict(),
            "generator": self._generator.get_state(),
            "due": self._due.state(),
            "budget": self.budget.state_dict(),
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Put it back.

        Raises:
            InvalidInputError: it is the state of another class.
        """
        expected = sorted(self.own_state())
        if sorted(state) != expected:
            raise InvalidInputError(
                f"`state` must have the keys {', '.join(expected)} of a {type(self).__name__}, got {sorted(state)}. "
                "Give what state_dict() returned."
            )
        self.schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"].cpu())
        self._due.load(state["due"])
        self.budget.load_state_dict(state["budget"])
