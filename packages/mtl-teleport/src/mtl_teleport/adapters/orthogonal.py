r"""OFT on the weights themselves: a rotation of every neuron's weight vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_core import InvalidParameterError, checks
from mtl_teleport.adapters.weight_space import Displacement, MatrixAdapter, Targets, zeros

__all__ = ["OFT"]


class _Rotation:
    def __init__(self, weight: Tensor, block_size: int) -> None:
        columns = math.prod(weight.shape[1:])
        size = min(block_size, columns)
        full, rest = divmod(columns, size)
        # (first column, number of blocks, their size); a last, smaller block takes the columns that are left over.
        self._parts = [(0, full, size)] + ([(full * size, 1, rest)] if rest > 1 else [])
        self._used = sum(blocks * size for _, blocks, size in self._parts)
        self.tensors: tuple[Tensor, ...] = tuple(
            # The entries above the diagonal of a skew-symmetric matrix: no other matrix can be reached.
            zeros((blocks, size * (size - 1) // 2), like=weight)
            for _, blocks, size in self._parts
        )

    def __call__(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1).to(self.tensors[0].dtype)
        pieces = []
        for entries, (start, blocks, size) in zip(self.tensors, self._parts, strict=True):
            # [blocks, n, size], so that each block meets its own rotation in one batched product.
            part = matrix[:, start : start + blocks * size].unflatten(1, (blocks, size)).transpose(0, 1)
            pieces.append((part @ _cayley_minus_one(entries, size)).transpose(0, 1).flatten(1))
        if self._used < matrix.shape[1]:
            pieces.append(torch.zeros_like(matrix[:, self._used :]))
        return torch.cat(pieces, dim=1).view(weight.shape)


def _cayley_minus_one(entries: Tensor, size: int) -> Tensor:
    r"""The matrices :math:`R - I = 2Q (I - Q)^{-1}`, ``[blocks, size, size]``: exactly 0 for Q = 0."""
    rows, columns = torch.triu_indices(size, size, offset=1, device=entries.device)
    upper = entries.new_zeros(len(entries), size, size).index_put(
        (torch.arange(len(entries), device=entries.device)[:, None], rows, columns), entries
    )
    skew = upper - upper.mT
    identity = torch.eye(size, dtype=entries.dtype, device=entries.device)
    # I - Q is never singular, since the eigenvalues of a skew-symmetric Q are imaginary.
    found: Tensor = torch.linalg.solve(identity - skew, 2.0 * skew, left=False)
    return found


class OFT(MatrixAdapter):
    r"""Rotation of every neuron's weights: the angles between neurons, and their lengths, stay what they are.

    A weight of shape ``[n, ...]`` is read as a matrix W of n rows and k columns, the trailing dimensions flattened:

    .. math:: W + \Delta W = W R, \qquad R = \mathrm{diag}(R_1, \dots, R_p), \qquad
        R_i = (I + Q_i)(I - Q_i)^{-1}, \quad Q_i^\top = -Q_i.

    The Cayley transform makes each :math:`R_i` exactly orthogonal, so :math:`(WR)(WR)^\top = W W^\top`. All
    :math:`Q_i` start at zero, where :math:`\Delta W` is exactly zero.

    Args:
        block_size: size ``>= 2`` of a block; capped by k. Where it does not divide k, a last, smaller block takes the
            rest (a single column that is left over is not rotated).
        targets: name patterns of parameters or layers; ``None`` adapts every shared weight that has two or more
            dimensions and at least two columns.

    Raises:
        InvalidParameterError: ``block_size`` is no whole number of at least 2.

    Note:
        The rotation acts on the flattened receptive field of a convolution. The PEFT library's version (0.21) changes
        the output of every convolution with a kernel larger than one before it is trained; this one starts as an
        exact no-op on every layer.

    References:
        Qiu et al., *Controlling Text-to-Image Diffusion by Orthogonal Finetuning*, NeurIPS 2023, section 3.

    Example:
        >>> import torch
        >>> from mtl_core import Problem
        >>> model = torch.nn.Linear(5, 3)
        >>> problem = Problem(model, lambda m, x: m(x).square().mean(0)[:2], shared=model, tasks=("a", "b"))
        >>> [tuple(t.shape) for t in OFT(block_size=3).attach(problem).trainable]  # 3 angles, and 1 of the rest
        [(1, 3), (1, 1)]
    """

    def __init__(self, block_size: int = 8, *, targets: Targets = None) -> None:
        super().__init__(targets=targets)
        self.block_size = checks.positive_int("block_size", block_size)
        if block_size < 2:
            raise InvalidParameterError(
                f"`block_size` must be at least 2, got {block_size}: one dimension has no rotation."
            )

    def __repr__(self) -> str:
        return f"OFT(block_size={self.block_size}, targets={self.targets})"

    @property
    def requirement(self) -> str:
        """What a parameter must be to be adapted."""
        return "with at least two dimensions and two columns"

    def supports(self, parameter: Tensor) -> bool:
        """Whether the parameter is a real matrix with at least two columns."""
        return super().supports(parameter) and math.prod(parameter.shape[1:]) >= 2

    def displacement(self, parameter: Tensor, generator: torch.Generator | None) -> Displacement:
        """A fresh rotation by nothing."""
        return _Rotation(parameter, self.block_size)
