"""What a method declares about itself; the conformance tests hold it to that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

__all__ = ["DeclaresFacts", "Facts", "Law", "Scale"]

Law = Literal[
    "non_conflicting",
    "permutation",
    "homogeneous",
    "orthogonal",
    "simplex",
    "equal_rows",
    "zero_when_stationary",
    "ball",
    "zero_rows",
]
"""A property of a method that tests can check: see ``mtl_aggregators.conformance``."""


@dataclass(frozen=True)
class Scale:
    """Length of the update against the plain sum of the gradients, where all ``m`` of them are one unit vector.

    Attributes:
        formula: as text, in ``m`` and the method's parameters.
        value: the number for ``m`` tasks.
    """

    formula: str
    value: Callable[[int], float]

    def __call__(self, n_tasks: int) -> float:
        """The factor for ``n_tasks`` tasks."""
        return self.value(n_tasks)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Declared properties of a configured method.

    Attributes:
        needs: what the weights are computed from.
        homogeneity: the degree ``k`` in ``A(sJ) = s^k A(J)`` for ``s > 0``; ``None`` if there is none.
        scale: the update's length against the plain sum, as configured.
        paper_scale: the same for the authors' released code.
        paper_heads: how the authors' released code trains the heads.
        laws: the laws that hold for every input.
        reference: the paper.
        min_tasks: the fewest tasks that the method takes.
    """

    needs: Literal["losses", "gramian", "jacobian", "batches"]
    homogeneity: float | None
    scale: Scale
    paper_scale: Scale
    paper_heads: Literal["unit", "weighted"]
    laws: frozenset[Law]
    reference: str
    min_tasks: int = 1


@runtime_checkable
class DeclaresFacts(Protocol):
    """A method that declares facts about itself; optional, as the protocols of ``mtl_core.extension`` are."""

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
