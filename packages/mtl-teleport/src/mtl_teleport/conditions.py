"""Under which conditions a search evaluates and differentiates the task losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch.distributed as dist

__all__ = ["Conditions"]


@dataclass(frozen=True)
class Conditions:
    """What holds for every evaluation and differentiation of one search.

    Attributes:
        around: what each runs in: training flags, buffers and random state, and the choice of kernels. A backward pass
            runs in it too, since a model that recomputes activations there must do so as it did in the forward pass.
        group: a process group over which losses and gradients are means.
        loss_scale: factor on a loss while it is differentiated, divided out of its gradients, as for a gradient scaler.
        holds_all_gradients: whether there is room for the gradients of all tasks at once.
    """

    around: Callable[[], AbstractContextManager[None]] = nullcontext
    group: dist.ProcessGroup | None = None
    loss_scale: float = 1.0
    holds_all_gradients: bool = True
