"""The base of the methods that project onto the cone of directions to which no task objects."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.parameters import weight_vector
from mtl_aggregators.solvers.device.rows import Backend
from mtl_core import checks

__all__ = ["ConeMethod"]


class ConeMethod(GramianMethod):
    r"""A method made of projections onto :math:`\{x : J x \ge 0\}`; a subclass implements ``solve`` and ``facts``.

    Args:
        preference: weights of the gradients before or after they are projected, ``[m]``, non-negative and not all
            zero; ``None`` for :math:`1/m` each.
        ridge: added to the diagonal of the cosine matrix.
        backend: where the weights are computed.

    Raises:
        InvalidParameterError: ``preference`` has a negative entry or is all zero, or ``ridge`` is negative.
    """

    def __init__(
        self, *, preference: Sequence[float] | Tensor | None = None, ridge: float = 0.0, backend: Backend = "auto"
    ) -> None:
        super().__init__(backend=backend)
        self.preference = None if preference is None else weight_vector("preference", preference)
        self.ridge = checks.non_negative("ridge", ridge)

    def declare(self, laws: set[Law], reference: str) -> Facts:
        """The facts of a projection, given the laws that hold whatever the settings."""
        scale = Scale("1/m", lambda m: 1.0 / m)
        laws = laws | {"homogeneous", "orthogonal", "equal_rows"}
        # A ridge makes the projections land a little outside of the cone.
        if self.ridge == 0.0:
            laws |= {"non_conflicting", "zero_when_stationary"}
        if self.preference is None:
            laws |= {"permutation", "zero_rows"}
        else:
            total = float(self.preference.sum())
            scale = Scale("Σλ/m", lambda m: total / m)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset(laws),
            reference=reference,
        )
