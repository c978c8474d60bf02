"""GradVac: gradient surgery towards the similarities seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.jacobian_method import JacobianMethod
from mtl_aggregators.bases.parameters import same_tasks
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, InvalidParameterError, Problem, checks
from mtl_core.extension import flat_size, gramian_of, weighted_sum

__all__ = ["GradVac", "GroupedGradVac"]

HIGHEST = 1.0 - 1e-9
"""Largest target: turning a gradient wholly into another's direction would take an infinite multiple of that."""
GONE = 1e-7
"""Length relative to its gradient below which a changed gradient is what rounding left of it, without a direction."""


def _vaccinate(gramian: Vector, targets: Vector, beta: float, generator: torch.Generator) -> Vector:
    """Weights ``[m]`` of the sum of the changed gradients; ``targets`` ``[m, m]`` are updated in place."""
    m = len(gramian)
    if m == 1:
        return np.ones(1)
    norms = np.sqrt(gramian.diagonal())
    live = norms > 0.0
    lengths = np.where(live, norms, 1.0)
    cosines = gramian / lengths / lengths[:, None]
    # Row i: the other tasks, in random order.
    others = torch.rand(m, m - 1, generator=generator, dtype=torch.float64, device="cpu").numpy().argsort(axis=1)
    tasks = np.arange(m)[:, None]
    others += others >= tasks
    # Each pair is met once, so that the targets are those of before throughout; as tangents, for unit gradients:
    # p_i turns by ‖p_i‖ (√(1 − c²) ρ/√(1 − ρ²) − c) u_j, which is positive exactly where c < ρ.
    known = np.minimum(targets, HIGHEST)
    slopes = known / np.sqrt(1.0 - known * known)
    slopes[:, ~live] = 0.0
    slopes = slopes[tasks, others].T
    places = (tasks * m + others).T
    amounts, along, squared = np.empty((3, m - 1, m))
    inner = cosines.copy()
    squares = np.where(live, 1.0, 0.0)
    for turn, j in enumerate(others.T):
        x = inner.take(places[turn])
        amount = squares - x * x
        np.maximum(amount, 0.0, out=amount)
        np.sqrt(amount, out=amount)
        amount *= slopes[turn]
        amount -= x
        np.maximum(amount, 0.0, out=amount)
        along[turn], squared[turn], amounts[turn] = x, squares, amount
        squares = squares + amount * (2.0 * x + amount)
        inner += amount[:, None] * cosines.take(j, axis=0)
    size = np.sqrt(np.maximum(squared, 0.0))
    seen = (size > GONE) & live[others.T]
    cosine = np.divide(along, size, out=np.zeros_like(along), where=seen).clip(-1.0, 1.0)
    old = targets.take(places)
    targets.ravel()[places] = np.where(seen, old + beta * (cosine - old), old)
    coefficients = np.zeros((m, m))
    coefficients.ravel()[places] = amounts
    weights: Vector = 1.0 + norms @ coefficients / lengths
    return weights


def _facts(laws: set[Law], needs: Literal["gramian", "jacobian"]) -> Facts:
    scale = Scale("1", lambda m: 1.0)
    return Facts(
        needs=needs,
        homogeneity=1.0,
        scale=scale,
        paper_scale=scale,
        paper_heads="unit",
        laws=frozenset(laws),
        reference="Wang et al., ICLR 2021",
    )


class GradVac(GramianMethod):
    r"""Gradient vaccine: each gradient is turned until its cosine with the others is what it has been on average.

    For every task :math:`i`, visiting the others in random order, where :math:`c = \cos(p_i, g_j) < \hat\rho_{ij}`,

    .. math::
        p_i \leftarrow p_i + \frac{\|p_i\| \bigl(\hat\rho_{ij}\sqrt{1-c^2} - c\sqrt{1-\hat\rho_{ij}^2}\bigr)}
        {\|g_j\|\sqrt{1-\hat\rho_{ij}^2}}\, g_j, \qquad
        \hat\rho_{ij} \leftarrow (1-\beta)\hat\rho_{ij} + \beta c

    and the update is :math:`\sum_i p_i`. Targets start at 0, where this is PCGrad.

    Args:
        beta: decay of the moving average; 0.01 in the paper, 0.5 in LibMTL.
        generator: source of the random orders, on the CPU; ``None`` makes one with torch's default seed. Its state is
            part of ``state_dict()``, as are the targets.

    Raises:
        InvalidParameterError: ``beta`` is not in [0, 1].

    Note:
        One target per pair of tasks, for the gradient of the whole model. ``GroupedGradVac`` keeps one per layer or per
        parameter. Targets are held below 1 by 1e-9, where the formula divides by zero.

    References:
        Wang et al., *Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
        Models*, ICLR 2021, algorithm 1 and equation 3.

    Example:
        >>> GradVac()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
    """

    has_memory = True

    def __init__(self, *, beta: float = 0.01, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.beta = checks.in_interval("beta", beta, 0.0, 1.0)
        self.generator = checks.generator("generator", generator)
        self._targets: Vector | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return _facts({"homogeneous", "orthogonal", "equal_rows"}, "gramian")

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        m = len(gramian)
        if self._targets is None:
            self._targets = np.zeros((m, m))
        same_tasks("GradVac", len(self._targets), m)
        return _vaccinate(gramian, self._targets, self.beta, self.generator)

    def reset(self) -> None:
        """Forget the similarities seen so far."""
        self._targets = None

    def get_extra_state(self) -> dict[str, Any]:
        """The targets and the generator's state."""
        targets = None if self._targets is None else torch.from_numpy(self._targets.copy())
        return {"targets": targets, "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        targets = state["targets"]
        self._targets = None if targets is None else targets.cpu().numpy().copy()
        self.generator.set_state(state["generator"].cpu())


class GroupedGradVac(JacobianMethod):
    """``GradVac`` with targets of its own for each layer or parameter.

    Args:
        sizes: how many consecutive columns of the Jacobian belong to each group; ``GroupedGradVac.of`` reads them off a
            problem. One size, the number of all columns, is ``GradVac``.
        beta: as for ``GradVac``.
        generator: as for ``GradVac``.

    Raises:
        InvalidParameterError: ``sizes`` is empty or has an entry that is not a whole number of at least 1, or ``beta``
            is not in [0, 1].
        InvalidInputError: when called on a Jacobian with another number of columns than ``sizes`` add up to.

    References:
        Wang et al., ICLR 2021, section 4 (whole model, layers, matrices).

    Example:
        >>> jacobian = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 1.0, 1.0]])
        >>> GroupedGradVac(sizes=[2, 1])(jacobian)
        tensor([0.5000, 1.5000, 3.0000])
    """

    has_memory = True

    def __init__(self, *, sizes: Sequence[int], beta: float = 0.01, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not len(sizes):
            raise InvalidParameterError("`sizes` must hold at least one group's number of columns, got none.")
        self.sizes = tuple(checks.positive_int("sizes", size) for size in sizes)
        self.beta = checks.in_interval("beta", beta, 0.0, 1.0)
        self.generator = checks.generator("generator", generator)
        self._targets: Vector | None = None

    @classmethod
    def of(
        cls,
        problem: Problem,
        *,
        per: Literal["layer", "parameter"] = "layer",
        beta: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> GroupedGradVac:
        """The method for a problem's shared parameters.

        Args:
            problem: the problem.
            per: one group per module that owns parameters, or per parameter (the paper's ``all_layer`` and
                ``all_matrix``).
            beta: as for ``GradVac``.
            generator: as for ``GradVac``.
        """
        checks.one_of("per", per, ("layer", "parameter"))
        sizes: list[int] = []
        last: str | None = None
        for name, parameter in problem.named_shared.items():
            owner = name.rpartition(".")[0] if per == "layer" else name
            # A group is a stretch of columns: a module whose parameters lie apart in the model's order makes several.
            if owner == last:
                sizes[-1] += flat_size(parameter)
            else:
                sizes.append(flat_size(parameter))
            last = owner
        return cls(sizes=sizes, beta=beta, generator=generator)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return _facts({"homogeneous", "equal_rows"}, "jacobian")

    def combine(self, jacobian: Tensor) -> Tensor:
        """The update ``[d]``."""
        m, total = len(jacobian), sum(self.sizes)
        if jacobian.shape[1] != total:
            raise InvalidInputError(
                f"`jacobian` must have {total} columns, the sum of the groups' sizes, got {jacobian.shape[1]}. "
                "Make the method by GroupedGradVac.of(problem) after freezing parameters."
            )
        if self._targets is None:
            self._targets = np.zeros((len(self.sizes), m, m))
        same_tasks("GroupedGradVac", self._targets.shape[1], m)
        parts = torch.split(jacobian, list(self.sizes), dim=1)
        # All groups' Gramians in one copy from the device.
        gramians = torch.stack([gramian_of(part) for part in parts]).cpu()
        if jacobian.dtype is torch.float64 and not all(checks.in_range(gramian) for gramian in gramians):
            scaled, exponent = checks.into_range(jacobian)
            if exponent:
                return checks.times_power(self.combine(scaled), exponent)
        for part, gramian in zip(parts, gramians, strict=True):
            checks.refuse_lost(part, gramian)
        updates = []
        for part, gramian, targets in zip(parts, gramians, self._targets, strict=True):
            weights = torch.from_numpy(_vaccinate(gramian.numpy(), targets, self.beta, self.generator))
            updates.append(weighted_sum(part, weights, gramian))
        return torch.cat(updates)

    def reset(self) -> None:
        """Forget the similarities seen so far."""
        self._targets = None

    def get_extra_state(self) -> dict[str, Any]:
        """The targets and the generator's state."""
        targets = None if self._targets is None else torch.from_numpy(self._targets.copy())
        return {"targets": targets, "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        targets = state["targets"]
        self._targets = None if targets is None else targets.cpu().numpy().copy()
        self.generator.set_state(state["generator"].cpu())
