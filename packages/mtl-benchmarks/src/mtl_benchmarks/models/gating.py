r"""How a task chooses among experts: a weight for each, from the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_core.checks import positive_int

__all__ = ["SoftmaxGate", "mixed", "pooled"]


def pooled(x: Tensor) -> Tensor:
    """A vector per example ``[b, c]``: a vector itself, an image's mean per channel."""
    return x if x.ndim == 2 else x.flatten(2).mean(2)


def mixed(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The experts' outputs, each ``[b, ...]``, in one weighted sum, with ``weights [b, n]``.

    Example:
        >>> mixed(torch.tensor([[0.25, 0.75]]), [torch.zeros(1, 2), torch.ones(1, 2)])
        tensor([[0.7500, 0.7500]])
    """
    return torch.einsum("bn,nb...->b...", weights, torch.stack(list(outputs)))


class SoftmaxGate(nn.Module):
    r"""Weights :math:`\mathrm{softmax}(W x + b)`, positive and with sum 1.

    Args:
        inputs: channels of the input; of an image the mean of each channel is read.
        n_experts: how many experts there are to choose from.

    Example:
        >>> SoftmaxGate(3, 4)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(self, inputs: int, n_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(positive_int("inputs", inputs), positive_int("n_experts", n_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``[b, n_experts]``."""
        logits: Tensor = self.linear(pooled(x))
        return logits.softmax(1)
