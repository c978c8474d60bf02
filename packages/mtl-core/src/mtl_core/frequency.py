"""Methods that make a weighting cheaper: new weights every so many steps, or some of the tasks at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, optim

from mtl_core import checks
from mtl_core.errors import InvalidInputError
from mtl_core.guard import guarded
from mtl_core.problem import Problem
from mtl_core.problem_view import ProblemView
from mtl_core.protocols import AnyMethod, Method, Weighting, offers
from mtl_core.report import StepOptions, StepReport
from mtl_core.stepping import step
from mtl_core.task_losses import TaskLosses
from mtl_core.weighted import FixedWeights
from mtl_core.wrapping import Wrapper

__all__ = ["TaskSampling", "UpdateEvery"]


class UpdateEvery(Wrapper):
    """New weights every ``steps`` steps; in between the last ones are used, for one backward pass instead of ``m``.

    Args:
        method: a weighting, e.g. ``NashMTL`` or ``CAGrad``.
        steps: how many steps the weights last; 1 is the weighting itself.

    Raises:
        InvalidInputError: ``method`` gives no weights.
        InvalidParameterError: ``steps`` is not a whole number of at least 1.

    Note:
        A step of the weighting that was skipped, because its gradients overflowed under a gradient scaler, gives no
        weights: the next step computes them.

        Weights are those of the tasks that were there when they were computed. A step with another task computes them
        anew, and its turns are counted from there.

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, section 4 (weights updated every few
        steps).
    """

    def __init__(self, method: Weighting, *, steps: int) -> None:
        super().__init__(method)
        if not offers(method, Weighting):
            raise InvalidInputError(
                f"`method` must give weights, got {type(method).__name__}. Wrap a weighting such as NashMTL(); other "
                "methods have nothing to reuse."
            )
        self.steps = checks.positive_int("steps", steps)
        self._count = 0
        self._weights: Tensor | None = None
        self._known: Tensor | None = None

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step, with new weights if it is their turn."""
        options = StepOptions() if options is None else options
        with guarded(problem, optimizer, self, options) as guard:
            if self._weights is not None and self._known is not None and self._count % self.steps:
                held = _Held(self._weights, self._known)
                try:
                    report = step(problem, batch, optimizer, held, **vars(options))
                except _TasksWithoutWeights:
                    # Nothing has been differentiated yet; the losses are evaluated again, as if for the first time.
                    guard.trace.restore()
                    self._count = 0
                else:
                    self._count += 1
                    return report
            self._count += 1
            report = step(problem, batch, optimizer, self.method, **vars(options))
            # Weights of an earlier turn would outlive theirs where this one gave none.
            # A copy: the report is the user's, who may write to it.
            self._weights = None if report.weights is None else report.weights.detach().clone()
            # The loss of an absent task is NaN, and no other is.
            self._known = ~report.losses.isnan()
            return report

    def reset(self) -> None:
        """Compute weights in the next step, and let the method forget what it has learnt."""
        super().reset()
        self._count, self._weights, self._known = 0, None, None

    def own_state(self) -> dict[str, Any]:
        """Counter and weights, and for which tasks these were computed."""
        return {"count": self._count, "weights": self._weights, "known": self._known}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._count, self._weights, self._known = int(state["count"]), state["weights"], state["known"]


class _TasksWithoutWeights(Exception):
    """A task is there that was not when the weights were computed."""


class _Held(FixedWeights):
    """Weights of an earlier step, for the tasks that were there then.

    Args:
        weights: ``[m]``.
        known: which tasks had a part in them, ``[m]``.
    """

    def __init__(self, weights: Tensor, known: Tensor) -> None:
        super().__init__(weights)
        self._missing = (~known).nonzero().flatten().tolist()

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        """The weighted sum of the losses.

        Raises:
            _TasksWithoutWeights: one of them has no weight.
        """
        if self._missing and (present is None or bool(present[self._missing].any())):
            raise _TasksWithoutWeights
        return super().__call__(losses, present=present)


class TaskSampling(Wrapper):
    """Each step trains a random subset of the tasks, so that its cost does not grow with their number.

    The tasks left out are absent: they have no gradient and no say, and their heads do not move.

    Args:
        method: any method for which tasks may be absent.
        n_tasks: how many tasks a step has.
        generator: source of the choice; its state is saved. Every rank of a process group needs the same.

    Raises:
        InvalidInputError: the method owns its step, so that no task can be left out of it from outside.
        InvalidParameterError: ``n_tasks`` is not a whole number of at least 1.
    """

    def __init__(self, method: AnyMethod, *, n_tasks: int, generator: torch.Generator | None = None) -> None:
        super().__init__(method)
        self.n_tasks = checks.positive_int("n_tasks", n_tasks)
        self._sampler = checks.generator("generator", generator)
        if generator is None:
            self._sampler.manual_seed(0)
        if offers(method, Method):
            raise InvalidInputError(
                f"`method` must leave the step to TaskSampling, got {type(method).__name__}, which owns its step. "
                "Put the sampling innermost."
            )

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step on some of the tasks, on one batch or on micro-batches of it."""
        options = StepOptions() if options is None else options
        with guarded(problem, optimizer, self, options):
            # An order of all tasks, not a choice among those present: parts and ranks that differ in which tasks they
            # have would draw different numbers from then on.
            order = torch.randperm(problem.n_tasks, generator=self._sampler, device="cpu").tolist()
            view = ProblemView(problem, partial(_first_present, order=order, count=self.n_tasks))
            return step(view, batch, optimizer, self.method, **vars(options))

    @property
    def generator(self) -> torch.Generator:
        """Source of the choice."""
        return self._sampler

    def own_state(self) -> dict[str, Any]:
        """The sampler's state."""
        return {"sampler": self._sampler.get_state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        # A checkpoint that was loaded onto a device brings this along, and torch takes such a state on the CPU.
        self._sampler.set_state(state["sampler"].cpu())


def _first_present(losses: TaskLosses, *, order: Sequence[int], count: int) -> TaskLosses:
    """Those of the present tasks that come first in an order; the same for all parts of a batch and on all ranks."""
    place = {task: k for k, task in enumerate(losses.index)}
    chosen = sorted(place[task] for task in [task for task in order if task in place][:count])
    outputs = losses.outputs
    return replace(
        losses,
        outputs=outputs[chosen] if isinstance(outputs, Tensor) else tuple(outputs[k] for k in chosen),
        tasks=tuple(losses.tasks[k] for k in chosen),
        index=tuple(losses.index[k] for k in chosen),
    )
