"""DualProj: the mean gradient, made harmless."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.cone_method import ConeMethod
from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bases.parameters import match_tasks
from mtl_aggregators.solvers import device, project
from mtl_aggregators.solvers.solution import Vector

__all__ = ["DualProj"]


class DualProj(ConeMethod):
    r"""Dual-cone projection: the direction nearest to the mean gradient that no task objects to.

    .. math:: d = \arg\min_{x:\, J x \ge 0} \|x - J^\top \lambda\|

    Args:
        preference: :math:`\lambda` ``[m]``, non-negative and not all zero; ``None`` for :math:`1/m` each.
        ridge: added to the diagonal of the cosine matrix; 0 is the exact projection. Any other value trades the
            guarantee for weights that change more smoothly.
        backend: where the weights are computed; see ``GramianMethod``.

    Raises:
        InvalidParameterError: ``preference`` has a negative entry or is all zero, or ``ridge`` is negative.

    Note:
        The idea is that of gradient episodic memory, with one memory per task. As in ``UPGrad``, the reference
        implementation's ridge relative to the trace is not used.

    References:
        Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, NeurIPS 2017, equation 11; Quinton and
        Rey, *Jacobian Descent for Multi-Objective Optimization*, 2024, section 3.

    Example:
        >>> import torch
        >>> DualProj()(torch.tensor([[1.0, 0.0], [-3.0, 1.0]]))
        tensor([0.0000, 0.5000])
    """

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return self.declare(set(), "Lopez-Paz and Ranzato, NeurIPS 2017; Quinton and Rey, 2024")

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        m = len(gramian)
        if self.preference is None:
            target: Vector = np.full(m, 1.0 / m)
        else:
            match_tasks("preference", self.preference, m)
            target = self.preference.numpy()
        solution = project(gramian, target, ridge=self.ridge)
        self.record(solution)
        return solution.value

    @property
    def closed_on_device(self) -> bool:
        """Whether ``solve_on_device``, as configured, has a closed form for two tasks."""
        return True

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]``, in torch."""
        m = len(gramian)
        if self.preference is None:
            target = torch.full_like(gramian[0], 1.0 / m)
        else:
            match_tasks("preference", self.preference, m)
            target = self.preference.to(gramian.device, non_blocking=True)
        return device.project(gramian, target, ridge=self.ridge)
