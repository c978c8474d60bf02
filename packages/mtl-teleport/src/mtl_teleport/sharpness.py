r"""Sharpness: how steep the weighted loss is at the adapted point :math:`\theta' = \theta + \Delta\theta(\varphi)`.

With :math:`L_R = \frac1k\sum_i R_i L_i` over the k tasks present, every estimate here stands for :math:`\|\nabla
L_R(\theta')\|` and is differentiable by :math:`\varphi`, through the perturbation as well: perturbed losses are
evaluated functionally at :math:`\theta'(\varphi) + \varepsilon`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from mtl_core import checks
from mtl_core.problem import TaskLosses
from mtl_teleport.adapters.protocol import AdapterSession

__all__ = ["AscentSharpness", "ExactSharpness", "ProbeNorm", "RandomSharpness", "Sharpness", "SharpnessKind"]

SharpnessKind = Literal["random", "ascent", "exact"]
"""Names of the three estimates."""

ProbeNorm = Literal["global", "tensor"]
"""Whether a perturbation has the length ``radius`` as a whole or in each tensor."""


class Sharpness(Protocol):
    """An estimate of the gradient norm of the weighted loss, as a term to be maximised."""

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
        ...


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


class RandomSharpness:
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
        Only the graph of the largest probe is kept.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equations 8 and 9.
    """

    def __init__(self, probes: int = 5, radius: float = 1e-4, *, norm: ProbeNorm = "global") -> None:
        self.probes = checks.positive_int("probes", probes)
        self.radius = checks.positive("radius", radius)
        self.norm: ProbeNorm = checks.one_of("norm", norm, get_args(ProbeNorm))

    def __call__(
        self, session: AdapterSession, batch: Any, balance: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[TaskLosses, Tensor]:
        """Losses and the largest absolute difference quotient."""
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        base = _weighted(losses, balance)
        best: Tensor | None = None
        for _ in range(self.probes):
            directions = [
                torch.randn(t.shape, generator=generator, device=t.device, dtype=t.dtype) for t in point.values()
            ]
            whole = _norm(directions)
            moved = {
                name: tensor
                + direction * (self.radius / (whole if self.norm == "global" else direction.norm())).to(tensor.dtype)
                for (name, tensor), direction in zip(point.items(), directions, strict=True)
            }
            value = (_weighted(session.evaluate(batch, parameters=moved), balance) - base).abs()
            if best is None or bool(value.detach() > best.detach()):
                best = value
        assert best is not None
        return losses, best / self.radius


class AscentSharpness:
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

    def __call__(
        self, session: AdapterSession, batch: Any, balance: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[TaskLosses, Tensor]:
        """Losses and the difference quotient along the gradient."""
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        base = _weighted(losses, balance)
        gradients = session.differentiate(base, list(point.values()), retain_graph=True)
        length = _norm(gradients)
        step = torch.where(length > 0, self.radius / length, torch.zeros_like(length))
        moved = {
            name: tensor + gradient * step.to(tensor.dtype)
            for (name, tensor), gradient in zip(point.items(), gradients, strict=True)
        }
        ahead = _weighted(session.evaluate(batch, parameters=moved), balance)
        return losses, (ahead - base) / self.radius


class ExactSharpness:
    r"""The gradient norm :math:`\|\nabla L_R(\theta')\|` itself.

    Its derivative is a Hessian-vector product through the adapter's tensors.

    Note:
        Beyond the paper. Every operation of the model must be twice differentiable.
    """

    def __call__(
        self, session: AdapterSession, batch: Any, balance: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[TaskLosses, Tensor]:
        """Losses and the gradient norm."""
        point = session.parameters()
        losses = session.evaluate(batch, parameters=point)
        gradients = session.differentiate(_weighted(losses, balance), list(point.values()), create_graph=True)
        squared = torch.stack([g.square().sum() for g in gradients]).sum()
        # The root has no derivative at zero; a stationary point stays where it is.
        return losses, torch.where(squared > 0, squared, torch.ones_like(squared)).sqrt() * (squared > 0)
