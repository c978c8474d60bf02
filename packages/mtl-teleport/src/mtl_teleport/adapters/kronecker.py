r"""LoKr on the weights themselves: the Kronecker product of a small matrix and a low-rank one."""

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

__all__ = ["LoKr", "balanced_factors"]


def balanced_factors(n: int) -> tuple[int, int]:
    r"""The divisors :math:`p \le q`, :math:`p q = n`, that are closest to each other.

    Example:
        >>> balanced_factors(36), balanced_factors(12), balanced_factors(7)
        ((6, 6), (3, 4), (1, 7))
    """
    first = next(p for p in range(math.isqrt(n), 0, -1) if n % p == 0)
    return first, n // first


class _Kronecker:
    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        (n1, n2), (k1, k2) = balanced_factors(weight.shape[0]), balanced_factors(math.prod(weight.shape[1:]))
        rank = min(rank, n2, k2)
        self._c = uniform((n1, k1), 1.0, like=weight, generator=generator)
        # By the whole row's length k = k1 k2, as LoRA's A: for the same B the displacement's entries are of the size
        # of LoRA's.
        self._a = uniform((rank, k2), (k1 * k2) ** -0.5, like=weight, generator=generator)
        self._b = zeros((n2, rank), like=weight)
        self._scale = alpha / rank
        self.tensors: tuple[Tensor, ...] = (self._c, self._a, self._b)

    def __call__(self, weight: Tensor) -> Tensor:
        return (self._scale * torch.kron(self._c, self._b @ self._a)).view(weight.shape)


class LoKr(MatrixAdapter):
    r"""Displacement of every weight by a Kronecker product.

    A weight of shape ``[n, ...]`` is read as a matrix ``[n, k]`` with the trailing dimensions flattened, both sides
    are split into their two most balanced divisors, :math:`n = n_1 n_2` and :math:`k = k_1 k_2`, and

    .. math:: \Delta W = \tfrac{\alpha}{r}\, C \otimes (B A), \qquad C \in \mathbb{R}^{n_1 \times k_1},\;
        B \in \mathbb{R}^{n_2 \times r},\; A \in \mathbb{R}^{r \times k_2}.

    B starts at zero, so the adapted model equals the model exactly. The fewest numbers of all adapters here: about
    :math:`\sqrt{nk}`. A side of prime length is not split.

    Args:
        rank: rank ``r >= 1`` of the second factor; capped by its smaller side.
        alpha: scale ``> 0``.
        targets: name patterns of parameters or layers; ``None`` adapts every shared weight with two or more
            dimensions.

    Raises:
        InvalidParameterError: ``rank`` or ``alpha`` is not positive.

    References:
        Yeh et al., *Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation*, ICLR 2024,
        section 3.

    Example:
        >>> import torch
        >>> from mtl_core import Problem
        >>> model = torch.nn.Linear(12, 6)
        >>> problem = Problem(model, lambda m, x: m(x).square().mean(0)[:2], shared=model, tasks=("a", "b"))
        >>> [tuple(t.shape) for t in LoKr(rank=2).attach(problem).trainable]
        [(2, 3), (2, 4), (3, 2)]
    """

    def __init__(self, rank: int = 5, alpha: float = 8.0, *, targets: Targets = None) -> None:
        super().__init__(targets=targets)
        self.rank = checks.positive_int("rank", rank)
        self.alpha = checks.positive("alpha", alpha)

    def __repr__(self) -> str:
        return f"LoKr(rank={self.rank}, alpha={self.alpha:g}, targets={self.targets})"

    def displacement(self, parameter: Tensor, generator: torch.Generator | None) -> Displacement:
        """Fresh factors with ``B = 0``."""
        return _Kronecker(parameter, self.rank, self.alpha, generator)
