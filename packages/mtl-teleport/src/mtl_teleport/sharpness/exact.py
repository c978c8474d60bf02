"""Sharpness as the gradient norm itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.double_backward import check_functions
from mtl_teleport.sharpness.estimate import Point, Sharpness
from mtl_teleport.sharpness.task_slopes import weighted

__all__ = ["ExactSharpness"]


class ExactSharpness(Sharpness):
    r"""The gradient norm :math:`\|\nabla L_R(\theta')\|` itself.

    Its derivative is a Hessian-vector product through the adapter's tensors.

    Note:
        Beyond the paper. Every operation of the model must be twice differentiable.
    """

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
        """The gradient norm.

        Raises:
            InvalidInputError: a hand-written function of the model is only once differentiable.
        """
        loss = weighted(losses, balance)
        check_functions(loss)
        gradients = session.differentiate(loss, list(point.values()), create_graph=True)
        squared = torch.stack([g.square().sum() for g in gradients]).sum()
        # The root has no derivative at zero; a stationary point stays where it is.
        return torch.where(squared > 0, squared, torch.ones_like(squared)).sqrt() * (squared > 0)
