"""Where a search stands: one point of the adapter, evaluated on one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from mtl_core import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession

__all__ = ["Point", "flat", "norm"]


@dataclass(frozen=True)
class Point:
    r"""One point :math:`\theta' = \theta + \Delta\theta(\varphi)`, and the task losses there on one batch.

    Attributes:
        session: the problem with its adapter.
        batch: what the problem's losses take.
        values: the parameters :math:`\theta'`, as from ``AdapterSession.parameters``.
        losses: the losses there, with their graph.
        balance: the task weights R inside the sharpness, ``[m]``.
        generator: source of random directions, on the parameters' device.
    """

    session: AdapterSession
    batch: Any
    values: Mapping[str, Tensor]
    losses: TaskLosses
    balance: Tensor
    generator: torch.Generator | None = None

    @classmethod
    def of(
        cls, session: AdapterSession, batch: Any, balance: Tensor, *, generator: torch.Generator | None = None
    ) -> Self:
        """The session's present point, evaluated on a batch."""
        values = session.parameters()
        return cls(session, batch, values, session.evaluate(batch, parameters=values), balance, generator)

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters, in the order of their names."""
        return list(self.values.values())

    @property
    def weights(self) -> Tensor:
        r"""The coefficients ``[k]`` of the present tasks' losses in :math:`L_R = \frac1k\sum_i R_i L_i`."""
        # Balance is over all tasks, also where a batch lacks some; the mean is over those that are there.
        own = self.balance if self.losses.is_complete else self.balance[list(self.losses.index)]
        return own / len(self.losses.index)

    def combination(self, coefficients: Tensor, losses: TaskLosses | None = None) -> Tensor:
        """The present tasks' losses, here or where ``losses`` were evaluated, times coefficients ``[k]``; a scalar."""
        values = (self.losses if losses is None else losses).values
        return (coefficients.to(values) * values).sum()

    @property
    def inputs(self) -> list[Tensor]:
        """What leads to the adapter: its own tensors, or the parameters that it displaces, where those are free."""
        if not self.session.has_free_point:
            return list(self.session.trainable)
        # Parameters that the adapter does not displace are leaves, by which nothing is asked.
        return [tensor for tensor in self.values.values() if tensor.grad_fn is not None]

    def pull_back(self, gradients: Sequence[Tensor], by: Sequence[Tensor] | None = None) -> Tensor:
        """Gradients by ``inputs`` to gradients by the adapter's tensors, in one vector ``[p]``.

        Args:
            gradients: by the tensors of ``by``.
            by: which of the parameters they are, ``inputs`` by default.
        """
        if not self.session.has_free_point:
            return flat(gradients)
        pairs = zip(self.inputs if by is None else by, gradients, strict=True)
        attached = [(tensor, gradient) for tensor, gradient in pairs if tensor.grad_fn is not None]
        return flat(
            # Through W + ΔW(φ) alone, without the model; kept, since each task's gradient goes through it.
            torch.autograd.grad(
                [tensor for tensor, _ in attached],
                self.session.trainable,
                [gradient for _, gradient in attached],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )

    def by_adapter(self, output: Tensor, *, retain_graph: bool = False) -> Tensor:
        """The gradient ``[p]`` of a scalar that was computed from the losses here, by the adapter's tensors."""
        found = self.session.differentiate(output, self.inputs, at=self.values, retain_graph=retain_graph)
        return self.pull_back(found)

    def by_adapter_at(self, moved: Mapping[str, Tensor], output: Tensor) -> Tensor:
        r"""The same for a scalar from another point :math:`\theta' + \varepsilon`, with :math:`\varepsilon` held.

        Args:
            moved: the other point: leaves, whose gradients are those of this point's tensors.
            output: a scalar; its graph is gone afterwards.
        """
        if not self.session.has_free_point:
            return flat(self.session.differentiate(output, self.session.trainable, at=moved))
        leaves = [moved[name] for name, tensor in self.values.items() if tensor.grad_fn is not None]
        return self.pull_back(self.session.differentiate(output, leaves, at=moved))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together, in single precision at least, at any size that this can hold."""
    square = _square(tensors)
    info = torch.finfo(square.dtype)
    # Half of the exponents' range, in which no entry that matters is lost: elsewhere the squares are those of the
    # entries over the largest one.
    if info.tiny**0.5 < float(square) < info.max**0.5:
        return square.sqrt()
    largest = torch.stack([t.detach().abs().max().to(square.dtype) for t in tensors if t.numel()]).max()
    if not 0.0 < float(largest) < math.inf:
        return square.sqrt()
    return largest * _square(tensors, over=largest).sqrt()


def _square(tensors: Sequence[Tensor], *, over: Tensor | None = None) -> Tensor:
    # Of a complex number the two parts. The square of a float16 overflows from 256 on.
    parts = (torch.view_as_real(t) if t.is_complex() else t for t in tensors)
    wide = (t.float() if t.dtype.itemsize < 4 else t for t in parts)
    return torch.stack([(t if over is None else t / over.to(t)).square().sum() for t in wide]).sum()
