"""Sharpness by one step of ascent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_core import TaskLosses, checks
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.sharpness.estimate import Point, Sharpness, Slopes
from mtl_teleport.sharpness.task_slopes import mean_weights, norm, pull_back, task_slopes, weighted

__all__ = ["AscentSharpness"]


class AscentSharpness(Sharpness):
    r"""The change of the weighted loss along one step of ascent.

    .. math:: \tfrac1\delta \bigl(L_R(\theta' + \delta u) - L_R(\theta')\bigr), \qquad
        u = \nabla L_R(\theta') / \|\nabla L_R(\theta')\|

    The direction u counts as constant (first order). Two evaluations, whatever the dimension.

    Args:
        radius: length :math:`\delta` of the perturbation.

    Note:
        Beyond the paper. The perturbation is the maximiser of equation 8 to first order.

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021, equation 2.
    """

    def __init__(self, radius: float = 0.05) -> None:
        self.radius = checks.positive("radius", radius)

    def gain(
        self,
        session: AdapterSession,
        batch: Any,
        point: Point,
        losses: TaskLosses,
        balance: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The difference quotient along the gradient."""
        base = weighted(losses, balance)
        gradients = session.differentiate(base, list(point.values()), retain_graph=True)
        moved = self._moved(point, gradients)
        ahead = weighted(session.evaluate(batch, parameters=moved), balance)
        return (ahead - base) / self.radius

    def slopes(
        self,
        session: AdapterSession,
        batch: Any,
        point: Point,
        losses: TaskLosses,
        balance: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Slopes:
        r"""As ``gain``, with one pass through the model per task and one more, where a free point allows it.

        The tasks' gradients by the point give the direction u, and by the chain rule through the adapter alone the
        rows as well; of the sharpness only the perturbed loss is left to differentiate.
        """
        if not session.has_free_point:
            return super().slopes(session, batch, point, losses, balance, generator=generator)
        weights = mean_weights(losses, balance)
        base = weighted(losses, balance).detach()
        found = task_slopes(session, point, losses, weights)
        tensors, rows, u = list(point.values()), found.rows, found.weighted
        assert u is not None
        length = norm(u)
        step = torch.where(length > 0, self.radius / length, torch.zeros_like(length))
        with torch.no_grad():
            for gradient, tensor in zip(u, tensors, strict=True):
                gradient.mul_(step.to(gradient.dtype)).add_(tensor)
        moved = {name: tensor.requires_grad_() for name, tensor in zip(point, u, strict=True)}
        ahead = weighted(session.evaluate(batch, parameters=moved), balance)

        def directions() -> tuple[Tensor, Tensor]:
            upward = pull_back(tensors, session.trainable, session.differentiate(ahead, list(moved.values())))
            # The part of the unperturbed loss is a combination of the tasks' rows.
            return (upward - mean_weights(losses, balance).to(rows) @ rows) / self.radius, rows

        return Slopes((ahead.detach() - base) / self.radius, directions, found.gramian)

    def _moved(self, point: Point, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        length = norm(gradients)
        step = torch.where(length > 0, self.radius / length, torch.zeros_like(length))
        return {
            name: torch.addcmul(tensor, gradient, step.to(tensor.dtype))
            for (name, tensor), gradient in zip(point.items(), gradients, strict=True)
        }
