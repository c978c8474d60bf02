"""GradNorm: weights trained towards equal training rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from mtl_aggregators.bases.adam import Adam
from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.loss_method import positive
from mtl_aggregators.bases.parameters import same_tasks
from mtl_aggregators.solvers.solution import Vector
from mtl_core import (
    DetachedLossError,
    InvalidInputError,
    InvalidParameterError,
    MicroBatches,
    Problem,
    StepOptions,
    StepReport,
    TaskLosses,
    checks,
)
from mtl_core.extension import (
    FixedWeights,
    begin,
    checked_gramian,
    collect_problem,
    guarded,
    ranks_of,
    step_from_losses,
    together,
)

__all__ = ["GradNorm"]

_ROUNDING = 1e-12
"""Relative difference of a norm and its target that float64 sums of squares leave: 1e-16 times the root of millions."""


class GradNorm(GramianMethod):
    r"""Gradient normalisation: trained weights that keep the weighted gradient norms in a ratio of training rates.

    .. math::
        \min_w \sum_i \bigl| w_i\|g_i\| - \bar n\, r_i^\alpha \bigr|, \qquad
        \bar n = \tfrac1m \sum_j w_j\|g_j\|, \qquad r_i = \frac{L_i / L_i(0)}{\tfrac1m \sum_j L_j / L_j(0)}

    by one step of Adam per training step, with the targets :math:`\bar n r_i^\alpha` constant; then :math:`\sum_i w_i =
    m` is restored. The step uses the weights from before, as in the paper; they start at 1.

    Args:
        alpha: how strongly slow tasks are favoured; 1.5 in the paper.
        lr: learning rate of the weights' own Adam.
        layer: names of the parameters whose gradients are measured, as ``model.named_parameters()`` has them or a
            prefix of them (``"trunk.6"``); the paper's is the last shared layer. ``None`` for that layer of the
            problem's shared parameters that comes last. ``step`` measures these alone, for one pass through the heads
            and that layer per task and one through the rest.

    Raises:
        InvalidParameterError: ``alpha`` is negative or ``lr`` is not positive.
        InvalidInputError: when called without losses, or on a loss that is not positive.

    Note:
        Called on gradients instead of stepping, it measures whatever Gramian it is given. Weights are kept positive by
        a floor of 1e-6, without which a step of Adam could turn a task round. Initial losses must be positive. The
        heads follow ``step``'s setting; in the paper they follow the weighted losses.

    References:
        Chen et al., *GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks*, ICML
        2018, equations 1 and 2, algorithm 1.

    Example:
        >>> method = GradNorm(lr=0.1)
        >>> gramian, losses = torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([1.0, 1.0])
        >>> method.weights(gramian, losses=losses), method.weights(gramian, losses=losses)
        (tensor([1., 1.], dtype=torch.float64), tensor([0.9000, 1.1000], dtype=torch.float64))
    """

    takes_losses = True

    has_memory = True

    def __init__(self, *, alpha: float = 1.5, lr: float = 0.025, layer: str | Sequence[str] | None = None) -> None:
        super().__init__()
        self.alpha = checks.non_negative("alpha", alpha)
        self._adam = Adam(lr=lr)
        self.layer = checks.names("layer", (layer,) if isinstance(layer, str) else layer)
        self.task_weights: Tensor | None = None
        self._initial: Tensor | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = Scale("1", lambda m: 1.0)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="weighted",
            laws=frozenset({"permutation", "homogeneous", "orthogonal", "equal_rows", "zero_rows"}),
            reference="Chen et al., ICML 2018",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]`` of this step; those of the next are learnt."""
        if losses is None:
            raise InvalidInputError(
                "`losses` must be given for GradNorm, got None. Call weights(gramian, losses=losses), or use "
                "mtl_core.step, which hands them on."
            )
        m = len(gramian)
        known = torch.from_numpy(losses.copy())
        present = torch.from_numpy(gramian.diagonal() > 0.0) & ~known.isnan()
        positive(losses, present, None, method="GradNorm")
        weights = torch.ones(m, dtype=torch.float64, device="cpu") if self.task_weights is None else self.task_weights
        first = (
            torch.full((m,), torch.nan, dtype=torch.float64, device="cpu") if self._initial is None else self._initial
        )
        same_tasks("GradNorm", len(weights), m)
        first = torch.where(present & first.isnan(), known, first)
        norms = torch.from_numpy(np.sqrt(gramian.diagonal()))
        self._initial = first
        self.task_weights = weights
        if bool(present.any()):
            self.task_weights = self._learn(weights, norms, known / first, present)
        return weights.numpy().copy()

    def _learn(self, weights: Tensor, norms: Tensor, ratios: Tensor, present: Tensor) -> Tensor:
        size = norms[present].mean()
        # In units of their mean, so that Adam's constant is small beside the slope whatever the gradients' size.
        norms = norms / size
        rates = ratios / ratios[present].mean()
        targets = (weights * norms)[present].mean() * rates.pow(self.alpha)
        gap = weights * norms - targets
        # A norm that meets its target has slope 0, a subgradient of |·| there. Adam's first step has full length
        # whatever the slope: the sign of a gap that is rounding alone would move the weights by the learning rate.
        slope = torch.where(gap.abs() <= _ROUNDING * targets, torch.zeros_like(gap), torch.sign(gap)) * norms
        trained = self._adam.step(weights.numpy(), slope.numpy(), present.numpy())
        moved = torch.from_numpy(trained).clamp(min=1e-6)
        # The floor first: restoring the sum cannot make a weight negative again.
        return moved * (len(moved) / moved.sum())

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step, which measures the gradients of one layer only.

        Raises:
            InvalidInputError: ``batch`` is in micro-batches.
            DetachedLossError: a task's loss does not depend on the layer.
            InvalidParameterError: no shared parameter has the name given as ``layer``.
        """
        options = StepOptions() if options is None else options
        if isinstance(batch, MicroBatches):
            raise InvalidInputError("GradNorm measures one graph per step, got MicroBatches. Give one batch.")
        with guarded(problem, optimizer, self, options):
            notes = begin(problem, optimizer, options)
            with together(ranks_of(problem, options)):
                measured = self._measured(problem)
                losses = problem.losses(batch)
            weights = self._measure(problem, batch, losses, measured, options)
            report = step_from_losses(problem, batch, optimizer, FixedWeights(weights), losses, options=options)
        return replace(report, events=(*notes, *report.events))

    def _measure(
        self, problem: Problem, batch: Any, losses: TaskLosses, measured: list[nn.Parameter], options: StepOptions
    ) -> Tensor:
        """The weights ``[m]`` of this step, from the gradients of one layer."""
        # One layer's gradients, as they are and each by itself; nothing is written that a scaler would have to see.
        alone = replace(options, scaler=None, keep="jacobian", chunk_size=None)
        try:
            gradients = collect_problem(problem, losses, options=alone, retain_graph=True, by=measured)
        except DetachedLossError as error:
            names = [name for name, p in problem.named_shared.items() if any(p is q for q in measured)]
            raise DetachedLossError(
                f"`layer` must be one that every task's loss depends on, got {', '.join(names)}. Name another, or mend "
                f"the loss: {error}",
                tasks=error.tasks,
            ) from error
        gramian = checked_gramian(problem, batch, gradients, options)
        known = gradients.losses.detach().to("cpu", torch.float64)
        with together(ranks_of(problem, options)):
            return self.weights(gramian, losses=known)

    def _measured(self, problem: Problem) -> list[nn.Parameter]:
        shared = problem.named_shared
        if self.layer is None:
            # Parameters come in the order in which the model registers them; the last one's module is taken for the
            # last layer.
            last = list(shared)[-1].rpartition(".")[0]
            return [p for name, p in shared.items() if name.rpartition(".")[0] == last]
        found = [
            p for name, p in shared.items() if any(name == want or name.startswith(f"{want}.") for want in self.layer)
        ]
        if not found:
            raise InvalidParameterError(
                f"`layer` must name shared parameters, got {self.layer}. Shared are: {', '.join(shared)}."
            )
        return found

    def reset(self) -> None:
        """Start again from equal weights."""
        self.task_weights = self._initial = None
        self._adam.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, initial losses and the moments of Adam."""
        return {"weights": self.task_weights, "initial": self._initial, "adam": self._adam.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        # Both are on the CPU, wherever a checkpoint was loaded to.
        weights, initial = (None if each is None else each.cpu() for each in (state["weights"], state["initial"]))
        self.task_weights, self._initial = weights, initial
        self._adam.load_state_dict(state["adam"])
