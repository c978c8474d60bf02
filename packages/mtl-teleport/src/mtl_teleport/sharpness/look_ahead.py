"""What the next step of the actual method and optimiser takes off the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_core import InvalidInputError, checks
from mtl_teleport.budget import passes
from mtl_teleport.drift import drift_scale
from mtl_teleport.next_step import NextStep
from mtl_teleport.search_context import Search
from mtl_teleport.sharpness.away import Away, GradientPoints, Tried, gradients_with_graph
from mtl_teleport.sharpness.estimate import Sharpness, SharpnessKind
from mtl_teleport.sharpness.point import Point

__all__ = ["LookAhead"]


class LookAhead(GradientPoints):
    r"""The mean relative fall of the tasks' losses by a step of the method and optimiser that are at work, tried.

    .. math:: \frac1k \sum_i \frac{L_i(\theta') - L_i(\theta' - n\eta P \sum_j w_j g_j(\theta'))}{|L_i^*|}

    :math:`\eta` is the learning rate, w the method's weights and P the optimiser's scaling of each coordinate, all as
    they are before the search (``next_step``); n is how many such steps are made at once. It counts what is really
    gained: neither a longer gradient, where the optimiser takes its length away, nor one across a narrow valley is
    progress. Both evaluations are differentiated, and the step itself with a Hessian-vector product.

    A search with it is also judged by it: a displacement after which the losses would not fall faster, in the mean over
    the probe batches, is dropped.

    Args:
        horizon: n, positive.

    Note:
        Beyond the paper. Every operation of the model must be twice differentiable.
    """

    name: SharpnessKind = "look-ahead"

    is_judge = True

    def __init__(self, horizon: float = 10.0) -> None:
        self.horizon = checks.positive("horizon", horizon)
        self._step: NextStep | None = None
        self._scale = torch.ones((), dtype=torch.float64, device="cpu")

    def for_search(self, search: Search) -> Sharpness:
        """One that knows the step to come.

        Raises:
            InvalidInputError: no optimiser and no learning rate say what the step will be.
        """
        coming = search.next_step()
        if coming is None:
            raise InvalidInputError(
                "`lr` must be given where no optimiser says it, got None: sharpness='look-ahead' tries the next step. "
                "Pass optimizer= or lr= to teleport()."
            )
        # A new one, since the method's own serves every search and the step differs from one to the next.
        bound = LookAhead(self.horizon)
        bound._step = coming
        bound._scale = drift_scale(torch.stack([losses.double() for losses in search.losses]).nanmean(dim=0))
        return bound

    @property
    def passes(self) -> int:
        """At most, for a search that follows one gradient or several."""
        return passes(1, 3, 1)

    def _try(self, point: Point) -> _Step:
        assert self._step is not None
        index = list(point.losses.index)
        gradients = gradients_with_graph(point, self._step.weights[index])
        rates = [
            # nηP, per parameter: a number, or one per entry where the optimiser scales each.
            self.horizon
            * self._step.lr
            * self._step.scales.get(name, torch.ones((), dtype=torch.float64, device="cpu")).to(tensor)
            for name, tensor in zip(point.session.shared, point.tensors, strict=True)
        ]
        end = Away.of(point, [-rate * gradient.detach() for rate, gradient in zip(rates, gradients, strict=True)])
        shares = 1.0 / self._scale[index].to(point.losses.values) / len(index)
        fall = point.losses.values.detach() - end.losses.values.detach()
        return _Step((shares * fall).sum(), gradients, shares, rates, end)


@dataclass
class _Step(Tried):
    """One step that was tried.

    Attributes:
        rates: what each parameter's gradient was multiplied by.
        end: where the step led.
    """

    rates: list[Tensor]
    end: Away

    def back_to(self, point: Point) -> tuple[Tensor, list[Tensor]]:
        """Through the losses after the step, which count against those before it."""
        pulled, by_end = self.end.differentiate(point, -self.here)
        return pulled, [-rate * g.to(rate) for rate, g in zip(self.rates, by_end, strict=True)]
