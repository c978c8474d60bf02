"""What a protocol makes of a run's evaluations: when it ends before its end, and which of them stand for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from mtl_benchmarks.protocol.plain_data import PlainData
from mtl_benchmarks.protocol.schedules import named_metric
from mtl_core.checks import non_negative, one_of, positive_int

__all__ = ["REPORTED", "Best", "EarlyStopping", "Last", "MeanOfLast", "Reported"]


@dataclass(frozen=True)
class EarlyStopping(PlainData):
    """The end of a run whose validation metric no longer improves.

    Args:
        metric: a metric of the validation split, as for :class:`~mtl_benchmarks.protocol.schedules.Plateau`.
        patience: the run ends after so many evaluations in a row without a new best.
        min_change: what a new best must be better by.

    Example:
        >>> EarlyStopping("error", patience=2).is_over([3.0, 2.0, 2.5, 2.0], higher_is_better=False)
        True
    """

    metric: str
    patience: int
    min_change: float = 0.0

    def __post_init__(self) -> None:
        named_metric("metric", self.metric)
        positive_int("patience", self.patience)
        non_negative("min_change", self.min_change)
        super().__post_init__()

    def is_over(self, values: Sequence[float], *, higher_is_better: bool) -> bool:
        """Whether the run ends after these evaluations."""
        best, without = -math.inf, 0
        for value in values:
            gain = value if higher_is_better else -value
            # NaN is no new best: the comparison does not hold.
            if gain > best + self.min_change:
                best, without = gain, 0
            else:
                without += 1
        return without >= self.patience


@dataclass(frozen=True)
class Last(PlainData):
    """The test values of the last evaluation stand for the run."""

    kind: ClassVar[str] = "last"

    @property
    def metric(self) -> str | None:
        """The validation metric that chooses, if one does."""
        return None

    def chosen(self, values: Sequence[float], *, higher_is_better: bool) -> slice:
        """The evaluations that stand for the run, from the values of :attr:`metric`, one per evaluation."""
        return slice(len(values) - 1, len(values))


@dataclass(frozen=True)
class MeanOfLast(Last):
    """The mean of the test values of the last evaluations stands for the run; of all if there are fewer.

    Args:
        count: how many evaluations.
    """

    kind: ClassVar[str] = "mean-of-last"
    count: int = 10

    def __post_init__(self) -> None:
        positive_int("count", self.count)
        super().__post_init__()

    def chosen(self, values: Sequence[float], *, higher_is_better: bool) -> slice:
        """The last evaluations."""
        return slice(max(0, len(values) - self.count), len(values))


@dataclass(frozen=True)
class Best(Last):
    """The test values at the best evaluation on the validation split stand for the run.

    Args:
        by: a metric of the validation split, as for :class:`~mtl_benchmarks.protocol.schedules.Plateau`.
        ties: which of several equally good evaluations.

    Example:
        >>> Best(by="error").chosen([3.0, 1.0, 2.0, 1.0], higher_is_better=False)
        slice(3, 4, None)
    """

    kind: ClassVar[str] = "best"
    by: str = "delta_m"
    ties: Literal["later", "earlier"] = "later"

    def __post_init__(self) -> None:
        named_metric("by", self.by)
        one_of("ties", self.ties, ("later", "earlier"))
        super().__post_init__()

    @property
    def metric(self) -> str | None:
        """The metric that chooses."""
        return self.by

    def chosen(self, values: Sequence[float], *, higher_is_better: bool) -> slice:
        """The best evaluation; one whose value is not a number is never it, unless all are such."""
        gains = [value if higher_is_better else -value for value in values]
        # `max` of a list with NaN depends on its order.
        gains = [-math.inf if math.isnan(gain) else gain for gain in gains]
        best = max(gains)
        ties = [k for k, gain in enumerate(gains) if gain == best]
        k = ties[-1] if self.ties == "later" else ties[0]
        return slice(k, k + 1)


Reported = Last
"""Any of the rules; the last evaluation is what the others build on."""

REPORTED: tuple[type[Last], ...] = (Last, MeanOfLast, Best)
"""Every rule for what stands for a run, as ``kind`` names it."""
