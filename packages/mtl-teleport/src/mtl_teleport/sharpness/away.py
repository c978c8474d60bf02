"""A second point that depends on the first, evaluated and differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.double_backward import check_functions
from mtl_teleport.sharpness.point import Point

__all__ = ["Away", "gradients_with_graph"]


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
