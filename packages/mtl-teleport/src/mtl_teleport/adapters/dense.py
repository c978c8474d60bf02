r"""The displacement itself as the adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_teleport.adapters.weight_space import Displacement, Targets, WeightSpaceAdapter, zeros

__all__ = ["Dense"]


class _Free:
    def __init__(self, weight: Tensor) -> None:
        self._delta = zeros(weight.shape, like=weight)
        self.tensors: tuple[Tensor, ...] = (self._delta,)

    def __call__(self, weight: Tensor) -> Tensor:
        # Adding zero makes a new tensor, so that a displacement handed out never changes with later training.
        return self._delta + 0.0


class Dense(WeightSpaceAdapter):
    r"""Free displacement :math:`\Delta\theta \in \mathbb{R}^d` of any shared parameter, of any number of dimensions.

    For toy problems, and the upper bound of what any other adapter can reach. It costs as much memory as the
    parameters.

    Args:
        targets: name patterns of parameters or layers; ``None`` adapts every shared parameter.

    Example:
        >>> import torch
        >>> from mtl_core import Problem
        >>> model = torch.nn.Linear(2, 2)
        >>> problem = Problem(model, lambda m, x: m(x).square().mean(0), shared=model, tasks=("a", "b"))
        >>> sorted(Dense(targets="bias").attach(problem).delta())
        ['bias']
    """

    def __init__(self, *, targets: Targets = None) -> None:
        super().__init__(targets=targets)

    def __repr__(self) -> str:
        return f"Dense(targets={self.targets})"

    @property
    def requirement(self) -> str:
        """What a parameter must be to be adapted."""
        return "of a floating dtype"

    def supports(self, parameter: Tensor) -> bool:
        """Whether the parameter is floating."""
        return parameter.is_floating_point() and parameter.numel() > 0

    def displacement(self, parameter: Tensor, generator: torch.Generator | None) -> Displacement:
        """A fresh displacement of zeros."""
        return _Free(parameter)
