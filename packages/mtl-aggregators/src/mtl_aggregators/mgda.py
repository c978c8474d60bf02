"""MGDA: the direction that improves every task at the same rate."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.loss_method import positive
from mtl_aggregators.solvers import device, min_norm
from mtl_aggregators.solvers.device.rows import Backend, unit_rows
from mtl_aggregators.solvers.solution import Vector
from mtl_core import InvalidInputError, checks

__all__ = ["MGDA"]

Normalization = Literal["none", "l2", "loss", "loss+"]


class MGDA(GramianMethod):
    r"""Multiple-gradient descent: the min-norm point in the convex hull of the task gradients.

    .. math:: w = \arg\min_{w \in \Delta} \tfrac12\, w^\top G w

    No task is made worse to first order, :math:`\langle g_i, g_w\rangle \ge \|g_w\|^2`, and the update is zero
    exactly at Pareto-stationary points.

    Args:
        normalization: what each gradient is divided by before the weights are sought: 1, :math:`\|g_i\|`, :math:`L_i`
            or :math:`L_i\|g_i\|`. The two with losses need positive losses.
        paper_scale: multiply the weights by the number of tasks, as the released benchmark code does.
        backend: where the weights are computed; see ``GramianMethod``.

    Raises:
        InvalidParameterError: ``normalization`` is none of the four.

    Note:
        The problem is solved exactly; released code runs a fixed number of Frank–Wolfe steps. As in the released code
        of Sener and Koltun, weights found on normalised gradients are applied to the unnormalised ones; the guarantee
        above is then lost. A zero gradient would make zero the min-norm point and freeze every task, so such a task
        is left out.

    References:
        Désidéri, *Multiple-gradient descent algorithm (MGDA) for multiobjective optimization*, C. R. Math. 2012;
        Sener and Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018, equation 3.

    Example:
        >>> import torch
        >>> MGDA()(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.4000, 0.8000])
    """

    def __init__(
        self, *, normalization: Normalization = "none", paper_scale: bool = False, backend: Backend = "auto"
    ) -> None:
        super().__init__(backend=backend)
        self.normalization = checks.one_of("normalization", normalization, ("none", "l2", "loss", "loss+"))
        self.takes_losses = normalization in ("loss", "loss+")
        self.paper_scale = checks.boolean("paper_scale", paper_scale)
        if self.takes_losses:
            # The losses come to the host anyway, with the Gramian.
            self.on_host_only()

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        # With a normalisation, weights that are not unique (at stationary points) act on other gradients than they
        # were found on, so only what holds for any minimiser is declared.
        laws: set[Law] = set()
        if self.normalization == "none":
            laws |= {"non_conflicting", "permutation", "homogeneous", "orthogonal", "zero_when_stationary", "zero_rows"}
        if not self.takes_losses:
            laws |= {"equal_rows"}
            if not self.paper_scale:
                laws |= {"simplex"}
        released = Scale("1", lambda m: 1.0)
        return Facts(
            needs="gramian",
            homogeneity=1.0,
            scale=released if self.paper_scale else Scale("1/m", lambda m: 1.0 / m),
            paper_scale=released,
            paper_heads="weighted",
            laws=frozenset(laws),
            reference="Désidéri, C. R. Math. 2012; Sener and Koltun, NeurIPS 2018",
        )

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        if self.normalization != "none":
            gramian = self._normalize(gramian, losses)
        solution = min_norm(gramian)
        self.record(solution)
        return solution.value * len(gramian) if self.paper_scale else solution.value

    @property
    def closed_on_device(self) -> bool:
        """Whether ``solve_on_device``, as configured, has a closed form for two tasks."""
        return True

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]``, in torch."""
        if self.takes_losses:
            return super().solve_on_device(gramian)
        if self.normalization == "l2":
            gramian = _cosines(gramian)
        weights = device.min_norm(gramian)
        return weights * len(gramian) if self.paper_scale else weights

    def _normalize(self, gramian: Vector, losses: Vector | None) -> Vector:
        divisor = np.ones(len(gramian))
        active = gramian.diagonal() > 0.0
        if self.normalization in ("l2", "loss+"):
            divisor[active] = np.sqrt(gramian.diagonal()[active])
        if self.takes_losses:
            if losses is None:
                raise InvalidInputError(
                    f"`losses` must be given for normalization={self.normalization!r}, got None. "
                    "Call weights(gramian, losses=losses), or use mtl_core.step, which hands them on."
                )
            positive(losses, active, None, method=f"MGDA(normalization={self.normalization!r})")
            divisor[active] *= losses[active]
        scaled: Vector = gramian / divisor / divisor[:, None]
        return scaled


def _cosines(gramian: Tensor) -> Tensor:
    """The Gramian of the gradients divided by their norms, zero rows staying zero."""
    rows = unit_rows(gramian)
    both = rows.active.unsqueeze(-1) & rows.active.unsqueeze(-2)
    return torch.where(both, rows.cosines, 0.0)
