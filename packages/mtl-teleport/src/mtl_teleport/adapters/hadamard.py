r"""LoHa on the weights themselves: the elementwise product of two low-rank matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_core import checks
from mtl_teleport.adapters.weight_space import (
    Displacement,
    MatrixAdapter,
    Targets,
    uniform,
    zeros,
)

__all__ = ["LoHa"]


class _Product:
    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        rank = min(rank, rows, columns)
        self._a1 = uniform((rank, columns), columns**-0.5, like=weight, generator=generator)
        # Entries of B1 A1 then vary by 1/sqrt(3 columns), as the entries of a linear layer do at its start.
        self._b1 = uniform((rows, rank), (3.0 / rank) ** 0.5, like=weight, generator=generator)
        self._a2 = uniform((rank, columns), 1.0, like=weight, generator=generator)
        self._b2 = zeros((rows, rank), like=weight)
        self._scale = alpha / rank
        self.tensors: tuple[Tensor, ...] = (self._a1, self._b1, self._a2, self._b2)

    def __call__(self, weight: Tensor) -> Tensor:
        return (self._scale * (self._b1 @ self._a1) * (self._b2 @ self._a2)).view(weight.shape)


class LoHa(MatrixAdapter):
    r"""Displacement of every weight by the elementwise product of two low-rank matrices.

    A weight of shape ``[n, ...]`` is read as a matrix ``[n, k]`` with the trailing dimensions flattened, and

    .. math:: \Delta W = \tfrac{\alpha}{r} (B_1 A_1) \odot (B_2 A_2), \qquad B_i \in \mathbb{R}^{n \times r},\;
        A_i \in \mathbb{R}^{r \times k},

    whose rank may be as large as :math:`r^2`. :math:`B_2` starts at zero, so the adapted model equals the model
    exactly.

    Args:
        rank: rank ``r >= 1`` of each factor; capped by the smaller side of each weight.
        alpha: scale ``> 0``.
        targets: name patterns of parameters or layers; ``None`` adapts every shared weight with two or more
            dimensions.

    Raises:
        InvalidParameterError: ``rank`` or ``alpha`` is not positive.

    References:
        Hyeon-Woo et al., *FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning*, ICLR
        2022, section 2.2.

    Example:
        >>> import torch
        >>> from mtl_core import Problem
        >>> model = torch.nn.Conv2d(2, 4, 3)
        >>> problem = Problem(model, lambda m, x: m(x).mean((0, 2, 3))[:2], shared=model, tasks=("a", "b"))
        >>> [tuple(t.shape) for t in LoHa(rank=2).attach(problem).trainable]
        [(2, 18), (4, 2), (2, 18), (4, 2)]
    """

    def __init__(self, rank: int = 5, alpha: float = 8.0, *, targets: Targets = None) -> None:
        super().__init__(targets=targets)
        self.rank = checks.positive_int("rank", rank)
        self.alpha = checks.positive("alpha", alpha)

    def __repr__(self) -> str:
        return f"LoHa(rank={self.rank}, alpha={self.alpha:g}, targets={self.targets})"

    def displacement(self, parameter: Tensor, generator: torch.Generator | None) -> Displacement:
        """Fresh factors with ``B_2 = 0``."""
        return _Product(parameter, self.rank, self.alpha, generator)
