"""UPGrad: the mean of the gradients, each made harmless first."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mtl_aggregators.bases.cone_method import ConeMethod
from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.parameters import match_tasks
from mtl_aggregators.solvers import device, project_rows
from mtl_aggregators.solvers.solution import Vector

__all__ = ["UPGrad"]


class UPGrad(ConeMethod):
    r"""Unconflicting projection of gradients: the mean of the projections of all gradients onto the dual cone.

    .. math:: d = \sum_i \lambda_i\, \pi(g_i), \qquad \pi(g) = \arg\min_{x:\, J x \ge 0} \|x - g\|

    In weights: :math:`w = \sum_i \lambda_i v_i` with :math:`v_i = \arg\min_{v \ge e_i} v^\top G v`. No task is made
    worse to first order.

    Args:
        preference: :math:`\lambda` ``[m]``, non-negative and not all zero; ``None`` for :math:`1/m` each.
        ridge: added to the diagonal of the cosine matrix; 0 is the exact projection. Any other value trades the
            guarantee for weights that change more smoothly.
        backend: where the weights are computed; see ``GramianMethod``.

    Raises:
        InvalidParameterError: ``preference`` has a negative entry or is all zero, or ``ridge`` is negative.

    Note:
        The ridge of the reference implementation is relative to the trace; with norms a tenfold apart it lets the
        update conflict. Here it is relative to each gradient, and off.

    References:
        Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*, 2024, definition 5 and proposition 1.

    Example:
        >>> import torch
        >>> UPGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2500, 0.7500])
    """

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return self.declare({"zero_rows"}, "Quinton and Rey, 2024")

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        solution = project_rows(gramian, ridge=self.ridge)
        self.record(solution)
        m = len(gramian)
        if self.preference is None:
            weights: Vector = solution.value.sum(axis=0)
            return weights / m
        match_tasks("preference", self.preference, m)
        return np.asarray(self.preference.numpy() @ solution.value)

    @property
    def closed_on_device(self) -> bool:
        """Whether ``solve_on_device``, as configured, has a closed form for two tasks."""
        return True

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]``, in torch."""
        m = len(gramian)
        projections = device.project_rows(gramian, ridge=self.ridge)
        if self.preference is None:
            return projections.mean(dim=0)
        match_tasks("preference", self.preference, m)
        return self.preference.to(gramian.device, non_blocking=True) @ projections
