"""The two-objective problem on which averaging gradients gets stuck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from mtl_benchmarks.batching.batches import BatchSource, Repeated
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidParameterError, Problem
from mtl_core.checks import positive, positive_int

__all__ = ["STARTS", "Point", "Toy", "objectives", "optimum", "pareto_set"]

STARTS: tuple[tuple[float, float], ...] = (
    (-8.5, 7.5),
    (-8.5, -5.0),
    (9.0, 9.0),
    (0.0, 0.0),
    (-7.5, -0.5),
    (9.0, -1.0),
)
"""All starting points in use: the three of CAGrad (0, 1, 2) and the five of Nash-MTL and FAMO (0, 2, 3, 4, 5)."""

_SETS: dict[str, tuple[int, ...]] = {"all": (0, 1, 2, 3, 4, 5), "cagrad": (0, 1, 2), "nash": (0, 2, 3, 4, 5)}
_LOWER = 5e-6
_VALLEYS = torch.tensor([7.0, -7.0], dtype=torch.float64)
_RIDGES = torch.tensor([-3.5, 3.5], dtype=torch.float64)
_SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)


def objectives(point: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""The two losses at a point.

    .. math::
        h_1 = \log\max(|\tfrac12(-x_1-7) - \tanh(-x_2)|, \ell) + 6, \quad
        h_2 = \log\max(|\tfrac12(-x_1+3) + \tanh(-x_2) + 2|, \ell) + 6

        q_{1,2} = \tfrac{1}{10}\big((-x_1 \pm 7)^2 + \tfrac{1}{10}(-x_2-8)^2\big) - 20, \quad
        c_{1,2} = \max(\tanh(\pm \tfrac12 x_2), 0)

        L_1 = \text{scale}\,(h_1 c_1 + q_1 c_2), \qquad L_2 = h_2 c_1 + q_2 c_2, \qquad \ell = 5 \cdot 10^{-6}

    A bound that is just met passes its gradient on, so at :math:`x_2 = 0` both :math:`c` do and (0, 0) is no
    stationary point.

    Args:
        point: [..., 2] float64.
        scale: factor on the first loss, positive.

    Returns:
        [..., 2].

    References:
        Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, appendix (scale 1);
        Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, appendix (scale 0.1).

    Example:
        >>> [round(value, 6) for value in objectives(torch.tensor([9.0, -1.0], dtype=torch.float64)).tolist()]
        [-8.831059, 2.814293]
    """
    # Both losses at once, with as few tensor operations as possible: a step costs interpreter time and nothing else.
    x1, x2 = point[..., 0:1], point[..., 1:2]
    ridge = torch.addcmul(_RIDGES - 0.5 * x1, _SIGNS, torch.tanh(x2))
    upper = ridge.abs().clamp(min=_LOWER).log() + 6
    lower = ((x1 - _VALLEYS).square() + 0.1 * (x2 + 8).square()) * 0.1 - 20
    share = (_SIGNS * torch.tanh(0.5 * x2)).clamp(min=0)
    losses = upper * share[..., 0:1] + lower * share[..., 1:2]
    return losses if scale == 1 else losses * losses.new_tensor([scale, 1.0])


@cache
def optimum(*, scale: float = 1.0) -> tuple[float, float]:
    r"""The minimiser of the mean of the two losses.

    For :math:`x_2 < 0` the sum is :math:`\tanh(-\tfrac12 x_2)\,Q(x)` with the quadratic
    :math:`Q = \text{scale}\,q_1 + q_2`, so :math:`x_1` minimises Q, and :math:`x_2` is where the derivative vanishes,
    found by bisection.

    Args:
        scale: factor on the first loss, positive.

    Returns:
        Its coordinates, to rounding.

    Example:
        >>> round(optimum()[1], 6)
        -8.35511
    """
    positive("scale", scale)
    # The two vertices at ±7, weighted by the factors of their parabolas.
    x1 = 7.0 * (scale - 1) / (scale + 1)
    floor = scale * ((x1 - 7) ** 2 / 10 - 20) + (x1 + 7) ** 2 / 10 - 20

    def slope(x2: float) -> float:
        quadratic = floor + (scale + 1) * (x2 + 8) ** 2 / 100
        return -0.5 * quadratic / math.cosh(x2 / 2) ** 2 + math.tanh(-x2 / 2) * (scale + 1) * (x2 + 8) / 50

    # The quadratic has its minimum at -8, where it is negative, and the factor in front grows towards smaller x2, which
    # moves the minimum of the product below -8.
    low, high = -12.0, -8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return x1, (low + high) / 2


@cache
def pareto_set() -> tuple[tuple[float, float], ...]:
    r"""Points of the lower valley at which no loss falls without the other rising, from the second's minimum on.

    Each is the minimiser of :math:`w L_1 + (1 - w) L_2` for some w, so that it is the same for every scale.

    Example:
        >>> points = pareto_set()
        >>> [round(x, 4) for x in (*points[0], *points[-1])]
        [-7.0, -8.4345, 7.0, -8.4345]
    """
    # Denser towards the ends, where the set is steepest; at a share of exactly 1 the scale would be infinite.
    shares = [min(max(0.5 - 0.5 * math.cos(math.pi * k / 120), 1e-9), 1 - 1e-9) for k in range(121)]
    return tuple(optimum(scale=share / (1 - share)) for share in shares)


class Point(nn.Module):
    """A point of the plane as a model.

    Args:
        start: its coordinates.
    """

    def __init__(self, start: Sequence[float]) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(list(start), dtype=torch.float64))


class Toy(Benchmark):
    """A two-dimensional landscape with two ridges on which the mean gradient is caught.

    Every step has both gradients exactly, so what differs between methods is where they go. The mean of the two
    losses has its minimum at (0, -8.355).

    Args:
        start: ``"all"`` six starts, the three of ``"cagrad"``, the five of ``"nash"``, or the number of one of
            :data:`STARTS`.
        scale: factor on the first loss: 1 in CAGrad's setting, 0.1 in that of Nash-MTL and FAMO.
        steps_per_epoch: steps between two evaluations.

    Raises:
        InvalidParameterError: ``start`` is none of those named above, a number is not positive, or other tasks than
            both are asked for.

    Example:
        >>> [case.case_options()["start"] for case in Toy(start="cagrad").cases()]
        [0, 1, 2]
    """

    name: ClassVar[str] = "toy"
    tasks: ClassVar[tuple[str, ...]] = ("first", "second")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss_first", "first", "", higher_is_better=False),
        Metric("loss_second", "second", "", higher_is_better=False),
        Metric("distance", "both", "", higher_is_better=False),
    )
    has_single_task_runs: ClassVar[bool] = False
    caveats: ClassVar[tuple[str, ...]] = (
        "Only the method draws random numbers: all seeds of a method that draws none give the same path.",
    )
    # Two losses fix both directions of the plane, so only the penalised search can move; the losses cross zero, so no
    # relative drift can be asked for. Twenty steps of length 0.01 move by 0.02, too little to leave the ridge in time;
    # of length 0.1 by 0.5.
    teleport_options: ClassVar[Mapping[str, Any]] = {
        "adapter": "dense",
        "search": "penalty",
        "sharpness": "random",
        "lr": 0.1,
        "aim": None,
        "max_drift": None,
    }

    def __init__(
        self,
        *,
        start: Literal["all", "cagrad", "nash"] | int = "all",
        scale: float = 1.0,
        steps_per_epoch: int = 1000,
    ) -> None:
        if isinstance(start, bool) or (start not in _SETS and start not in range(len(STARTS))):
            raise InvalidParameterError(
                f"`start` must be one of {', '.join(map(repr, _SETS))} or 0 to {len(STARTS) - 1}, got {start!r}."
            )
        self.start = start
        self.scale = positive("scale", scale)
        self.steps_per_epoch = positive_int("steps_per_epoch", steps_per_epoch)
        self._optimum = torch.tensor(optimum(scale=self.scale), dtype=torch.float64)

    @property
    def training(self) -> Training:
        """50,000 steps of Adam with learning rate 1e-3."""
        return Training(epochs=50, batch_size=1, optimizer=OptimizerChoice("adam", {"lr": 1e-3}))

    def cases(self) -> Sequence[Benchmark]:
        """One run per start."""
        if isinstance(self.start, int):
            return (self,)
        return tuple(Toy(start=k, scale=self.scale, steps_per_epoch=self.steps_per_epoch) for k in _SETS[self.start])

    def case_options(self) -> dict[str, Any]:
        """The start."""
        return {"start": self.start}

    def build(self) -> nn.Module:
        """The starting point.

        Raises:
            InvalidParameterError: ``start`` names several points; take one of :meth:`cases`.
        """
        if not isinstance(self.start, int):
            raise InvalidParameterError(
                f"`start` must be a number to build one point, got {self.start!r}. Take one of cases()."
            )
        return Point(STARTS[self.start])

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Both objectives at the point."""
        if tuple(tasks) != self.tasks:
            raise InvalidParameterError(f"`tasks` must be {self.tasks}, got {tuple(tasks)}.")
        scale = self.scale
        return Problem(
            model, lambda point, _: objectives(cast(Point, point).x, scale=scale), shared=model, tasks=self.tasks
        )

    def batches(self, *, batch_size: int, seed: int, device: str) -> Repeated[None]:
        """Steps without data, on the CPU only.

        Raises:
            InvalidParameterError: ``device`` is another one; a step on two numbers gains nothing there.
        """
        if device != "cpu":
            raise InvalidParameterError(f"`device` must be 'cpu' for the toy problem, got {device!r}.")
        return Repeated(None, self.steps_per_epoch)

    def probe_batches(self, batches: BatchSource[Any]) -> None:
        """None: there is only one batch."""

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, device: str) -> Evaluation:
        """Both losses, the point and its distance to the minimiser of the mean."""
        x = cast(Point, model).x
        first, second = objectives(x, scale=self.scale).tolist()
        return {
            "test": {
                "loss_first": first,
                "loss_second": second,
                "distance": float((x - self._optimum).norm()),
                "x1": float(x[0]),
                "x2": float(x[1]),
            }
        }

    def trace(self, model: nn.Module) -> list[float] | None:
        """The point itself."""
        return cast("list[float]", cast(Point, model).x.tolist())
