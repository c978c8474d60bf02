"""A mean over seeds with its interval, and differences that are taken seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from mtl_benchmarks.metrics import difference
from mtl_core import InvalidInputError

__all__ = ["Estimate", "paired_difference"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean.
        half_width: half the 95 % interval by Student's t over the seeds; None for one seed.
        n: how many seeds it is over.
    """

    mean: float
    half_width: float | None
    n: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value per seed; a value that is not finite makes the mean so, without an interval.

        Raises:
            InvalidInputError: there is no value.

        Example:
            >>> round(Estimate.of([1.0, 2.0, 3.0]).half_width, 3)
            2.484
        """
        if not values:
            raise InvalidInputError("`values` must hold one value per seed, got none.")
        if not all(math.isfinite(value) for value in values):
            return cls(math.nan, None, len(values))
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None)
        error = statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, error * float(stdtrit(len(values) - 1, 0.975)), len(values))

    def brief(self) -> str:
        """Two decimals, or powers of ten where a run has diverged."""
        return self.text(2) if abs(self.mean) < 1e4 else f"{self.mean:.1e}"

    def text(self, digits: int) -> str:
        """As tables print it."""
        spread = "" if self.half_width is None else f" ±{self.half_width:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], *, percent: bool = False
) -> Estimate | None:
    """Mean over the common seeds of a value minus the reference's, with its interval by Student's t.

    Runs of one seed share their start and their batches, so that their difference holds less noise than that of two
    means. What rounding makes of it counts as none, see :func:`~mtl_benchmarks.metrics.difference`.

    Args:
        values: seed → value.
        reference: seed → value of what is compared with.
        percent: the values are Δm.

    Returns:
        the estimate; None where fewer than two seeds are common, as one difference has no interval.

    Example:
        >>> difference = paired_difference({0: 3.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 3.0, 2: 6.0, 3: 0.0})
        >>> difference.mean, difference.n
        (2.0, 3)
    """
    seeds = sorted(values.keys() & reference.keys())
    if len(seeds) < 2:
        return None
    return Estimate.of([difference(values[seed], reference[seed], percent=percent) for seed in seeds])
