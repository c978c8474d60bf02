"""The lower level of a bilevel method: one step of the optimiser, with weights that may be moved a little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, optim

from mtl_aggregators.bases.adam import Mask, on_host
from mtl_aggregators.bilevel.objectives import Outcome
from mtl_aggregators.bilevel.trial_optimizer import TrialOptimizer
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, NonFiniteLossError, Problem, StepOptions, StepReport, step
from mtl_core.extension import RandomState, inner_optimizer, is_sharded, memory_of, preserved

__all__ = ["LowerLevel", "Probe"]


@dataclass(frozen=True)
class Probe:
    """A step with moved weights whose outcome is still to be seen.

    Attributes:
        before: the losses ``[m]`` at the point where the step began, NaN for an absent task.
        weights: the weights ``[m]`` it was made with.
        direction: in which they were moved, ``[m]``.
        present: the tasks that had a loss, ``[m]``.
    """

    before: Vector
    weights: Vector
    direction: Vector
    present: Mask

    def outcome(self, tasks: tuple[str, ...], after: Vector) -> Outcome:
        """What the step did, from the losses ``[m]`` after it."""
        before, weights = torch.from_numpy(self.before), torch.from_numpy(self.weights)
        return Outcome(tasks, before, torch.from_numpy(after), weights)


class LowerLevel:
    """A loss weighting for a single step, which remembers what it did and sees what became of it.

    Args:
        problem: the model and its losses.
        options: how the step treats heads, clipping, scaling and ranks.
        weigh: from losses ``[m]`` (NaN for an absent task) and a mask of the tasks present to weights ``[m]``.
        move: from that mask to a displacement of the weights and its direction, both ``[m]``; ``None`` for a step with
            the weights as they are.
        look: whether to evaluate the losses of the same batch again after a step with moved weights.

    Attributes:
        probe: what a step with moved weights began with; ``None`` if the weights were not moved, or if its gradients
            overflowed.
        outcome: what it did, where that was looked at.
    """

    needs: Literal["losses"] = "losses"
    takes_present = True

    def __init__(
        self,
        problem: Problem,
        options: StepOptions,
        *,
        weigh: Callable[[Vector, Mask], Vector],
        move: Callable[[Mask], tuple[Vector, Vector]] | None = None,
        look: bool = False,
    ) -> None:
        self.probe: Probe | None = None
        self.outcome: Outcome | None = None
        self._problem = problem
        self._options = options
        self._weigh = weigh
        self._move = move
        # Remembered before the step's forward pass, to be set again before the second look.
        self._random = RandomState(problem.model) if move is not None and look else None
        self._scale = None if options.scaler is None else options.scaler.get_scale()

    def make(self, batch: Any, optimizer: optim.Optimizer) -> StepReport:
        """The step."""
        report = step(self._problem, batch, optimizer, self, **vars(self._options))
        if self._overflowed():
            self.probe = None
        return report

    def _overflowed(self) -> bool:
        """Whether the scaler has left out the step."""
        scaler = self._options.scaler
        return scaler is not None and self._scale is not None and scaler.get_scale() < self._scale

    def attempt(self, batch: Any, optimizer: optim.Optimizer) -> None:
        """The step, and back: it leaves no trace but ``outcome``, and what a callable that clips keeps to itself.

        Raises:
            InvalidInputError: the parameters are shards.
        """
        if is_sharded(self._problem.shared):
            raise InvalidInputError("`lookahead='trial'` needs whole parameters, got shards. Use lookahead='fused'.")
        scaler = self._options.scaler
        # The trial's step counts in the scaler like a real one, and may lower its scale.
        before = None if scaler is None else scaler.state_dict()
        memory = memory_of(self._options.clip) if callable(self._options.clip) else []
        # Strictly: what a wrapper does beside the step of the optimiser within would be missing from the trial.
        with preserved(self._problem.model), TrialOptimizer(inner_optimizer(optimizer, strict=True)) as trial:
            stand_in: Any = trial
            self.make(batch, stand_in)
        for put_back in memory:
            put_back()
        if scaler is not None and before:
            scaler.load_state_dict(before)

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        """The weighted sum of the losses ``[m]``."""
        # on_host() shares memory where the losses are float64 on the CPU already.
        known = on_host(losses).copy()
        there = np.ones(len(known), dtype=np.bool_)
        if present is not None:
            there = present.cpu().numpy()
            known[~there] = np.nan
        weights = self._weigh(known, there)
        if self._move is not None:
            shift, direction = self._move(there)
            weights = weights + shift
            self.probe = Probe(known, weights, direction, there)
        return losses @ torch.from_numpy(weights).to(losses)

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Evaluate the losses again, with the random numbers of the first time.

        Raises:
            NonFiniteLossError: one of them is not finite.
        """
        if self.probe is None or self._random is None or self._overflowed():
            return
        with preserved(self._problem.model):
            self._random.restore()
            found = on_host(after())
        bad = self.probe.present & ~np.isfinite(found)
        if bad.any():
            names = [task for task, is_bad in zip(self._problem.tasks, bad, strict=True) if is_bad]
            raise NonFiniteLossError(
                f"the losses after the step must be finite, got {found[bad].tolist()} for {names}. Lower the learning "
                "rate.",
                tasks=names,
            )
        self.outcome = self.probe.outcome(self._problem.tasks, found)
