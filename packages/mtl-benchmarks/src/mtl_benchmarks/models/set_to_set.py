r"""Reading a set of nodes by a recurrent network that attends to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl_core.checks import positive_int

__all__ = ["SetToSet"]


class SetToSet(nn.Module):
    r"""Summarise a set of vectors, whatever their order.

    From :math:`q^*_0 = 0`, for a number of steps

    .. math::
        q_t = \mathrm{LSTM}(q^*_{t-1}), \quad \alpha_i = \mathrm{softmax}_i(x_i \cdot q_t), \quad
        q^*_t = [q_t, \textstyle\sum_i \alpha_i x_i].

    Parameters have the names and shapes of torch-geometric's ``Set2Set``.

    Args:
        width: numbers per vector; the summary has twice as many.
        steps: how often the set is read.

    References:
        Vinyals, Bengio, Kudlur, *Order Matters: Sequence to sequence for sets*, ICLR 2016, equations 3 to 7.

    Example:
        >>> reading = SetToSet(4, steps=3)
        >>> reading(torch.ones(2, 5, 4), torch.zeros(2, 5, 1, dtype=torch.bool)).shape
        torch.Size([2, 8])
    """

    def __init__(self, width: int, *, steps: int = 3) -> None:
        super().__init__()
        self.width, self.steps = positive_int("width", width), positive_int("steps", steps)
        self.lstm = nn.LSTM(2 * width, width)

    def forward(self, x: Tensor, absent: Tensor) -> Tensor:
        """Summaries ``[B, 2 · width]`` of sets ``x [B, n, width]``; ``absent [B, n, 1]``: which are none."""
        state = (x.new_zeros(1, len(x), self.width), x.new_zeros(1, len(x), self.width))
        read = x.new_zeros(len(x), 2 * self.width)
        for _ in range(self.steps):
            out, state = self.lstm(read.unsqueeze(0), state)
            query = out.squeeze(0)
            # The softmax gives exactly 0 there.
            scores = (x @ query.unsqueeze(2)).masked_fill(absent, -torch.inf)
            content = (scores.softmax(1) * x).sum(1)
            read = torch.cat([query, content], dim=1)
        return read
