"""Quantities of the losses at other points that depend on the gradient here: those points, and their derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.double_backward import check_functions
from mtl_teleport.sharpness.estimate import Estimate, Sharpness, Slopes
from mtl_teleport.sharpness.point import Point
from mtl_teleport.sharpness.task_slopes import task_slopes

__all__ = ["Away", "GradientPoints", "Tried", "gradients_with_graph"]


@dataclass
class Away:
    r"""The losses at :math:`\theta' + \varepsilon`, where :math:`\varepsilon` may depend on :math:`\theta'` too.

    Attributes:
        values: the tensors there; leaves.
        losses: the losses there, with their graph.
    """

    values: dict[str, Tensor]
    losses: TaskLosses

    @classmethod
    def of(cls, point: Point, steps: Sequence[Tensor]) -> Away:
        """From a point and how far each of its tensors is moved."""
        values = {
            # A leaf of its own: its gradient is that by θ' and that by ε alike, and its graph ends here, apart from the
            # first one.
            name: (tensor.detach() + step.detach().to(tensor)).requires_grad_()
            for (name, tensor), step in zip(point.values.items(), steps, strict=True)
        }
        return cls(values, point.session.evaluate(point.batch, parameters=values))

    def differentiate(self, point: Point, coefficients: Tensor) -> tuple[Tensor, list[Tensor]]:
        r"""The derivatives of :math:`\sum_i a_i L_i(\theta' + \varepsilon)`; once at most.

        Args:
            point: where it was moved from.
            coefficients: a, ``[k]``.

        Returns:
            that by the adapter's tensors with :math:`\varepsilon` held, ``[p]``, and that by :math:`\varepsilon`.
        """
        session, leaves = point.session, list(self.values.values())
        output = point.combination(coefficients, self.losses)
        # An adapter in the model's layers is reached by a second pass through this graph; a free one by the chain rule.
        found = session.differentiate(output, leaves, at=self.values, retain_graph=not session.has_free_point)
        if not session.has_free_point:
            return point.by_adapter_at(self.values, output), list(found)
        attached = [g for g, tensor in zip(found, point.tensors, strict=True) if tensor.grad_fn is not None]
        return point.pull_back(attached), list(found)


def gradients_with_graph(point: Point, weights: Tensor) -> list[Tensor]:
    """The gradients of a combination of the losses by the point, which can be differentiated again.

    Args:
        point: where.
        weights: of the present tasks' losses, ``[k]``.

    Raises:
        InvalidInputError: a hand-written function of the model is only once differentiable.
    """
    loss = point.combination(weights)
    check_functions(loss)
    return list(point.session.differentiate(loss, point.tensors, at=point.values, create_graph=True))


@dataclass
class Tried(ABC):
    """What was found at one point and at those that its gradient leads to.

    Attributes:
        gain: the quantity, detached.
        gradients: those that lead away, with their graph.
        here: derivatives of the quantity by the losses at the point itself, ``[k]``.
    """

    gain: Tensor
    gradients: list[Tensor]
    here: Tensor

    @abstractmethod
    def back_to(self, point: Point) -> tuple[Tensor, list[Tensor]]:
        """The derivative through the other points, once at most.

        Returns:
            that by the adapter's tensors with the steps to them held, ``[p]``, and that by the gradients.
        """


class GradientPoints(Sharpness):
    """Base of quantities of the losses at points to which the gradient leads, differentiated through it.

    A subclass evaluates them. Every operation of the model must be twice differentiable.
    """

    differentiates_twice = True

    @abstractmethod
    def _try(self, point: Point) -> Tried:
        """Evaluate at a point and at those that it leads to."""

    def estimate(self, point: Point) -> Estimate:
        """The quantity, and its gradient together with that of the losses.

        Raises:
            InvalidInputError: a hand-written function of the model is only once differentiable.
        """
        tried = self._try(point)

        def gradient(by_loss: Tensor, by_gain: Tensor) -> Tensor:
            # The other points first: their graphs are gone before the one of second order is walked.
            pulled, seeds = tried.back_to(point)
            own = point.combination(by_loss.to(tried.here) + by_gain.to(tried.here) * tried.here)
            found = point.session.differentiate_all(
                [*tried.gradients, own],
                point.inputs,
                at=point.values,
                seeds=[*(by_gain.to(seed) * seed for seed in seeds), torch.ones_like(own)],
            )
            return point.pull_back(found) + by_gain.to(pulled) * pulled

        return Estimate(tried.gain, gradient)

    def slopes(self, point: Point) -> Slopes:
        """The quantity, and how it and each loss change with the adapter.

        Raises:
            InvalidInputError: a hand-written function of the model is only once differentiable.
        """
        check_functions(point.combination(point.weights))
        found = task_slopes(point, retain_graph=True)
        tried = self._try(point)

        def directions() -> tuple[Tensor, Tensor]:
            pulled, seeds = tried.back_to(point)
            through = point.session.differentiate_all(
                tried.gradients, point.inputs, at=point.values, seeds=seeds, retain_graph=False
            )
            return tried.here.to(found.rows) @ found.rows + pulled + point.pull_back(through), found.rows

        return Slopes(tried.gain, directions, found.gramian)
