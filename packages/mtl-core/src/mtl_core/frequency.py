"""Methods that make a weighting cheaper: new weights every so many steps, or some of the tasks at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn, optim

from mtl_core import checks
from mtl_core.errors import InvalidInputError
from mtl_core.problem import Problem, TaskLosses
from mtl_core.protocols import AnyMethod, Weighting
from mtl_core.report import StepOptions, StepReport
from mtl_core.stepping import step, step_from_losses

__all__ = ["TaskSampling", "UpdateEvery"]


class _FixedWeights:
    """Weights that are not computed but given."""

    needs = "losses"
    takes_present = True

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        return (losses * self._weights.to(losses)).sum()


class UpdateEvery:
    """New weights every ``steps`` steps; in between the last ones are used, for one backward pass instead of ``m``.

    Args:
        method: a weighting, e.g. ``NashMTL`` or ``CAGrad``.
        steps: how many steps the weights last; 1 is the weighting itself.

    Raises:
        InvalidInputError: ``method`` gives no weights.
        InvalidParameterError: ``steps`` is not a whole number of at least 1.

    References:
        Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, section 4 (weights updated every few
        steps).
    """

    def __init__(self, method: Weighting, *, steps: int) -> None:
        if not callable(getattr(method, "weights", None)):
            raise InvalidInputError(f"`method` must give weights, got {type(method).__name__}.")
        self.method = method
        self.steps = checks.positive_int("steps", steps)
        self._count = 0
        self._weights: Tensor | None = None

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step, with new weights if it is their turn."""
        options = StepOptions() if options is None else options
        due = self._weights is None or self._count % self.steps == 0
        self._count += 1
        method: Any = self.method
        if not due:
            assert self._weights is not None
            method = _FixedWeights(self._weights)
        report = step(problem, batch, optimizer, method, **vars(options))
        if due and report.weights is not None:
            self._weights = report.weights.detach().clone()
        return report

    def start_epoch(self, epoch: int) -> None:
        """Tell the wrapped method, if it counts epochs."""
        _tell_epoch(self.method, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Counter, weights and the method's own state."""
        own = self.method.state_dict() if isinstance(self.method, nn.Module) else {}
        return {"count": self._count, "weights": self._weights, "method": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._count, self._weights = int(state["count"]), state["weights"]
        if isinstance(self.method, nn.Module):
            self.method.load_state_dict(state["method"])


class TaskSampling:
    """Each step trains a random subset of the tasks, so that its cost does not grow with their number.

    The tasks left out are absent: they have no gradient and no say, and their heads do not move.

    Args:
        method: any method for which tasks may be absent.
        n_tasks: how many tasks a step has.
        generator: source of the choice; its state is saved.

    Raises:
        InvalidParameterError: ``n_tasks`` is not a whole number of at least 1.
    """

    def __init__(self, method: AnyMethod, *, n_tasks: int, generator: torch.Generator | None = None) -> None:
        self.method = method
        self.n_tasks = checks.positive_int("n_tasks", n_tasks)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step on some of the tasks.

        Raises:
            InvalidInputError: the method owns its step, so that no task can be left out of it from outside.
        """
        options = StepOptions() if options is None else options
        if callable(getattr(self.method, "step", None)):
            raise InvalidInputError(
                f"`method` must leave the step to TaskSampling, got {type(self.method).__name__}, which owns its step. "
                "Put the sampling innermost."
            )
        optimizer.zero_grad(set_to_none=True)
        losses = problem.losses(batch)
        count = min(self.n_tasks, len(losses.index))
        chosen = torch.randperm(len(losses.index), generator=self.generator)[:count].sort().values.tolist()
        return step_from_losses(problem, batch, optimizer, self.method, _select(losses, chosen), options=options)

    def start_epoch(self, epoch: int) -> None:
        """Tell the wrapped method, if it counts epochs."""
        _tell_epoch(self.method, epoch)

    def state_dict(self) -> dict[str, Any]:
        """The generator's state and the method's own."""
        own = self.method.state_dict() if isinstance(self.method, nn.Module) else {}
        return {"generator": self.generator.get_state(), "method": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.generator.set_state(state["generator"])
        if isinstance(self.method, nn.Module):
            self.method.load_state_dict(state["method"])


def _select(losses: TaskLosses, chosen: list[int]) -> TaskLosses:
    outputs = losses.outputs
    return replace(
        losses,
        outputs=outputs[chosen] if isinstance(outputs, Tensor) else tuple(outputs[k] for k in chosen),
        tasks=tuple(losses.tasks[k] for k in chosen),
        index=tuple(losses.index[k] for k in chosen),
    )


def _tell_epoch(method: object, epoch: int) -> None:
    start = getattr(method, "start_epoch", None)
    if callable(start):
        start(epoch)
