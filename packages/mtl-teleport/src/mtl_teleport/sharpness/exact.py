"""Sharpness as the gradient norm itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_core.problem import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.double_backward import check_functions
from mtl_teleport.sharpness.estimate import Point, Sharpness, Slopes
from mtl_teleport.sharpness.task_slopes import norm, pull_back, task_slopes, weighted

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
        r"""As ``gain``, with the tasks' own gradients taken, used and dropped before any second graph is made.

        :math:`\partial_\varphi \|g\| = \partial_\varphi \langle g, u\rangle` with :math:`u = g / \|g\|` held: the
        gradients by the point are differentiated against themselves, by the adapted parameters alone, and the rest is
        the chain rule through the adapter.

        Raises:
            InvalidInputError: a hand-written function of the model is only once differentiable.
        """
        if not session.has_free_point:
            return super().slopes(session, batch, point, losses, balance, generator=generator)
        loss = weighted(losses, balance)
        check_functions(loss)
        found = task_slopes(session, point, losses, retain_graph=True)
        gradients = session.differentiate(loss, list(point.values()), create_graph=True)
        gain = norm([g.detach() for g in gradients])
        attached = [tensor for tensor in point.values() if tensor.grad_fn is not None]

        def directions() -> tuple[Tensor, Tensor]:
            nonlocal gradients
            seeds = [g.detach() for g in gradients]
            products = session.differentiate_all(gradients, attached, seeds)
            gradients = ()
            upward = pull_back(attached, session.trainable, products)
            return upward / torch.where(gain > 0, gain, torch.ones_like(gain)).to(upward), found.rows

        return Slopes(gain, directions, found.gramian)
