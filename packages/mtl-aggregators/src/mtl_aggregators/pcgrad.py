"""PCGrad: gradient surgery."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.solvers.solution import Vector
from mtl_core import checks

__all__ = ["PCGrad"]


class PCGrad(GramianMethod):
    r"""Projecting conflicting gradients: each loses its components against the others, in random order.

    .. math:: p_i \leftarrow p_i - \frac{\min(0, \langle p_i, g_j\rangle)}{\|g_j\|^2}\, g_j, \qquad d = \sum_i p_i

    Every :math:`p_i` is a combination of the gradients, so its coefficients are tracked on the Gramian, for all tasks
    at once. With two tasks the result does not depend on the order and does not conflict; with more it may.

    Args:
        reduction: ``"sum"`` as in the paper, or ``"mean"``.
        generator: source of the random orders, on the CPU; ``None`` makes one with torch's default seed. Its state is
            part of ``state_dict()``.

    Raises:
        InvalidParameterError: ``reduction`` is neither.

    Note:
        A zero gradient neither projects nor is projected.

    References:
        Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, algorithm 1.

    Example:
        >>> PCGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
    """

    def __init__(self, *, reduction: Literal["sum", "mean"] = "sum", generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.reduction = checks.one_of("reduction", reduction, ("sum", "mean"))
        self.generator = checks.generator("generator", generator)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        released = Scale("1", lambda m: 1.0)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=released if self.reduction == "sum" else Scale("1/m", lambda m: 1.0 / m),
            paper_scale=released,
            paper_heads="unit",
            laws=frozenset({"homogeneous", "orthogonal", "equal_rows"}),
            reference="Yu et al., NeurIPS 2020",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        m = len(gramian)
        if m == 1:
            return np.ones(1)
        diagonal = gramian.diagonal()
        # The inverse of the smallest numbers of all would be infinite; such a gradient is zero beside any other.
        inverse = np.divide(1.0, diagonal, out=np.zeros(m), where=diagonal > 1.0 / np.finfo(np.float64).max)
        tasks = np.arange(m)
        # Row i: the other tasks, in random order.
        keys = torch.rand(m, m - 1, generator=self.generator, dtype=torch.float64, device="cpu").numpy()
        others = keys.argsort(axis=1)
        # Numbers 0 to m − 2 become all but the row's own.
        others += others >= tasks[:, None]
        coefficients = np.eye(m)
        inner = gramian.copy()
        # All tasks at once, each with another partner: m − 1 rounds instead of m (m − 1) projections.
        for j in others.T:
            excess = np.minimum(inner[tasks, j], 0.0)
            excess *= inverse[j]
            coefficients[tasks, j] -= excess
            # ⟨p_i, g_k⟩ for all k, carried along, so that no vector of the parameters' size is touched.
            inner -= excess[:, None] * gramian[j]
        weights: Vector = coefficients.sum(axis=0)
        return weights / m if self.reduction == "mean" else weights

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue the random orders where the saved method stood."""
        self.generator.set_state(state["generator"].cpu())
