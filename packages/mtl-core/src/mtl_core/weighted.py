"""Weights that are given, not computed."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

__all__ = ["FixedWeights"]


class FixedWeights:
    """A loss weighting with constant weights: what methods that know their weights already hand to a step.

    Args:
        weights: ``[m]``; ``None`` for one each.
    """

    needs: Literal["losses"] = "losses"
    takes_present = True

    def __init__(self, weights: Tensor | None = None) -> None:
        self.values = weights

    @property
    def has_unit_weights(self) -> bool:
        """Whether they are one each."""
        return self.values is None

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        """The weighted sum of the losses ``[m]``; absent ones are 0."""
        return losses.sum() if self.values is None else (losses * self.values.to(losses)).sum()
