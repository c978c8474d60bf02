r"""Sharpness: how steep the weighted loss is at the adapted point :math:`\theta' = \theta + \Delta\theta(\varphi)`.

With :math:`L_R = \frac1k\sum_i R_i L_i` over the k tasks present, every estimate here stands for :math:`\|\nabla
L_R(\theta')\|` and is differentiable by :math:`\varphi`, through the perturbation as well: perturbed losses are
evaluated functionally at :math:`\theta'(\varphi) + \varepsilon`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtl_core import checks
from mtl_core.problem import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession

__all__ = ["AscentSharpness", "ExactSharpness", "ProbeNorm", "RandomSharpness", "Sharpness", "SharpnessKind", "Slopes"]

SharpnessKind = Literal["random", "ascent", "exact"]
"""Names of the three estimates."""

ProbeNorm = Literal["global", "tensor"]
"""Whether a perturbation has the length ``radius`` as a whole or in each tensor."""


Point = Mapping[str, Tensor]
"""The parameters at which losses are evaluated, as from ``AdapterSession.parameters``."""


@dataclass(frozen=True)
class Slopes:
    r"""Sharpness and losses at one point, to first order in the adapter's tensors :math:`\varphi`.

    Attributes:
        gain: the sharpness :math:`L_g`, detached.
        directions: gives :math:`\nabla_\varphi L_g`, ``[p]``, and the rows :math:`\nabla_\varphi L_i`, ``[k, p]``; to
            be called once at most, and not at all if the point is left again.
    """

    gain: Tensor
    directions: Callable[[], tuple[Tensor, Tensor]]


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

        def directions() -> tuple[Tensor, Tensor]:
            upward = flat(session.differentiate(gain, session.trainable, retain_graph=True))
            return upward, torch.stack([flat(row) for row in session.differentiate_tasks(losses, session.trainable)])

        return Slopes(gain.detach(), directions)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def _mean_weights(losses: TaskLosses, balance: Tensor) -> Tensor:
    """The coefficients of the present tasks in the weighted loss, ``[k]``."""
    own = balance if losses.is_complete else balance[list(losses.index)]
    return own / len(losses.index)


def _weighted(losses: TaskLosses, balance: Tensor) -> Tensor:
    values = losses.values
    weights = balance.to(values)
    return ((weights if losses.is_complete else weights[list(losses.index)]) * values).mean()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return (
        torch.stack([t.float().square().sum() if t.dtype.itemsize < 4 else t.square().sum() for t in tensors])
        .sum()
        .sqrt()
    )


class RandomSharpness(Sharpness):
    r"""The largest change of the weighted loss over random perturbations of one length.

    .. math:: \max_j \tfrac1\delta |L_R(\theta' + \varepsilon_j) - L_R(\theta')|, \qquad \|\varepsilon_j\| = \delta

    Args:
        probes: how many perturbations.
        radius: their length :math:`\delta`.
        norm: ``"global"``: each is uniform on the sphere of that radius (equation 8); ``"tensor"``: in each tensor
            (released code).

    Note:
        Equation 9 prints no subtracted term, equation 8 and the released code have it. The released code perturbs
        deep copies, so its term reaches the adapter only through the unperturbed loss. A random direction has a
        cosine of about :math:`1/\sqrt d` with the gradient, so in high dimension this estimate is small and noisy.
        Only the largest probe is evaluated with a graph.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equations 8 and 9.
    """

    is_random = True

    def __init__(self, probes: int = 5, radius: float = 1e-4, *, norm: ProbeNorm = "global") -> None:
        self.probes = checks.positive_int("probes", probes)
        self.radius = checks.positive("radius", radius)
        self.norm: ProbeNorm = checks.one_of("norm", norm, get_args(ProbeNorm))

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
        """The largest absolute difference quotient."""
        base = _weighted(losses, balance)
        value = self._largest(session, batch, point, base.detach(), balance, generator)
        return (value - base).abs() / self.radius

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
        """The part of the unperturbed loss is a combination of the tasks' rows, so it needs no pass of its own."""
        base = _weighted(losses, balance).detach()
        value = self._largest(session, batch, point, base, balance, generator)
        change = value.detach() - base

        def directions() -> tuple[Tensor, Tensor]:
            # Both graphs share the adapter's part, so the first pass must leave it in place.
            ahead = flat(session.differentiate(value, session.trainable, retain_graph=True))
            rows = torch.stack([flat(row) for row in session.differentiate_tasks(losses, session.trainable)])
            behind = _mean_weights(losses, balance).to(rows) @ rows
            return (ahead - behind) * (torch.sign(change) / self.radius).to(rows), rows

        return Slopes(change.abs() / self.radius, directions)

    def _largest(
        self,
        session: AdapterSession,
        batch: Any,
        point: Point,
        base: Tensor,
        balance: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The weighted loss at the perturbation that changes it most.

        All are evaluated without a graph, and that one again with it: one more evaluation, and never more than one
        graph beside that of the unperturbed loss.
        """
        best: tuple[Tensor, dict[str, Tensor]] | None = None
        for _ in range(self.probes):
            directions = [
                torch.randn(t.shape, generator=generator, device=t.device, dtype=t.dtype) for t in point.values()
            ]
            whole = _norm(directions)
            for direction in directions:
                direction.mul_(
                    (self.radius / (whole if self.norm == "global" else direction.norm())).to(direction.dtype)
                )
            steps = dict(zip(point, directions, strict=True))
            if self.probes > 1:
                with torch.no_grad():
                    moved = {name: point[name] + step for name, step in steps.items()}
                    change = (_weighted(session.evaluate(batch, parameters=moved), balance) - base).abs()
            else:
                change = torch.zeros_like(base)
            if best is None or bool(change > best[0]):
                best = change, steps
        assert best is not None
        moved = {name: point[name] + step for name, step in best[1].items()}
        return _weighted(session.evaluate(batch, parameters=moved), balance)


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

    def __init__(self, radius: float = 1e-4) -> None:
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
        base = _weighted(losses, balance)
        gradients = session.differentiate(base, list(point.values()), retain_graph=True)
        moved = self._moved(point, gradients)
        ahead = _weighted(session.evaluate(batch, parameters=moved), balance)
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
        tensors = list(point.values())
        weights = _mean_weights(losses, balance)
        rows: list[Tensor] = []
        u: list[Tensor] = []
        # One task's gradient by the whole point at a time: what stays of it is its row, which is small, and its share.
        for weight, gradients in zip(weights, session.each_task_gradient(losses, tensors), strict=True):
            rows.append(_pull_back(tensors, session.trainable, gradients))
            if u:
                for total, gradient in zip(u, gradients, strict=True):
                    total.add_(gradient * weight.to(gradient))
            else:
                u = [gradient * weight.to(gradient) for gradient in gradients]
        moved = {name: t.detach().requires_grad_() for name, t in self._moved(point, u).items()}
        ahead = _weighted(session.evaluate(batch, parameters=moved), balance)
        base = _weighted(losses, balance).detach()

        def directions() -> tuple[Tensor, Tensor]:
            upward = session.differentiate(ahead, list(moved.values()))
            for a, b in zip(upward, u, strict=True):
                a.sub_(b).div_(self.radius)
            return _pull_back(tensors, session.trainable, upward), torch.stack(rows)

        return Slopes((ahead.detach() - base) / self.radius, directions)

    def _moved(self, point: Point, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        length = _norm(gradients)
        step = torch.where(length > 0, self.radius / length, torch.zeros_like(length))
        return {
            name: torch.addcmul(tensor, gradient, step.to(tensor.dtype))
            for (name, tensor), gradient in zip(point.items(), gradients, strict=True)
        }


def _pull_back(point: Sequence[Tensor], tensors: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """The chain rule through the adapter: gradients by the point to gradients by the adapter's tensors."""
    attached = [(p, v) for p, v in zip(point, vectors, strict=True) if p.grad_fn is not None]
    return flat(
        torch.autograd.grad(
            [p for p, _ in attached],
            tensors,
            [v for _, v in attached],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )


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
        """The gradient norm."""
        gradients = session.differentiate(_weighted(losses, balance), list(point.values()), create_graph=True)
        squared = torch.stack([g.square().sum() for g in gradients]).sum()
        # The root has no derivative at zero; a stationary point stays where it is.
        return torch.where(squared > 0, squared, torch.ones_like(squared)).sqrt() * (squared > 0)
