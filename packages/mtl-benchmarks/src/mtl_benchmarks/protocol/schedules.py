"""Learning rates as functions of where a run stands, so that a run that is taken up again has the same ones.

No schedule remembers anything: a rate follows from the number of steps taken and from the recorded evaluations. So
there is no state to save, and nothing that could differ after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mtl_benchmarks.protocol.plain_data import PlainData, read_fields
from mtl_core import InvalidParameterError
from mtl_core.checks import in_interval, non_negative, one_of, positive_int

__all__ = ["SCHEDULES", "Constant", "Cosine", "Place", "Plateau", "Schedule", "Span", "StepDecay", "named_metric"]


def named_metric(name: str, value: str) -> str:
    """Return ``value`` if it can be the name of a metric.

    Raises:
        InvalidParameterError: otherwise.
    """
    if not isinstance(value, str) or not value:
        raise InvalidParameterError(f"`{name}` must name a metric, got {value!r}.")
    return value


@dataclass(frozen=True)
class Span(PlainData):
    """A length of training.

    Args:
        count: how many, at least 1.
        unit: of what.

    Example:
        >>> Span(3, "epochs").steps(40)
        120
    """

    count: int
    unit: Literal["epochs", "steps"] = "epochs"

    def __post_init__(self) -> None:
        positive_int("count", self.count)
        one_of("unit", self.unit, ("epochs", "steps"))
        super().__post_init__()

    def steps(self, steps_per_epoch: int) -> int:
        """The same in steps."""
        return self.count * steps_per_epoch if self.unit == "epochs" else self.count


@dataclass(frozen=True)
class Place:
    """Where a run stands, as far as a learning rate depends on it.

    Attributes:
        step: steps taken.
        total: steps of the whole run.
        steps_per_epoch: steps in an epoch.
        reductions: how often a plateau has been met.
    """

    step: int
    total: int
    steps_per_epoch: int
    reductions: int = 0


@dataclass(frozen=True)
class Constant(PlainData):
    r"""The optimiser's own learning rate.

    Args:
        warm_up: length of a linear rise: step :math:`t` of :math:`n` has the share :math:`(t + 1) / n`; None: none.

    Example:
        >>> schedule = Constant(warm_up=Span(4, "steps"))
        >>> [schedule.rate(1.0, Place(t, 10, 5)) for t in (0, 1, 3, 9)]
        [0.25, 0.5, 1.0, 1.0]
    """

    kind: ClassVar[str] = "constant"
    warm_up: Span | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Constant:
        """What :meth:`as_dict` gave."""
        values = read_fields(cls, data)
        # Both are spans wherever they occur; subclasses add none but `every`.
        for name in ("warm_up", "every"):
            if values.get(name) is not None:
                values[name] = Span.from_dict(values[name])
        return cls(**values)

    @property
    def metric(self) -> str | None:
        """The validation metric that the schedule watches, if it does."""
        return None

    def rate(self, base: float, place: Place) -> float:
        """The learning rate of the next step.

        Args:
            base: the rate that the optimiser was given.
            place: where the run stands.
        """
        return self._decayed(base, place) * self._share(place)

    def reductions(self, values: Sequence[float], *, higher_is_better: bool) -> int:
        """How often a plateau has been met in the recorded values of :attr:`metric`."""
        return 0

    def _decayed(self, base: float, place: Place) -> float:
        return base

    def _share(self, place: Place) -> float:
        rise = self._rise(place)
        return (place.step + 1) / rise if place.step < rise else 1.0

    def _rise(self, place: Place) -> int:
        return 0 if self.warm_up is None else self.warm_up.steps(place.steps_per_epoch)


@dataclass(frozen=True)
class StepDecay(Constant):
    r"""Times :math:`\gamma` after every so many epochs or steps: :math:`\eta\, \gamma^{\lfloor t / n \rfloor}`.

    Args:
        warm_up: see :class:`Constant`.
        every: how long the rate stays.
        gamma: factor, in (0, 1].

    Example:
        >>> schedule = StepDecay(every=Span(100, "epochs"), gamma=0.5)
        >>> [schedule.rate(1e-4, Place(epoch * 398, 200 * 398, 398)) for epoch in (0, 99, 100, 199)]
        [0.0001, 0.0001, 5e-05, 5e-05]
    """

    kind: ClassVar[str] = "step"
    every: Span = Span(1, "epochs")
    gamma: float = 0.1

    def __post_init__(self) -> None:
        in_interval("gamma", self.gamma, 0.0, 1.0, "(]")
        super().__post_init__()

    def _decayed(self, base: float, place: Place) -> float:
        return base * self.gamma ** (place.step // self.every.steps(place.steps_per_epoch))


@dataclass(frozen=True)
class Cosine(Constant):
    r"""Half a cosine from the optimiser's rate to a share of it, over the steps after the warm-up.

    .. math:: \eta_t = \eta\,\big(s + (1 - s)\,\tfrac12 (1 + \cos \pi t / T)\big)

    Args:
        warm_up: see :class:`Constant`.
        final: the share :math:`s` that is left at the end, in [0, 1].

    Example:
        >>> schedule = Cosine()
        >>> [round(schedule.rate(1.0, Place(t, 4, 2)), 6) for t in (0, 2, 4)]
        [1.0, 0.5, 0.0]
    """

    kind: ClassVar[str] = "cosine"
    final: float = 0.0

    def __post_init__(self) -> None:
        in_interval("final", self.final, 0.0, 1.0)
        super().__post_init__()

    def _decayed(self, base: float, place: Place) -> float:
        rise = self._rise(place)
        # The cosine begins when the rise is over: counted from step 0, it would have fallen before it was reached.
        way = (place.step - rise) / max(1, place.total - rise)
        share = 0.5 * (1.0 + math.cos(math.pi * min(max(way, 0.0), 1.0)))
        return base * (self.final + (1.0 - self.final) * share)


@dataclass(frozen=True)
class Plateau(Constant):
    r"""Times a factor whenever a validation metric has not improved for more than ``patience`` evaluations.

    An evaluation is better than the best before it if :math:`M < (1 - \epsilon) M^*` where less is better, and if
    :math:`M > (1 + \epsilon) M^*` where more is: torch's ``ReduceLROnPlateau`` with its relative threshold.

    Args:
        warm_up: see :class:`Constant`.
        watched: a metric of the validation split; ``"delta_m"`` for Δm against the benchmark's baselines, ``"f1_*"``
            for the mean of the metrics that the pattern matches.
        factor: in (0, 1).
        patience: evaluations without improvement that are let pass.
        min_lr: the rate is not lowered below this.
        threshold: the :math:`\epsilon` above.

    Raises:
        InvalidParameterError: a setting is out of its range.

    Example:
        >>> schedule = Plateau(watched="delta_m", factor=0.5, patience=1)
        >>> schedule.reductions([3.0, 2.0, 2.0, 2.1], higher_is_better=False)
        1
    """

    kind: ClassVar[str] = "plateau"
    watched: str = "delta_m"
    factor: float = 0.1
    patience: int = 10
    min_lr: float = 0.0
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        named_metric("watched", self.watched)
        in_interval("factor", self.factor, 0.0, 1.0, "()")
        if type(self.patience) is not int or self.patience < 0:
            raise InvalidParameterError(f"`patience` must be a whole number of at least 0, got {self.patience!r}.")
        non_negative("min_lr", self.min_lr)
        non_negative("threshold", self.threshold)
        super().__post_init__()

    @property
    def metric(self) -> str | None:
        """The metric that is watched."""
        return self.watched

    def reductions(self, values: Sequence[float], *, higher_is_better: bool) -> int:
        """How often the rate has been lowered after these evaluations."""
        # The whole history anew each time: a few hundred numbers, and nothing to be saved.
        best = -math.inf if higher_is_better else math.inf
        without, found = 0, 0
        for value in values:
            # As torch's, for negative metrics too: there the bar lies on the other side of the best.
            bar = best * (1.0 + self.threshold if higher_is_better else 1.0 - self.threshold)
            if value > bar if higher_is_better else value < bar:
                best, without = value, 0
            else:
                without += 1
            if without > self.patience:
                found, without = found + 1, 0
        return found

    def _decayed(self, base: float, place: Place) -> float:
        # A group whose own rate is below min_lr is not raised to it.
        return max(base * self.factor**place.reductions, min(base, self.min_lr))


Schedule = Constant
"""Any of the schedules; the constant one is what the others build on."""

SCHEDULES: tuple[type[Constant], ...] = (Constant, StepDecay, Cosine, Plateau)
"""Every schedule, as ``kind`` names it."""
