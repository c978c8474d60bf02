"""Sharpness as the gradient norm itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl_teleport.budget import passes
from mtl_teleport.double_backward import check_functions
from mtl_teleport.sharpness.estimate import Estimate, Sharpness, Slopes
from mtl_teleport.sharpness.point import Point, norm
from mtl_teleport.sharpness.task_slopes import task_slopes

__all__ = ["ExactSharpness", "HalfSquare"]


_SMALL = 1e-12
"""Below this, and above its inverse, a product of two numbers of that size nears the end of single precision."""


class ExactSharpness(Sharpness):
    r"""The gradient norm :math:`\|g\|`, :math:`g = \nabla L_R(\theta')`, itself.

    Its derivative is a Hessian-vector product that reaches the adapter's tensors only:

    .. math:: \partial_\varphi \|g\| = \partial_\varphi \langle g, u\rangle, \qquad u = g / \|g\| \text{ held.}

    Note:
        Beyond the paper. Every operation of the model must be twice differentiable.
    """

    name = "exact"
    differentiates_twice = True

    @property
    def passes(self) -> int:
        """At most, for a search that follows one gradient or several."""
        return passes(0, 2, 1)

    def estimate(self, point: Point) -> Estimate:
        """The gradient norm, and its gradient together with that of the losses.

        Raises:
            InvalidInputError: a hand-written function of the model is only once differentiable.
        """
        gain, gradients = _differentiable(point)

        def gradient(by_loss: Tensor, by_gain: Tensor) -> Tensor:
            # Of b‖g‖ the derivative is ⟨g', b g/‖g‖⟩: the gradients' own values are the seeds of the second pass, in
            # one walk with the losses. Over the norm first: in relative units b itself is of the size 1/‖g‖, whose
            # square leaves the dtype for losses that do not.
            size = _or_one(gain)
            seeds = [g.detach() / size.to(g) * by_gain.to(g) for g in gradients]
            loss = point.combination(by_loss)
            found = point.session.differentiate_all(
                [*gradients, loss], point.inputs, at=point.values, seeds=[*seeds, torch.ones_like(loss)]
            )
            return point.pull_back(found)

        return Estimate(gain, gradient)

    def slopes(self, point: Point) -> Slopes:
        """The gradient norm, and how it and each loss change with the adapter.

        The tasks' own gradients come first: they are used and gone before there is a second graph beside the first.

        Raises:
            InvalidInputError: a hand-written function of the model is only once differentiable.
        """
        # Before the first pass: what cannot be differentiated twice is then refused without having cost one.
        check_functions(point.combination(point.weights))
        found = task_slopes(point, retain_graph=True)
        gain, gradients = _differentiable(point)
        # The one holder of the gradients from here on, which are as large as the parameters: held in a list, they
        # would outlive the second differentiation, of which each is needed only where it begins.
        is_scaled = point.session.conditions.loss_scale != 1.0
        # Products of a Hessian and a gradient have the size of the losses squared.
        size = float(gain)
        factor = 1.0 if _SMALL < size < 1.0 / _SMALL or size == 0.0 else 1.0 / size
        square: Tensor = HalfSquare.apply(gain, is_scaled, factor, *gradients)  # type: ignore[no-untyped-call]
        del gradients

        def directions() -> tuple[Tensor, Tensor]:
            products = point.session.differentiate(square, point.inputs, at=point.values, retain_graph=False)
            upward = point.pull_back(products)
            # From ½‖g‖² to ‖g‖, of which the factor may have done all already.
            return upward / (_or_one(gain) * factor).to(upward), found.rows

        return Slopes(gain, directions, found.gramian)


class HalfSquare(torch.autograd.Function):
    """Half the squared norm of tensors, which are its derivative, and which are let go as they are handed over.

    A pass through it frees each tensor once the operation that made it has been differentiated.
    """

    @staticmethod
    def forward(ctx: Any, gain: Tensor, is_scaled: bool, factor: float, *tensors: Tensor) -> Tensor:
        """From the norm, whether the pass starts from anything but 1, a factor on the derivative, and the tensors."""
        ctx.is_scaled = is_scaled
        ctx.factor = factor
        ctx.tensors = [tensor.detach() for tensor in tensors]
        return gain.square() / 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """The tensors; once at most."""
        found, ctx.tensors = ctx.tensors, []
        if ctx.factor != 1.0:
            found = [tensor * ctx.factor for tensor in found]
        if ctx.is_scaled:
            found = [tensor * gradients[0].to(tensor) for tensor in found]
        return (None, None, None, *found)


def _differentiable(point: Point) -> tuple[Tensor, list[Tensor]]:
    """The gradient norm, detached, and the gradients by the point with their graph."""
    loss = point.combination(point.weights)
    check_functions(loss)
    found = list(point.session.differentiate(loss, point.tensors, at=point.values, create_graph=True))
    return norm([g.detach() for g in found]), found


def _or_one(gain: Tensor) -> Tensor:
    """The root has no derivative at zero: a stationary point stays where it is."""
    return torch.where(gain > 0, gain, torch.ones_like(gain))
