"""The whole page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_benchmarks.comparison import Comparison, compare, find_runs, incomplete_runs
from mtl_benchmarks.figures import png
from mtl_benchmarks.figures.gallery import toy_pictures
from mtl_benchmarks.html_report.elements import element, picture
from mtl_benchmarks.html_report.sections import commands, comparison_section, environments, runs_section
from mtl_benchmarks.html_report.style import STYLE
from mtl_benchmarks.runs.copies import distinct
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.session import checked_reference, told_apart
from mtl_benchmarks.storage.files import write_atomically
from mtl_benchmarks.storage.output import writable_file

__all__ = ["render", "write_report"]


def write_report(paths: Sequence[str | Path], out: str | Path | None = None, *, reference: str | None = None) -> Path:
    """One HTML file about all complete runs behind ``paths``.

    It holds protocol, tables, figures, environments, the commands to repeat the runs and known caveats, loads nothing
    and runs no script.

    Args:
        paths: directories of runs, or of collections of runs.
        out: the file to write; None: ``report.html`` in the first of ``paths``.
        reference: label of the group that differences are taken from; see ``paired_table``.

    Returns:
        the file written.

    Raises:
        ResultsDirectoryError: a path holds no run of ours, or none that is complete; or the file cannot be written.
        UnknownNameError: no group has the label ``reference``.
        MissingExtraError: matplotlib is not installed.
    """
    asked, others = find_runs(paths)
    target = Path(paths[0]) / "report.html" if out is None else Path(out)
    file = writable_file("out", target)  # before anything is drawn
    content = render(asked, others=others, left_out=incomplete_runs(paths), reference=reference)
    write_atomically(file, content)
    return target


def render(
    runs: Sequence[RunResult],
    *,
    others: Sequence[RunResult] = (),
    left_out: Sequence[Path] = (),
    reference: str | None = None,
) -> str:
    """The page as a text.

    Args:
        runs: complete runs.
        others: more runs, in which to look for single-task baselines.
        left_out: unfinished runs, to be named.
        reference: as for :func:`write_report`.
    """
    comparisons = compare(runs, others=others)
    checked_reference(comparisons, reference)
    counted, copies = distinct(runs)
    names = list(dict.fromkeys(comparison.config.benchmark.name for comparison in comparisons))
    title = f"{', '.join(names)}: {len(counted)} runs"
    notes = [*told_apart(comparisons), *(copy.text for copy in copies)]
    sections = [_toy(counted)]
    for number, comparison in enumerate(comparisons):
        here = reference if any(group.label == reference for group in comparison.full) else None
        sections.append(comparison_section(comparison, anchor=f"comparison-{number}", reference=here))
    sections += [commands(counted), environments(counted), runs_section(counted, left_out, notes)]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing is loaded from anywhere, whatever a name in the runs may hold.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"{element('title', title)}<style>{STYLE}</style></head><body>"
    )
    intro = element("h1", title) + "".join(element("p", note, class_="lead") for note in notes) + _contents(comparisons)
    foot = element("footer", "Written by mtl-bench report. All numbers are read from the runs' own files.")
    return f"{head}{intro}<main>{''.join(sections)}</main>{foot}</body></html>\n"


def _contents(comparisons: Sequence[Comparison]) -> str:
    links = [(f"comparison-{k}", comparison.title) for k, comparison in enumerate(comparisons)]
    links += [("commands", "Commands to repeat"), ("environment", "Environment"), ("runs", "Runs")]
    return (
        "<nav><ul>"
        + "".join(f"<li>{element('a', text, href=f'#{anchor}')}</li>" for anchor, text in links)
        + "</ul></nav>"
    )


def _toy(runs: Sequence[RunResult]) -> str:
    """Paths over the toy problem, which stand beside each other for all starts."""
    found = toy_pictures(runs)
    if not found:
        return ""
    inner = "".join(picture(png(each.draw()), each.caption) for each in found)
    return f'<section id="toy">{element("h2", "The toy problem: paths from all starts")}{inner}</section>'
