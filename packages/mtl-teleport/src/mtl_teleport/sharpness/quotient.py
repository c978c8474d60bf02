r"""Estimates that are difference quotients of the losses.

.. math:: \sum_j \langle c_j, L(\theta' + \varepsilon_j)\rangle - \langle\textstyle\sum_j c_j, L(\theta')\rangle

The perturbations :math:`\varepsilon_j` count as constants, so that each term is differentiated where it was evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.sharpness.estimate import Estimate, Slopes
from mtl_teleport.sharpness.point import Point
from mtl_teleport.sharpness.task_slopes import TaskSlopes

__all__ = ["Term", "estimate", "slopes"]


@dataclass
class Term:
    r"""One perturbed point and the part that its losses have in the quotient.

    Attributes:
        values: the perturbed parameters :math:`\theta' + \varepsilon_j`, detached.
        coefficients: :math:`c_j`, ``[k]``.
        losses: the losses there with their graph, where they have been evaluated with one.
    """

    values: dict[str, Tensor]
    coefficients: Tensor
    losses: TaskLosses | None = None


def estimate(point: Point, gain: Tensor, terms: Sequence[Term], *, through_terms: bool = True) -> Estimate:
    """The estimate that a quotient is.

    Args:
        point: the unperturbed point.
        gain: the quotient, detached.
        terms: its perturbed points.
        through_terms: whether its derivative is taken through the perturbed points, too.
    """
    own = _together(terms)

    def gradient(by_loss: Tensor, by_gain: Tensor) -> Tensor:
        # First, so that this graph is gone before one of a perturbed point is made.
        found = point.by_adapter(point.combination(by_loss.to(own) - by_gain.to(own) * own))
        return found + by_gain.to(found) * _ahead(point, terms).to(found) if through_terms else found

    return Estimate(gain, gradient)


def slopes(
    point: Point, gain: Tensor, terms: Sequence[Term], found: TaskSlopes, *, through_terms: bool = True
) -> Slopes:
    """The slopes of a quotient. Its unperturbed part is a combination of the tasks' rows and needs no pass of its own.

    Args:
        point: the unperturbed point; its graph is not needed.
        gain: the quotient, detached.
        terms: its perturbed points.
        found: the tasks' slopes.
        through_terms: whether its derivative is taken through the perturbed points, too.
    """
    own = _together(terms)

    def directions() -> tuple[Tensor, Tensor]:
        behind = own.to(found.rows) @ found.rows
        return (_ahead(point, terms) - behind if through_terms else -behind), found.rows

    return Slopes(gain, directions, found.gramian)


def _together(terms: Sequence[Term]) -> Tensor:
    return torch.stack([term.coefficients for term in terms]).sum(dim=0)


def _ahead(point: Point, terms: Sequence[Term]) -> Tensor:
    """The derivative of the perturbed terms; one graph at a time."""
    total: Tensor | None = None
    for term in terms:
        # Taken out of the term: a graph is good for one backward pass, and its memory is free again before the next
        # term's is made. Whoever asks twice has it made anew.
        losses, term.losses = term.losses, None
        if losses is None:
            term.values = {name: tensor.requires_grad_() for name, tensor in term.values.items()}
            losses = point.session.evaluate(point.batch, parameters=term.values)
        part = point.by_adapter_at(term.values, point.combination(term.coefficients, losses))
        del losses
        total = part if total is None else total + part
    assert total is not None
    return total
