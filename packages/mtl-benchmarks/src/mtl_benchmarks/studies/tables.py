"""Tables of a study, from the records of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.studies.controls import HEADINGS
from mtl_benchmarks.studies.records import ALONE, Record
from mtl_benchmarks.studies.rows import StudyRow, heading_of, rows_of
from mtl_benchmarks.studies.verdict import Verdict, verdicts

__all__ = ["print_study", "study_table", "verdict_table"]


def print_study(records: Iterable[Record], console: Console) -> None:
    """One table per case and way of moving, and the tests over all methods, where there are seeds for them.

    Raises:
        InvalidInputError: a case has runs of two protocols, or none that ended.
    """
    by_case: dict[str, list[Record]] = {}
    for record in records:
        by_case.setdefault(record.title, []).append(record)
    studies = {}
    for title, own in by_case.items():
        rows = rows_of(own)
        n = len({seed for by_seed in rows[0].measure.values() for seed in by_seed})
        for way in rows[0].ways or (None,):
            console.print(study_table(rows, title=f"{title}, {n} seed{'s' if n > 1 else ''}", way=way))
        if n > 1 and rows[0].ways:
            studies[title] = rows
    if studies:
        console.print(verdict_table(verdicts(studies)))


def study_table(rows: Sequence[StudyRow], *, title: str, way: str | None = None) -> Table:
    """One line per method: alone, against the first seed by seed, and what teleports and their controls change.

    Args:
        rows: of one case of a benchmark.
        title: of the table.
        way: the teleport that is shown, with its controls; None: all of them.
    """
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    ways = [each for each in rows[0].ways if way in (None, each)]
    heading = heading_of(rows[0].metric)
    headings = ["method", f"alone\n{heading}", f"minus\n{rows[0].name}"]
    for each in ways:
        headings += [f"with {'COST' if each == 'cost' else each}\n{heading}", "minus\nalone"]
        for control in rows[0].controls(each):
            headings += [f"{HEADINGS[control]}\n{heading}", f"{'COST' if len(ways) == 1 else each} minus\n{control}"]
    for number, text in enumerate(headings):
        table.add_column(Text(text), justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        alone = row.measure[ALONE]
        first = rows[0].measure[ALONE]
        against = [value - first[seed] for seed, value in alone.items() if seed in first]
        cells = [row.name, Estimate.of(list(alone.values())).brief(), Estimate.of(against).brief() if number else ""]
        for each in ways:
            cells += [Estimate.of(list(row.measure[each].values())).brief(), row.difference(each).brief()]
            for name in row.controls(each).values():
                moved = Estimate.of(list(row.measure[name].values())).brief()
                cells += [moved, row.difference(each, name).brief()]
        table.add_row(*map(Text, cells))
    table.caption = Text(" ".join([_CAPTION, *_diverged(rows)]))
    table.caption_justify = "left"
    return table


_CAPTION = (
    "Means over seeds ± half of the 95 % interval by Student's t; differences are taken seed by seed. An interval that "
    "holds 0 shows no effect, and of many intervals about one in twenty misses."
)


def _diverged(rows: Sequence[StudyRow]) -> list[str]:
    """Which runs have no numbers of their own."""
    lost = [
        f"{row.name}{'' if way == ALONE else f', {way}'} with seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}"
        for row in rows
        for way, seeds in row.diverged.items()
    ]
    return [f"Diverged, and counted as the worst run that did not: {'; '.join(lost)}."] if lost else []


def verdict_table(found: Iterable[Verdict]) -> Table:
    """One line per test."""
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
    table.caption = Text(
        "Differences are means over the methods, taken seed by seed, ± half of the 95 % interval by Student's t; below "
        f"0 is better. {len(found)} test(s) are one family. Better than all that it is held against, after the "
        f"correction: {'; '.join(helped) or 'nothing'}."
    )
    table.caption_justify = "left"
    return table
