r"""Whether teleports help, over all methods of a study: paired differences, tested together.

For a way of moving and what it is compared with (the method alone, or a control), each seed gives one number, the mean
over the methods of the measure with it minus without. Student's t-test of these numbers against 0 is two-sided; the
tests of all ways, references and benchmarks that are looked at together are one family, corrected by Holm's procedure,
which holds the chance of any false finding below the level whatever the tests have to do with each other.

References:
    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.studies.records import ALONE
from mtl_benchmarks.studies.rows import StudyRow, controls_of, ways_of
from mtl_core import InvalidInputError

__all__ = ["LEVEL", "Verdict", "holm", "p_value", "untested", "verdicts"]

LEVEL = 0.05
"""Chance of any false finding in a family that is accepted."""


@dataclass(frozen=True)
class Verdict:
    """One test of a family.

    Attributes:
        benchmark: on which, with its case.
        way: what moves the parameters.
        reference: what it is compared with: the method alone, or the label of a control.
        differences: one per seed, the mean over the methods; below 0 where the way is better.
        estimate: their mean and its 95 % interval.
        p: of the t-test by itself.
        adjusted: the same after Holm's correction over the family.
        methods: those that have runs of both; the mean is over them.
        lacking: those that have not.
        left_out: seeds that some of the methods have and not all.
    """

    benchmark: str
    way: str
    reference: str
    differences: tuple[float, ...]
    estimate: Estimate
    p: float
    adjusted: float
    methods: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the way is better than the reference beyond chance."""
        return self.estimate.mean < 0.0 and self.adjusted < LEVEL


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of Student's t-test that the mean of one difference per seed is 0.

    Raises:
        InvalidInputError: there are fewer than two.

    Example:
        >>> round(p_value([1.0, 2.0, 3.0]), 4)  # t = 2 √3, two degrees of freedom
        0.0742
    """
    n = len(differences)
    if n < 2:
        raise InvalidInputError(f"`differences` must hold at least two seeds, got {n}.")
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    # t is 0/0 or infinite: methods that draw nothing give the same difference with every seed.
    if spread == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return 2.0 * float(stdtr(n - 1, -abs(mean) * math.sqrt(n) / spread))


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Adjusted p-values of a family, in the order given.

    With :math:`p_{(1)} \le \dots \le p_{(k)}`, the i-th is
    :math:`\max_{j \le i} \min(1, (k - j + 1)\, p_{(j)})`; a test holds at a level if its adjusted p is below it.

    Example:
        >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    adjusted, least = [0.0] * len(order), 0.0
    for rank, k in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = least
    return adjusted


@dataclass(frozen=True)
class _Test:
    """A way against a reference, over the methods that have runs of both and the seeds that all of these have."""

    benchmark: str
    way: str
    reference: str
    rows: Sequence[StudyRow]
    differences: Sequence[float]
    left_out: tuple[int, ...]


def verdicts(studies: Mapping[str, Sequence[StudyRow]]) -> list[Verdict]:
    """Test every way against the methods alone and each of its controls, as one family.

    Args:
        studies: benchmark → its rows. A test is over the methods that have runs of both; a seed counts where all of
            them have it for both. With fewer than two such seeds there is no test: see :func:`untested`.
    """
    tests = [test for test in _tests(studies) if len(test.differences) > 1]
    plain = [p_value(test.differences) for test in tests]
    return [
        Verdict(
            test.benchmark,
            test.way,
            test.reference,
            tuple(test.differences),
            Estimate.of(test.differences),
            p,
            adjusted,
            methods=tuple(row.name for row in test.rows),
            lacking=tuple(row.name for row in studies[test.benchmark] if row not in test.rows),
            left_out=test.left_out,
        )
        for test, p, adjusted in zip(tests, plain, holm(plain), strict=True)
    ]


def untested(studies: Mapping[str, Sequence[StudyRow]]) -> list[str]:
    """Which ways could not be tested against what, for want of common seeds."""
    return [
        f"{test.way} against {test.reference} on {test.benchmark}"
        for test in _tests(studies)
        if len(test.differences) < 2
    ]


def _tests(studies: Mapping[str, Sequence[StudyRow]]) -> Iterator[_Test]:
    for benchmark, rows in studies.items():
        for way in ways_of(rows):
            for reference in (ALONE, *controls_of(rows, way).values()):
                own = [row for row in rows if way in row.measure and reference in row.measure]
                by_row = [set(row.measure[way]) & set(row.measure[reference]) for row in own]
                common = set.intersection(*by_row) if by_row else set()
                some = {seed for row in own for each in (way, reference) for seed in row.measure[each]}
                differences = _over_methods(own, way, reference, sorted(common))
                yield _Test(benchmark, way, reference, own, differences, tuple(sorted(some - common)))


def _over_methods(rows: Sequence[StudyRow], way: str, reference: str, seeds: Sequence[int]) -> list[float]:
    metric = rows[0].metric if rows else None
    sign = -1.0 if metric is not None and metric.higher_is_better else 1.0
    found = [row.minus(way, reference) for row in rows]
    # + 0.0: none is none in either direction, and no −0.
    return [sign * statistics.fmean(by_seed[seed] for by_seed in found) + 0.0 for seed in seeds]
