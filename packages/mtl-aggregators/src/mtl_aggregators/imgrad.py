"""IMGrad: methods with two terms, weighed by how balanced the tasks are."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.periodic_weights import HeldWeights
from mtl_aggregators.cagrad import CAGrad
from mtl_aggregators.fairgrad import FairGrad
from mtl_aggregators.nash_mtl import NashMTL
from mtl_aggregators.solvers import device
from mtl_aggregators.solvers.device.rows import Backend, unit_rows
from mtl_aggregators.solvers.rows import RESOLUTION
from mtl_aggregators.solvers.solution import Vector
from mtl_aggregators.stationarity import cosine_to_closest
from mtl_core import InvalidParameterError, checks

__all__ = ["Augmentable", "IMGrad"]

Measure = Literal["pm", "lm", "dc"]


@runtime_checkable
class Augmentable(Protocol):
    """A method whose objective has a term for the mean and one for the individual tasks."""

    def augmented(self, gramian: Vector, balance: float) -> Vector:
        """The weights ``[m]`` with the terms weighed by the balance ``κ`` in [0, 1] of the tasks."""


@runtime_checkable
class AugmentableOnDevice(Protocol):
    """The same for Gramians that stay on their device."""

    backend: Backend

    def augmented_on_device(self, gramian: Tensor, balance: Tensor) -> Tensor:
        """The weights ``[m]``, without waiting for the device."""


class IMGrad(GramianMethod):
    r"""Imbalance-sensitive gradients: the more the tasks are out of balance, the more the worst one decides.

    The balance of the tasks is measured by :math:`\kappa = \cos(g_0, g_m)` with :math:`g_m` the min-norm point. On
    CAGrad, whose update is then formed as ever,

    .. math:: w = \arg\min_{w\in\Delta} (1.5 - \kappa) \langle g_w, g_0\rangle + \kappa c \|g_0\|\|g_w\|

    and on Nash-MTL and FairGrad :math:`(1 - \kappa)\, G w = \kappa\, w^{-1/\alpha}`.

    Args:
        base: ``"cagrad"`` (with ``c = 0.8``, as in the released scripts), ``"nashmtl"``, ``"fairgrad"``, or such a
            method with settings of its own. Anything with ``augmented(gramian, balance)`` will do.
        measure: of balance. ``"pm"`` (plumbline): as above. ``"lm"``: the cosine of :math:`g_0` with the shortest
            gradient, 0 where it is negative. ``"dc"``: :math:`\min_i\|g_i\| / \max_i\|g_i\|`.
        update_every: compute weights in every k-th step and reuse them between. The count and the weights are part of
            ``state_dict()``.
        max_balance: largest :math:`\kappa` on Nash-MTL and FairGrad, below 1.
        paper_scale: the released scale of the base named: that of ``CAGrad(c=0.8, paper_scale=True)`` or the like. A
            base that is given as a method has a scale of its own.
        backend: where the weights are computed; see ``GramianMethod``. The base's own is not looked at.

    Raises:
        InvalidParameterError: ``base`` or ``measure`` is not an option, another setting is out of its range,
            ``paper_scale`` is asked of a base that is given as a method, or such a base keeps weights from step to
            step.

    Note:
        On Nash-MTL and FairGrad the augmented equation is the plain one with the weights multiplied by
        :math:`(\kappa/(1-\kappa))^{\alpha/(1+\alpha)}`: it changes the length of the update, not its direction. As
        :math:`\kappa \to 1` that grows without bound, hence ``max_balance``. ``rescale`` is the base's: the released
        update is ``IMGrad(paper_scale=True)``. Zero gradients do not count in the measure.

    References:
        Zhou et al., *Injecting Imbalance Sensitivity for Multi-Task Learning*, IJCAI 2025, equation 11 and
        appendix 3.3.

    Example:
        >>> import torch
        >>> IMGrad()(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([1.5000, 1.7649])
    """

    def __init__(
        self,
        base: Literal["cagrad", "nashmtl", "fairgrad"] | Augmentable = "cagrad",
        *,
        measure: Measure = "pm",
        update_every: int = 1,
        max_balance: float = 0.99,
        paper_scale: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(backend=backend)
        if isinstance(base, str):
            chosen = checks.one_of("base", base, ("cagrad", "nashmtl", "fairgrad"))
            made: dict[str, Any] = {
                "cagrad": CAGrad(c=0.8, paper_scale=paper_scale),
                "nashmtl": NashMTL(),
                "fairgrad": FairGrad(paper_scale=paper_scale),
            }
            self.base: Any = made[chosen]
        elif paper_scale:
            raise InvalidParameterError(
                f"`paper_scale` must be set on the base, got it beside a {type(base).__name__}. "
                "Give IMGrad(CAGrad(c=0.8, paper_scale=True)) or the like."
            )
        elif isinstance(base, Augmentable) and isinstance(base, GramianMethod):
            self.base = base
        else:
            raise InvalidParameterError(
                "`base` must be 'cagrad', 'nashmtl', 'fairgrad' or a method with augmented(gramian, balance), got "
                f"{type(base).__name__}."
            )
        if self.base.has_memory:
            raise InvalidParameterError(
                f"`base` must compute its weights in every step, got a {type(self.base).__name__} that keeps some. "
                "Give IMGrad(..., update_every=k) instead."
            )
        self.measure = checks.one_of("measure", measure, ("pm", "lm", "dc"))
        self._held = HeldWeights("update_every", update_every, "IMGrad")
        self.max_balance = checks.in_interval("max_balance", max_balance, 0.0, 1.0, "[)")
        self.last_balance: float | None = None
        if not self._has_device_solver:
            self.on_host_only()

    @property
    def _has_device_solver(self) -> bool:
        # A base that chose the host for itself, as for its reference solvers, has none for this one either.
        own = isinstance(self.base, AugmentableOnDevice) and self.base.backend != "host"
        return own and self.update_every == 1

    @property
    def update_every(self) -> int:
        """How many steps the weights last."""
        return self._held.every

    @property
    def c(self) -> float:
        """CAGrad's radius, where that is the base."""
        return float(self.base.c)

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        """Whether weights of earlier steps are used again."""
        return self._held.every > 1

    @property
    def facts(self) -> Facts:
        """The base's, where the augmentation keeps them."""
        own: Facts = self.base.facts
        laws: set[Law] = set()
        if self.update_every == 1:
            laws = set(own.laws) - {"simplex"}
            if isinstance(self.base, CAGrad):
                # CAGrad's own law holds for its own trade of the two terms only.
                laws -= {"non_conflicting"}
            elif self.measure == "pm":
                # κ = 0 there, and with it the weights.
                laws |= {"zero_when_stationary"}
        grown = 1.0 if isinstance(self.base, CAGrad) else self._growth()
        scale = own.scale
        if grown != 1.0:
            scale = Scale(f"{grown:.3g} {own.scale.formula}", lambda m: grown * own.scale(m))
        return Facts(
            needs="gramian",
            homogeneity=own.homogeneity,
            scale=scale,
            paper_scale=own.paper_scale,
            paper_heads=own.paper_heads,
            laws=frozenset(laws),
            reference="Zhou et al., IJCAI 2025",
        )

    def _growth(self) -> float:
        """By how much the base's weights grow where the tasks are as balanced as they may be."""
        # A copy is asked, which keeps the solution and its events to itself: facts may be read at any time.
        found: Vector = deepcopy(self.base).augmented(np.ones((1, 1)), self.max_balance)
        return found.item()

    def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
        """The weights ``[m]``; see the class."""
        return self._held.get(gramian, lambda: self._augment(gramian))

    def _augment(self, gramian: Vector) -> Vector:
        balance = balance_of(gramian, self.measure)
        self.last_balance = balance
        if not isinstance(self.base, CAGrad):
            balance = min(balance, self.max_balance)
        weights: Vector = self.base.augmented(gramian, balance)
        if self.base.last_solution is not None:
            self.record(self.base.last_solution)
        # They are told as IMGrad's own, and would pile up in the base.
        self.base.pop_events()
        return weights

    def solve_on_device(self, gramian: Tensor) -> Tensor:
        """The weights ``[m]``, in torch; ``last_balance`` is not known then."""
        if not self._has_device_solver:
            return super().solve_on_device(gramian)
        self.last_balance = None
        balance = balance_on_device(gramian, self.measure)
        if not isinstance(self.base, CAGrad):
            balance = balance.clamp(max=self.max_balance)
        weights: Tensor = self.base.augmented_on_device(gramian, balance)
        return weights

    def reset(self) -> None:
        """Forget the weights that are being reused."""
        self._held.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """The step count and the weights in use."""
        return self._held.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue where the saved method stood."""
        self._held.load(state)


def balance_of(gramian: Vector, measure: Measure) -> float:
    """The balance of the tasks, in [0, 1]; 0 without a gradient.

    Args:
        gramian: ``[m, m]``, float64, finite.
        measure: as for ``IMGrad``.
    """
    if measure == "pm":
        return cosine_to_closest(gramian)
    squares = gramian.diagonal()
    active = squares > 0.0
    if not active.any():
        return 0.0
    norms = np.sqrt(squares[active])
    if measure == "dc":
        return float(norms.min() / norms.max())
    total = float((gramian / squares.max()).sum())
    if total <= 0.0:
        return 0.0
    rows = np.flatnonzero(active)
    # Of gradients that are equally short, the one that the mean serves least, so that their order does not matter.
    shortest = rows[norms <= norms.min() * (1.0 + 1e-9)]
    along = float((gramian[shortest] / squares.max()).sum(axis=1).min()) * float(norms.max() / norms.min())
    return min(1.0, max(0.0, along / float(np.sqrt(total))))


def balance_on_device(gramian: Tensor, measure: Measure) -> Tensor:
    """``balance_of`` for a float64 Gramian ``[m, m]`` on its device, without waiting for it."""
    rows = unit_rows(gramian)
    scaled = gramian / rows.scale.square()
    total = scaled.sum()
    if measure == "dc":
        least = torch.where(rows.active, rows.norms, torch.inf).amin()
        return torch.where(torch.isfinite(least), least, 0.0)
    if measure == "pm":
        weights = device.min_norm(scaled)
        image = scaled @ weights
        squared = weights @ image
        rounding = 4.0 * RESOLUTION * len(scaled)
        usable = (squared > rounding * (weights.square() @ scaled.diagonal())) & (total > rounding * scaled.trace())
        cosine = image.sum() / torch.where(usable, squared, 1.0).sqrt() / torch.where(usable, total, 1.0).sqrt()
        return torch.where(usable, cosine, 0.0).clamp(0.0, 1.0)
    least = torch.where(rows.active, rows.norms, torch.inf).amin()
    shortest = rows.active & (rows.norms <= least * (1.0 + 1e-9))
    along = torch.where(shortest, scaled.sum(dim=1), torch.inf).amin() / least
    usable = torch.isfinite(along) & (total > 0.0)
    return torch.where(usable, along / torch.where(usable, total, 1.0).sqrt(), 0.0).clamp(0.0, 1.0)
