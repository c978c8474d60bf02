"""Tables of a study, from the records of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.runs.measure import lacking_seeds, listed_seeds
from mtl_benchmarks.studies.against import AgainstMethod, against, too_few
from mtl_benchmarks.studies.controls import HEADINGS
from mtl_benchmarks.studies.records import ALONE, Record
from mtl_benchmarks.studies.rows import (
    StudyRow,
    controls_of,
    heading_of,
    measure_of_records,
    reference_of,
    rows_of,
    ways_of,
)
from mtl_benchmarks.studies.verdict import Verdict, untested, verdicts
from mtl_core import InvalidInputError

__all__ = ["methods_table", "print_methods", "print_study", "study_table", "verdict_table"]


def print_study(records: Iterable[Record], console: Console) -> None:
    """One table per case and way of moving, and the tests over all methods, where there are seeds for them.

    Raises:
        InvalidInputError: there is no record, or those of a case do not belong together, see ``rows_of``.
    """
    by_case, studies = _cases(records)
    for title, rows in studies.items():
        n = len(_seeds(rows))
        note = measure_of_records(by_case[title]).note
        for way in ways_of(rows) or (None,):
            heading = f"{title}, {n} seed{'s' if n > 1 else ''}"
            console.print(study_table(rows, title=heading, way=way, notes=(note,)))
    tested = {title: rows for title, rows in studies.items() if len(_seeds(rows)) > 1 and ways_of(rows)}
    if tested:
        console.print(verdict_table(verdicts(tested), untested=untested(tested)))


def print_methods(
    records: Iterable[Record], console: Console, *, references: Sequence[str], methods: Sequence[str] = ()
) -> None:
    """The tests of methods without teleports against others, over all cases.

    Raises:
        InvalidInputError: as :func:`print_study`, or a name that no record has.
    """
    _, studies = _cases(records)
    found, without = against(studies, references, methods=methods), too_few(studies, references, methods=methods)
    console.print(methods_table(found, headings=_headings(studies), untested=without))


def _headings(studies: Mapping[str, Sequence[StudyRow]]) -> dict[str, str]:
    return {title: heading_of(rows[0].metric) for title, rows in studies.items()}


def _cases(records: Iterable[Record]) -> tuple[dict[str, list[Record]], dict[str, list[StudyRow]]]:
    """Benchmark with its case → its records, and its rows: all of them before a line is printed, for errors."""
    by_case: dict[str, list[Record]] = {}
    for record in records:
        by_case.setdefault(record.title, []).append(record)
    if not by_case:
        raise InvalidInputError("`records` must hold a run, got none.")
    return by_case, {title: rows_of(own) for title, own in by_case.items()}


def _seeds(rows: Sequence[StudyRow]) -> set[int]:
    return {seed for row in rows for by_seed in row.measure.values() for seed in by_seed}


def study_table(rows: Sequence[StudyRow], *, title: str, way: str | None = None, notes: Sequence[str] = ()) -> Table:
    """One line per method: alone, against equal weights seed by seed, and what teleports and their controls change.

    Args:
        rows: of one case of a benchmark.
        title: of the table.
        way: the teleport that is shown, with its controls; None: all of them.
        notes: sentences below the table.
    """
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    ways = [each for each in ways_of(rows) if way in (None, each)]
    base, heading = reference_of(rows), heading_of(rows[0].metric)
    headings = ["method", f"alone\n{heading}", f"minus\n{base.name}"]
    for each in ways:
        headings += [f"with {'COST' if each == 'cost' else each}\n{heading}", "minus\nalone"]
        for control in controls_of(rows, each):
            headings += [f"{HEADINGS[control]}\n{heading}", f"{'COST' if len(ways) == 1 else each} minus\n{control}"]
    for number, text in enumerate(headings):
        table.add_column(Text(text), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        cells = [row.name, _mean(row.measure[ALONE]), "" if row is base else _mean(row.minus_method(base))]
        for each in ways:
            cells += [_mean(row.measure.get(each, {})), _mean(row.minus(each))]
            for name in controls_of(rows, each).values():
                cells += [_mean(row.measure.get(name, {})), _mean(row.minus(each, name))]
        table.add_row(*map(Text, cells))
    shown = [ALONE, *(name for each in ways for name in (each, *controls_of(rows, each).values()))]
    means = {_named(row, name): row.measure[name] for row in rows for name in shown if name in row.measure}
    table.caption = Text(" ".join(filter(None, [_CAPTION, *notes, lacking_seeds(means), *_diverged(rows)])))
    table.caption_justify = "left"
    return table


def _mean(by_seed: Mapping[int, float]) -> str:
    """As tables print it; nothing where there are no runs."""
    return Estimate.of(list(by_seed.values())).brief() if by_seed else ""


def _named(row: StudyRow, way: str) -> str:
    return row.name if way == ALONE else f"{row.name}, {way}"


_CAPTION = (
    "Means over seeds ± half of the 95 % interval by Student's t; differences are taken seed by seed. An interval that "
    "holds 0 shows no effect, and of many intervals about one in twenty misses."
)


def _diverged(rows: Sequence[StudyRow]) -> list[str]:
    """Which runs have no numbers of their own."""
    lost = [f"{_named(row, way)} with {listed_seeds(seeds)}" for row in rows for way, seeds in row.diverged.items()]
    return [f"Diverged, and counted as the worst run that did not: {'; '.join(lost)}."] if lost else []


def verdict_table(found: Iterable[Verdict], *, untested: Sequence[str] = ()) -> Table:
    """One line per test.

    Args:
        found: the tests.
        untested: what could not be tested, see :func:`~mtl_benchmarks.studies.verdict.untested`.
    """
    found = list(found)
    table = Table(title=Text("All methods together", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for number, heading in enumerate(("benchmark", "moved by", "against", "seeds", "difference", "p", "p (Holm)")):
        table.add_column(heading, justify="right" if number > 2 else "left")
    for verdict in found:
        against = "alone" if verdict.reference == ALONE else verdict.reference.split(" as ")[0]
        table.add_row(
            *map(
                Text,
                (
                    verdict.benchmark,
                    verdict.way,
                    HEADINGS.get(against, against),
                    str(len(verdict.differences)),
                    verdict.estimate.brief(),
                    f"{verdict.p:.3g}",
                    f"{verdict.adjusted:.3g}",
                ),
            )
        )
    held: dict[tuple[str, str], list[bool]] = {}
    for verdict in found:
        held.setdefault((verdict.benchmark, verdict.way), []).append(verdict.holds)
    helped = [f"{way} on {benchmark}" for (benchmark, way), each in held.items() if all(each)]
    said = (
        "Differences are means over the methods, taken seed by seed, ± half of the 95 % interval by Student's t; below "
        f"0 is better. {len(found)} test(s) are one family. Better than all that it is held against, after the "
        f"correction: {'; '.join(helped) or 'nothing'}."
    )
    notes = [said]
    partly = dict.fromkeys(
        f"{v.way} on {v.benchmark} over {', '.join(v.methods)}, as {', '.join(v.lacking)} has no such runs"
        for v in found
        if v.lacking
    )
    notes += [f"Not over all methods: {'; '.join(partly)}."] if partly else []
    notes += [f"Left out are seeds that not all of these have: {'; '.join(gone)}."] if (gone := _gone(found)) else []
    notes += [f"Not tested, as fewer than two seeds are common: {'; '.join(untested)}."] if untested else []
    table.caption = Text(" ".join(notes))
    table.caption_justify = "left"
    return table


def methods_table(
    found: Sequence[AgainstMethod], *, headings: Mapping[str, str], untested: Sequence[str] = ()
) -> Table:
    """One line per test of a method against another.

    Args:
        found: the tests.
        headings: benchmark → what is measured there, see :func:`~mtl_benchmarks.studies.rows.heading_of`.
        untested: what could not be tested, see :func:`~mtl_benchmarks.studies.against.too_few`.
    """
    table = Table(title=Text("Methods without teleports", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    columns = ("benchmark", "measure", "method", "against", "seeds", "difference", "p", "p (Holm)")
    for number, heading in enumerate(columns):
        table.add_column(heading, justify="right" if number > 3 else "left")
    for test in found:
        numbers = (str(test.estimate.n), test.estimate.brief(), f"{test.p:.3g}", f"{test.adjusted:.3g}")
        cells = (test.benchmark, headings[test.benchmark], test.method, test.reference, *numbers)
        table.add_row(*map(Text, cells))
    beyond = [test for test in found if test.holds]
    better, worse = (
        "; ".join(f"{t.method} against {t.reference} on {t.benchmark}" for t in beyond if t.is_better is side)
        or "nothing"
        for side in (True, False)
    )
    said = (
        "Differences are taken seed by seed, ± half of the 95 % interval by Student's t; below 0 the method is better, "
        f"whichever way the measure goes. {len(found)} test(s) are one family. After the correction better: "
        f"{better}; worse: {worse}."
    )
    notes = [said]
    notes += [f"Not tested, as fewer than two seeds are common: {'; '.join(untested)}."] if untested else []
    table.caption = Text(" ".join(notes))
    table.caption_justify = "left"
    return table


def _gone(found: Iterable[Verdict]) -> list[str]:
    """Which seeds a test leaves out."""
    return [f"{v.way} against {v.reference} on {v.benchmark}, {listed_seeds(v.left_out)}" for v in found if v.left_out]
