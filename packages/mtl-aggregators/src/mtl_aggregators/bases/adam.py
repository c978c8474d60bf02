"""Adam on one vector: how methods train weights of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl_aggregators.solvers.solution import Vector
from mtl_core import checks

__all__ = ["Adam", "Mask", "on_host"]

Mask = npt.NDArray[np.bool_]


def on_host(tensor: Tensor) -> Vector:
    """A small tensor as a float64 array."""
    # NumPy has no negation that is put off, as that of the imaginary part of a conjugate is.
    array: Vector = tensor.detach().to("cpu", torch.float64).resolve_neg().numpy()
    return array


class Adam:
    r"""Adam with the usual constants for a float64 vector ``[m]`` whose entries may sit out a step.

    .. math:: x \leftarrow x - \eta\, \frac{\hat\mu}{\sqrt{\hat\nu} + 10^{-8}}, \qquad
        \mu \leftarrow 0.9 \mu + 0.1 (g + \gamma x), \quad \nu \leftarrow 0.999 \nu + 0.001 (g + \gamma x)^2

    It works on the host: a vector this short is not worth an accelerator's launches.

    Args:
        lr: step length :math:`\eta > 0`.
        decay: :math:`\gamma \ge 0`, added to the gradient as ``torch.optim.Adam`` does.

    References:
        Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, algorithm 1.
    """

    def __init__(self, *, lr: float, decay: float = 0.0) -> None:
        self.lr = checks.positive("lr", lr)
        self.decay = checks.non_negative("decay", decay)
        self._moments: tuple[Vector, Vector, Vector] | None = None

    def step(self, x: Vector, gradient: Vector, active: Mask) -> Vector:
        """The vector after one step of descent.

        Args:
            x: ``[m]``; not written to.
            gradient: ``[m]``; anything where inactive.
            active: ``[m]``; the other entries, their moments and their counts stay as they are.
        """
        if self._moments is None:
            self._moments = (np.zeros_like(x), np.zeros_like(x), np.zeros_like(x))
        first, second, steps = self._moments
        slope = gradient + self.decay * x
        # Counts are per entry: one that sits out keeps its bias correction.
        count = steps + 1.0
        mean = 0.9 * first + 0.1 * slope
        square = 0.999 * second + 0.001 * slope * slope
        corrected = np.sqrt(square / (1.0 - 0.999**count)) + 1e-8
        moved: Vector = x - self.lr * (mean / (1.0 - 0.9**count)) / corrected
        if not active.all():
            mean, square = np.where(active, mean, first), np.where(active, square, second)
            count, moved = np.where(active, count, steps), np.where(active, moved, x)
        self._moments = (mean, square, count)
        return moved

    def reset(self) -> None:
        """Forget the moments."""
        self._moments = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and counts; empty before the first step."""
        if self._moments is None:
            return {}
        # Copies: the arrays go on to be replaced, but a caller may write to what it is given.
        return dict(
            zip(("first", "second", "steps"), (torch.from_numpy(each.copy()) for each in self._moments), strict=True)
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        if not state:
            self._moments = None
            return
        first, second, steps = (on_host(state[name]).copy() for name in ("first", "second", "steps"))
        self._moments = (first, second, steps)
