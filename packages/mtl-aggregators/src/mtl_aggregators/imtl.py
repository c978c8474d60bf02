"""IMTL: losses brought to one scale, then gradients to equal projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.adam import Adam, on_host
from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.loss_checks import check_past_losses
from mtl_aggregators.bases.parameters import same_tasks
from mtl_aggregators.imtl_g import IMTLG
from mtl_aggregators.solvers.solution import Vector

__all__ = ["IMTL"]


class IMTL(GramianMethod):
    r"""Impartial multi-task learning: ``IMTLL``'s scales on the losses, then ``IMTLG`` on the scaled gradients.

    .. math:: w_i = e^{s_i} w'_i, \qquad w' = \mathrm{IMTLG}(E G E), \quad E = \mathrm{diag}(e^{s})

    with :math:`s` trained on :math:`\sum_i (e^{s_i} L_i - s_i)` after each step. Since equal projections on unit
    gradients do not depend on the gradients' lengths, the update has the direction of ``IMTLG``; the scales decide
    how long it is.

    Args:
        lr: learning rate of the method's own Adam on :math:`s`.

    Raises:
        InvalidParameterError: ``lr`` is not positive.

    Note:
        Released implementations hand :math:`s` to the optimiser of the network.

    References:
        Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021, algorithm 1.

    Example:
        >>> import torch
        >>> IMTL()(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.6667, 0.6667])
    """

    has_memory = True

    def __init__(self, *, lr: float = 0.025) -> None:
        super().__init__()
        self.gradients = IMTLG()
        self._adam = Adam(lr=lr)
        self._scales: Vector | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return self.gradients.facts

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        factor = np.ones(len(gramian))
        if self._scales is not None:
            same_tasks("IMTL", len(self._scales), len(gramian))
            factor = np.exp(self._scales)
        # The gradient of e^s L is e^s times that of L, so that the Gramian of the scaled losses needs no backward pass.
        weights = self.gradients.solve(gramian * factor * factor[:, None], losses) * factor
        self.last_solution = self.gradients.last_solution
        self._events += self.gradients.pop_events()
        return weights

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Train the scales on the losses ``[m]`` of the step, NaN for an absent task."""
        check_past_losses(before)
        known = on_host(before)
        scales = np.zeros_like(known) if self._scales is None else self._scales
        same_tasks("IMTL", len(scales), len(known))
        # The derivative of e^s L - s.
        self._scales = self._adam.step(scales, np.exp(scales) * known - 1.0, ~np.isnan(known))

    def reset(self) -> None:
        """Start from scales of 1 again."""
        self._scales = None
        self._adam.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """The logarithms of the scales and Adam's moments."""
        held = None if self._scales is None else torch.from_numpy(self._scales.copy())
        return {"scales": held, "adam": self._adam.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._scales = None if state["scales"] is None else on_host(state["scales"]).copy()
        self._adam.load_state_dict(state["adam"])
