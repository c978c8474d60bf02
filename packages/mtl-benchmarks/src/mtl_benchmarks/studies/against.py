"""Whether methods end better than others, over the benchmarks of a study: paired differences, tested together.

Each seed gives one number, the measure of a method alone minus that of the reference alone. The tests of all methods,
references and benchmarks that are looked at together are one family, see :mod:`mtl_benchmarks.studies.verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.studies.rows import StudyRow
from mtl_benchmarks.studies.verdict import LEVEL, holm, p_value
from mtl_core import InvalidInputError

__all__ = ["AgainstMethod", "against", "too_few"]


@dataclass(frozen=True)
class AgainstMethod:
    """One test of a family: a method alone against another one alone.

    Attributes:
        benchmark: on which, with its case.
        method: its name in the study.
        reference: the other's.
        differences: seed → method minus reference; below 0 where the method is better.
        estimate: their mean and its 95 % interval.
        p: of the two-sided t-test by itself.
        adjusted: the same after Holm's correction over the family.
    """

    benchmark: str
    method: str
    reference: str
    differences: Mapping[int, float]
    estimate: Estimate
    p: float
    adjusted: float

    @property
    def holds(self) -> bool:
        """Whether the two differ beyond chance, in either direction."""
        return self.adjusted < LEVEL

    @property
    def is_better(self) -> bool:
        """Whether the method ends better in the mean."""
        return self.estimate.mean < 0.0


def against(
    studies: Mapping[str, Sequence[StudyRow]], references: Sequence[str], *, methods: Sequence[str] = ()
) -> list[AgainstMethod]:
    """Test methods against references on every benchmark that has both, as one family.

    Args:
        studies: benchmark → its rows.
        references: names of methods, as the rows have them.
        methods: likewise; none: all that are no reference. A pair with fewer than two common seeds is not tested, see
            :func:`too_few`.

    Raises:
        InvalidInputError: a name that no row has, or no benchmark has a method and a reference.

    Example:
        >>> rows = [StudyRow("ls", {"none": {0: 5.0, 1: 7.0}}, {}), StudyRow("mgda", {"none": {0: 4.0, 1: 4.0}}, {})]
        >>> [test] = against({"digits": rows}, ["ls"])
        >>> test.method, test.differences, test.estimate.mean
        ('mgda', {0: -1.0, 1: -3.0}, -2.0)
    """
    pairs = [pair for pair in _pairs(studies, references, methods) if len(pair[3]) > 1]
    plain = [p_value(list(minus.values())) for *_, minus in pairs]
    return [
        AgainstMethod(benchmark, method, other, minus, Estimate.of(list(minus.values())), p, adjusted)
        for (benchmark, method, other, minus), p, adjusted in zip(pairs, plain, holm(plain), strict=True)
    ]


def too_few(
    studies: Mapping[str, Sequence[StudyRow]], references: Sequence[str], *, methods: Sequence[str] = ()
) -> list[str]:
    """Which methods could not be tested against what, for want of common seeds.

    Raises:
        InvalidInputError: a name that no row has.
    """
    pairs = _pairs(studies, references, methods)
    return [f"{method} against {other} on {benchmark}" for benchmark, method, other, common in pairs if len(common) < 2]


def _pairs(
    studies: Mapping[str, Sequence[StudyRow]], references: Sequence[str], methods: Sequence[str]
) -> list[tuple[str, str, str, dict[int, float]]]:
    """Benchmark, method, reference and what the one has more than the other, by seed."""
    known = list(dict.fromkeys(row.name for rows in studies.values() for row in rows))
    for argument, names in (("methods", methods), ("references", references)):
        if unknown := [name for name in names if name not in known]:
            raise InvalidInputError(
                f"`{argument}` must be methods of the study, which are {', '.join(map(repr, known))}, got "
                f"{', '.join(map(repr, unknown))}."
            )
    wanted = [name for name in dict.fromkeys(methods or known) if methods or name not in references]
    # A family holds each comparison once: named twice, or from both sides, it would make Holm's correction stricter.
    asked: dict[frozenset[str], tuple[str, str]] = {}
    for pair in ((method, other) for method in wanted for other in references if method != other):
        asked.setdefault(frozenset(pair), pair)
    found: list[tuple[str, str, str, dict[int, float]]] = []
    for benchmark, rows in studies.items():
        by_name = {row.name: row for row in rows}
        for method, other in asked.values():
            if method in by_name and other in by_name:
                own = by_name[method]
                sign = -1.0 if own.metric is not None and own.metric.higher_is_better else 1.0
                minus = own.minus_method(by_name[other])
                # + 0.0: none is none in either direction, and no −0.
                found.append((benchmark, method, other, {s: sign * minus[s] + 0.0 for s in sorted(minus)}))
    if not found:
        raise InvalidInputError(
            f"`methods` and `references` must be two methods that some benchmark has both, got {', '.join(wanted)} and "
            f"{', '.join(references)} over {', '.join(studies)}."
        )
    return found
