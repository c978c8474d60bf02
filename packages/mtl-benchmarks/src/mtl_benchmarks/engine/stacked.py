"""Small tensors of many steps, kept as few."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["STEPS", "Stacked"]

STEPS = 256
"""How many small tensors wait before they become one."""


class Stacked:
    """Tensors of one shape, one for each step, in their order.

    What lives until the next evaluation lies in memory between what a step needs and frees again. Thousands of tensors
    of a few numbers each make holes there that the large ones of later steps do not fit into: a process grew by 1 GiB
    over the 7,000 steps of an interval, for 8 MiB of numbers. So every few hundred become one, on their device, which
    nothing waits for.

    Example:
        >>> kept = Stacked()
        >>> for k in range(600):
        ...     kept.append(torch.tensor([k, 2 * k]))
        >>> len(kept), kept.n_tensors, kept.last
        (600, 90, tensor([ 599, 1198]))
        >>> kept.whole().shape
        torch.Size([600, 2])
    """

    def __init__(self) -> None:
        self._stacks: list[Tensor] = []
        self._singles: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(stack) for stack in self._stacks) + len(self._singles)

    @property
    def n_tensors(self) -> int:
        """How many tensors they are kept in."""
        return len(self._stacks) + len(self._singles)

    @property
    def last(self) -> Tensor | None:
        """The latest; None where there is none."""
        if self._singles:
            return self._singles[-1]
        return self._stacks[-1][-1] if self._stacks else None

    def append(self, one: Tensor) -> None:
        """Keep the next one."""
        self._singles.append(one)
        if len(self._singles) >= STEPS:
            self._stacks.append(torch.stack(self._singles))
            self._singles = []

    def whole(self) -> Tensor | None:
        """All of them, ``[n, …]``, on the device of the latest; None where there is none."""
        parts = [*self._stacks, *([torch.stack(self._singles)] if self._singles else [])]
        if not parts:
            return None
        device = parts[-1].device  # those from before a restart come from the CPU
        return torch.cat([part.to(device) for part in parts])

    def load(self, whole: Tensor | None) -> None:
        """Go on from what :meth:`whole` gave."""
        self._stacks = [] if whole is None else [whole]
        self._singles = []

    def clear(self) -> None:
        """Forget all of them."""
        self.load(None)
