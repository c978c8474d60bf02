"""What an estimate of the sharpness is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession
from mtl_teleport.sharpness.task_slopes import flat, task_slopes

__all__ = ["Point", "Sharpness", "SharpnessKind", "Slopes"]

SharpnessKind = Literal["random", "ascent", "exact"]
"""Names of the three estimates."""

Point = Mapping[str, Tensor]
"""The parameters at which losses are evaluated, as from ``AdapterSession.parameters``."""


@dataclass(frozen=True)
class Slopes:
    r"""Sharpness and losses at one point, to first order in the adapter's tensors :math:`\varphi`.

    Attributes:
        gain: the sharpness :math:`L_g`, detached.
        directions: gives :math:`\nabla_\varphi L_g`, ``[p]``, and the rows :math:`\nabla_\varphi L_i`, ``[k, p]``; to
            be called once at most, and not at all if the point is left again.
        gramian: the Gramian ``[m, m]`` of the task gradients by the whole point, float64 on the CPU, where it fell out
            on the way.
    """

    gain: Tensor
    directions: Callable[[], tuple[Tensor, Tensor]]
    gramian: Tensor | None = None


class Sharpness(ABC):
    """An estimate of the gradient norm of the weighted loss, as a term to be maximised."""

    is_random = False
    """Whether two evaluations at one point differ."""

    def __call__(
        self, session: AdapterSession, batch: Any, balance: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[TaskLosses, Tensor]:
        """Evaluate the losses and the sharpness at the adapted point.

        Args:
            session: the problem with its adapter.
            batch: what the problem's losses take.
            balance: the weights ``R``, ``[m]``.
            generator: source of random directions, on the parameters' device.

        Returns:
            the losses at the adapted point, and a scalar; both differentiable by ``session.trainable``.
        """
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        return losses, self.gain(session, batch, point, losses, balance, generator=generator)

    @abstractmethod
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
        """The sharpness at ``point``, where the losses have been evaluated; differentiable."""

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
        """The sharpness and how it and the losses change with the adapter."""
        gain = self.gain(session, batch, point, losses, balance, generator=generator)
        if session.has_free_point:
            found = task_slopes(session, point, losses, retain_graph=True)
            return Slopes(
                gain.detach(), lambda: (flat(session.differentiate(gain, session.trainable)), found.rows), found.gramian
            )

        def directions() -> tuple[Tensor, Tensor]:
            upward = flat(session.differentiate(gain, session.trainable, retain_graph=True))
            return upward, torch.stack([flat(row) for row in session.differentiate_tasks(losses, session.trainable)])

        return Slopes(gain.detach(), directions)
