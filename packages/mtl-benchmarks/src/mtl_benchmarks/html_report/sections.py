"""What a page says about one comparison, and about all runs together."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mtl_benchmarks.comparison import Comparison, all_tables, own_protocol
from mtl_benchmarks.comparison.protocols import differing, flat, short_name
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.figures import pictures_of, png
from mtl_benchmarks.html_report.elements import bullets, element, facts, picture, preformatted, table_of
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory

__all__ = ["caveats", "commands", "comparison_section", "environments", "runs_section"]


def comparison_section(comparison: Comparison, *, anchor: str, reference: str | None) -> str:
    """Protocol, caveats, tables and figures of one comparison."""
    problem = make_benchmark(comparison.config.benchmark)
    parts = [f'<section id="{anchor}">', element("h2", comparison.title)]
    parts.append(element("p", _first_line(type(problem).__doc__), class_="lead"))
    found = caveats(comparison)
    if found:
        parts.append('<div class="caveats"><strong>To know before reading</strong>' + bullets(found) + "</div>")
    for table in all_tables(comparison, reference=reference):
        # What sums up a row beside its name: behind the metrics of ten tasks it would be out of sight.
        table = table.with_first("delta_m", "mean_rank")
        parts += [element("h3", _HEADINGS[table.name].format(title=table.title)), table_of(table)]
    parts.append(element("h3", "Figures"))
    parts += [picture(png(each.draw()), each.caption) for each in pictures_of(comparison)]
    parts += [element("h3", "Protocol"), facts(_protocol(comparison)), "</section>"]
    return "".join(parts)


_HEADINGS = {
    "results": "Results",
    "differences": "Differences: {title}",
    "published": "{title}",
    "teleports": "What the teleports did",
}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].replace("``", "")


def _protocol(comparison: Comparison) -> dict[str, Any]:
    own = own_protocol(comparison.config)
    changed = set(differing([own, comparison.protocol]))
    shown: dict[str, Any] = {
        "tasks": ", ".join(comparison.tasks or [t for g in comparison.groups for t in g.config.tasks])
    }
    for key, value in comparison.protocol.items():
        text = "none" if value is None else str(value)
        shown[short_name(key)] = f"{text} (the benchmark's own: {own.get(key)})" if key in changed else text
    return shown


def caveats(comparison: Comparison) -> list[str]:
    """What limits the numbers: of the benchmark, and of these runs."""
    benchmark = make_benchmark(comparison.config.benchmark)
    found = [*benchmark.caveats, *benchmark.remarks()]
    counts = sorted({len(group.runs) for group in comparison.full})
    if counts and counts[0] == 1:
        found.append("Some rows are of one seed: they have no interval, and a difference from them shows nothing.")
    elif counts and counts[0] < 5:
        found.append(f"Some rows are of {counts[0]} seeds; intervals over so few are wide, and assume normal noise.")
    if comparison.baselines:
        found.append("The intervals of Δm leave out the noise of the single-task runs, which are held fixed.")
    names = {group.config.teleport.name for group in comparison.full if group.config.teleport is not None}
    if "cost" in names and "random" not in names:
        found.append("No random control: that COST moves to good places rather than anywhere is not shown here.")
    if len({group.config.threads for group in comparison.groups}) > 1:
        found.append("Runs used different numbers of threads: their times do not compare.")
    versions = _versions(run for group in comparison.groups for run in group.runs)
    if len(versions) > 1:
        found.append(f"Runs were made under different versions or machines ({len(versions)} environments, below).")
    changed = differing([own_protocol(comparison.config), comparison.protocol])
    if changed:
        found.append(f"Not the benchmark's own protocol: {', '.join(map(short_name, changed))} were set otherwise.")
    return found


def _environments(run: RunResult) -> list[dict[str, Any]]:
    """That of every process that worked on the run."""
    return [session["environment"] for session in RunDirectory.existing(run.directory).read_sessions()]


def _versions(runs: Iterable[RunResult]) -> dict[str, tuple[dict[str, Any], list[RunResult]]]:
    """Environments without what was typed, each once, with their runs."""
    found: dict[str, tuple[dict[str, Any], list[RunResult]]] = {}
    for run in runs:
        for environment in _environments(run):
            # What was typed differs from run to run, and threads have a caveat of their own.
            kept = {key: value for key, value in environment.items() if key not in ("argv", "threads")}
            members = found.setdefault(json.dumps(kept, sort_keys=True), (kept, []))[1]
            if run not in members:
                members.append(run)
    return found


def environments(runs: Sequence[RunResult]) -> str:
    """Versions and hardware, each set once."""
    parts = ['<section id="environment">', element("h2", "Environment")]
    found = list(_versions(runs).values())
    for number, (content, members) in enumerate(found, start=1):
        if len(found) > 1:
            parts.append(element("h3", f"{number} of {len(found)}: {len(members)} runs"))
        parts.append(facts({key.replace("packages.", ""): value for key, value in flat(content).items()}))
    return "".join([*parts, "</section>"])


def commands(runs: Sequence[RunResult]) -> str:
    """What was typed, as recorded, and how to repeat a single run."""
    typed = dict.fromkeys(
        shlex.join(map(str, environment["argv"])) for run in runs for environment in _environments(run)
    )
    parts = ['<section id="commands">', element("h2", "Commands to repeat")]
    if typed:
        parts += [element("p", "As they were given when the runs began:"), preformatted(typed)]
    parts.append(
        element(
            "p",
            "The folder of a run holds all its options in config.json. In an environment as below, on the same kind of "
            "machine, a run from it gives the same numbers:",
        )
    )
    parts.append(preformatted([f"mtl-bench run --config {shlex.quote(runs[0].directory.name)}/config.json"]))
    return "".join([*parts, "</section>"])


def runs_section(runs: Sequence[RunResult], left_out: Sequence[Path], notes: Sequence[str]) -> str:
    """Every run by the name of its folder, and which ones were left out."""
    parts = ['<section id="runs">', element("h2", "Runs")]
    said = [*notes, *(f"{path.name} is not finished and is left out." for path in left_out)]
    if said:
        parts.append(bullets(said))
    rows = {
        run.directory.name: f"{run.config.label}, seed {run.config.seed}, {run.seconds:.1f} s of training"
        for run in runs
    }
    summary = element("summary", f"{len(rows)} runs, by their folders")
    parts.append(f"<details>{summary}{facts(rows)}</details></section>")
    return "".join(parts)
