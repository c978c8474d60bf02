r"""LoRA on the weights themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_core import checks
from mtl_teleport.adapters.weight_space import Displacement, MatrixAdapter, Targets, uniform, zeros

__all__ = ["LoRA"]


class _LowRank:
    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        rank = min(rank, rows, columns)
        self._a = uniform((rank, columns), columns**-0.5, like=weight, generator=generator)
        self._b = zeros((rows, rank), like=weight)
        self._scale = alpha / rank
        self.tensors: tuple[Tensor, ...] = (self._a, self._b)

    def __call__(self, weight: Tensor) -> Tensor:
        # The factor [n, r] is scaled, not the product [n, k].
        return ((self._scale * self._b) @ self._a).view(weight.shape)


class LoRA(MatrixAdapter):
    r"""Low-rank displacement of every weight with two or more dimensions.

    A weight of shape ``[n, ...]`` is read as a matrix ``[n, k]`` with the trailing dimensions flattened, and

    .. math:: \Delta W = \tfrac{\alpha}{r} B A, \qquad B \in \mathbb{R}^{n \times r},\; A \in \mathbb{R}^{r \times k}.

    B starts at zero, so the adapted model equals the model exactly; A is uniform on :math:`\pm 1/\sqrt{k}`.

    Args:
        rank: rank ``r >= 1``; capped by the smaller side of each weight.
        alpha: scale ``> 0``.
        targets: name patterns of parameters or layers; ``None`` adapts every shared weight with two or more
            dimensions.

    Raises:
        InvalidParameterError: ``rank`` or ``alpha`` is not positive.

    Note:
        The paper and its released code wrap layers with the PEFT library, which reaches linear and plain
        convolutional layers only (``PeftLoRA``). Here the weights are displaced functionally, so grouped, dilated
        and transposed convolutions, embeddings, attention and recurrent cells can be teleported as well.

    References:
        Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, section 4.1.

    Example:
        >>> import torch
        >>> from mtl_core import Problem
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> problem = Problem(model, lambda m, x: m(x).square().mean(0), shared=model[0], tasks=("a", "b"))
        >>> session = LoRA(rank=2).attach(problem, generator=torch.Generator().manual_seed(0))
        >>> [tuple(t.shape) for t in session.trainable]
        [(2, 3), (4, 2)]
        >>> x = torch.ones(5, 3)
        >>> torch.equal(session.evaluate(x).values, problem.losses(x).values)
        True
    """

    def __init__(self, rank: int = 5, alpha: float = 8.0, *, targets: Targets = None) -> None:
        super().__init__(targets=targets)
        self.rank = checks.positive_int("rank", rank)
        self.alpha = checks.positive("alpha", alpha)

    def __repr__(self) -> str:
        return f"LoRA(rank={self.rank}, alpha={self.alpha:g}, targets={self.targets})"

    def displacement(self, parameter: Tensor, generator: torch.Generator | None) -> Displacement:
        """A fresh pair of factors with ``B = 0``."""
        return _LowRank(parameter, self.rank, self.alpha, generator)
