"""What the pages of evidence say is what their tables of runs hold."""

from __future__ import annotations

import importlib
import re
import statistics
from pathlib import Path

import pytest

from mtl_benchmarks.comparison import Estimate
from mtl_benchmarks.studies.against import against
from mtl_benchmarks.studies.records import Record, read_records
from mtl_benchmarks.studies.rows import StudyRow, rows_of

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
TWINS = sorted((EVIDENCE / "data").glob("twins-*.csv"))
MEMORY = sorted((EVIDENCE / "data").glob("memory-*.csv"))
TABLES = sorted((EVIDENCE / "data").glob("choosing-*.csv"))
STUDIES = sorted((EVIDENCE / "data").glob("study-*.csv"))
PLANNED = {
    "none",
    *("cost (htr keep)", "cost (htr keep, hold_sharpness True, conflict_weight 1.0, aim None)"),
    *("cost", "cost (conflict_weight 1.0, hold_sharpness True, aim None)"),  # the same since keep is the default
}
METHOD = re.compile(r"\*\*(.+)\*\*, alone (.+):")


def said(page: str) -> dict[tuple[str, str], list[str]]:
    """Method and way → the cells of its line; the method alone under the way ``""``."""
    found: dict[tuple[str, str], list[str]] = {}
    method = ""
    for line in page.splitlines():
        if match := METHOD.fullmatch(line):
            method = match[1]
            found[method, ""] = [match[2]]
        elif line.startswith("| `"):
            way, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found[method, way.strip("`")] = cells
    return found


def signed(text: str) -> str:
    return text.replace("-", "−")


def cells(row: StudyRow, way: str) -> list[str]:
    own = [row.measure[way][seed] - row.measure["none"][seed] for seed in sorted(row.measure[way])]
    controls = row.controls(way)
    minus_controls = [
        signed(row.difference(way, controls[name]).text(1)) if name in controls else "" for name in ("random", "memory")
    ]
    return [signed(f"{row.difference(way).text(1)} ({', '.join(f'{x:.1f}' for x in own)})"), *minus_controls]


@pytest.mark.parametrize("path", [*TABLES, *STUDIES], ids=lambda path: path.stem)
def test_the_page_says_what_the_runs_came_to(path: Path) -> None:
    page, _, name = path.stem.partition("-")
    page = (EVIDENCE / f"{page}.md").read_text(encoding="utf-8")
    records = read_records([path])
    (section,) = (part for part in re.split(r"(?m)^## ", page) if part.lower().startswith(f"{name}, "))
    found = said(section)
    expected: dict[tuple[str, str], list[str]] = {}
    for row in rows_of(records):
        expected[row.name, ""] = [signed(Estimate.of(list(row.measure["none"].values())).text(1))]
        expected |= {(row.name, way): cells(row, way) for way in row.ways}
    assert found == expected


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_study_keeps_to_its_plan(path: Path) -> None:
    records = read_records([path])
    # Whole benchmarks only: what is read before all seeds are there is chosen by when it was read.
    n = 5 if path.stem in ("study-rooms", "study-streets") else 10
    assert {record.seed for record in records} == set(range(200, 200 + n))
    assert {record.way for record in records} <= PLANNED
    assert {record.control for record in records} <= {"", "random"}


def test_what_is_collected_is_of_the_plan_and_on_no_page() -> None:
    (path,) = (EVIDENCE / "data").glob("collected-*.csv")
    records = read_records([path])
    assert {record.seed for record in records} == {200, 201}
    assert {record.way for record in records} <= PLANNED
    assert f"(`data/{path.name}`), not looked at" in (EVIDENCE / "study.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_no_seed_for_reporting_was_chosen_on(path: Path) -> None:
    assert max(record.seed for record in read_records([path])) < 200


@pytest.mark.parametrize(
    ("path", "table"),
    [*((path, "markdown") for path in TWINS), *((path, "by_memory") for path in MEMORY)],
    ids=lambda value: getattr(value, "stem", value),
)
def test_the_page_on_twins_says_what_was_seen(path: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE.parents[1] / "benchmarks"))
    twins = importlib.import_module("teleport_twins")
    page = (EVIDENCE / "why.md").read_text(encoding="utf-8")
    lines = getattr(twins, table)(twins.read(path))
    assert len(lines) > 8
    assert "\n".join(lines) in page


SETTINGS = {
    "paper": "marigold",
    "trained": "marigold (lr 0.001, radius 0.1, estimate symmetric)",
    "trained, faster": "marigold (lr 0.01, radius 0.1, estimate symmetric)",
    "exact": "marigold (lr 0.01, radius 0.1, estimate symmetric, adversary exact)",
    "exact, faster": "marigold (lr 0.03, radius 0.1, estimate symmetric, adversary exact)",
    "fused": "marigold (lr 0.01, radius 0.2, lookahead fused, estimate antithetic, adversary exact)",
}
"""The names of the plan's settings, and what tables of runs call them."""


def choosing(name: str) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """Δm by seed of LS alone, and minus it of each setting of MARIGOLD."""
    records = read_records([EVIDENCE / "data" / f"marigold-{name}.csv"])
    assert {record.seed for record in records} == {0, 1, 2}
    if name == "qm9":  # whose single-task runs were there before
        records = [*(each for each in read_records([EVIDENCE / "data" / "choosing-qm9.csv"]) if each.task), *records]
    rows = {row.name: row.measure["none"] for row in rows_of(records)}
    alone = dict(rows.pop("ls"))
    assert set(rows) == set(SETTINGS.values())
    minus = {
        setting: {seed: rows[label][seed] - alone[seed] for seed in sorted(alone)}
        for setting, label in SETTINGS.items()
    }
    return alone, minus


def test_the_page_on_marigold_says_what_was_chosen_and_by_what() -> None:
    page = (EVIDENCE / "marigold.md").read_text(encoding="utf-8")
    (on_qm9, qm9), (on_mt10, mt10) = choosing("qm9"), choosing("mt10")
    for name, alone in (("QM9 LS alone is", on_qm9), ("on MT10", on_mt10)):
        first, second, third = (f"{alone[seed]:.1f}" for seed in range(3))
        assert f"{name} at {first}, {second} and {third}" in page
    means = {setting: statistics.fmean([*qm9[setting].values(), *mt10[setting].values()]) for setting in SETTINGS}
    assert min(means, key=means.__getitem__) == "paper"
    for setting in SETTINGS:
        cells = [", ".join(f"{value:.1f}" for value in found[setting].values()) for found in (qm9, mt10)]
        assert signed(f"| {setting} | {cells[0]} | {cells[1]} | {means[setting]:.1f} |") in page


REPORTED = {"qm9": "QM9", "mt10": "MT10"}
"""The benchmarks on which methods without teleports were compared, and what pages call them."""


def reported(name: str) -> list[Record]:
    """The reporting runs without teleports, with the single-task runs and those of LS, which the study has."""
    both = read_records([EVIDENCE / "data" / f"{part}-{name}.csv" for part in ("study", "reporting")])
    return [record for record in both if record.way == "none" and not record.control]


def family(methods: list[str], references: list[str]) -> list[str]:
    """The lines of a page's table: a family of tests of methods against others."""
    studies = {REPORTED[name]: rows_of(reported(name)) for name in REPORTED}
    return [
        signed(
            f"| {test.benchmark} | {test.method} | {test.reference} | {test.estimate.text(1)} "
            f"({', '.join(f'{x:.1f}' for x in test.differences.values())}) | {test.p:.2g} | {test.adjusted:.2g} |"
        )
        for test in against(studies, references, methods=methods)
    ]


def test_the_page_on_marigold_says_what_was_reported() -> None:
    page = (EVIDENCE / "marigold.md").read_text(encoding="utf-8")
    lines = family(["marigold"], ["ls", "famo"])
    assert len(lines) == 4
    assert "\n".join(lines) in page
    for name, title in REPORTED.items():
        for row in rows_of(reported(name)):
            if row.name in ("ls", "famo", "marigold", "mgda"):
                alone = row.measure["none"]
                assert set(alone) == set(range(200, 205 if row.name == "mgda" else 210))
                assert signed(f"| {title} | {row.name} | {Estimate.of(list(alone.values())).text(1)} |") in page


def test_the_page_on_evidence_says_what_weighting_does() -> None:
    page = (EVIDENCE.parent / "evidence.md").read_text(encoding="utf-8")
    lines = family(["fairgrad (alpha 2.0)", "famo", "mgda"], ["ls"])
    assert len(lines) == 5
    assert "\n".join(lines) in page


AUXILIARY = {"qm9": range(200, 210)}
"""The benchmarks with auxiliary tasks that are complete, and the seeds of the plan."""


def test_the_page_on_marigold_says_what_auxiliary_tasks_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE.parents[1] / "benchmarks"))
    auxiliary = importlib.import_module("auxiliary")
    page = (EVIDENCE / "marigold.md").read_text(encoding="utf-8")
    assert {path.stem for path in (EVIDENCE / "data").glob("auxiliary-*.csv")} == {f"auxiliary-{n}" for n in AUXILIARY}
    studies = [auxiliary.read(EVIDENCE / "data" / f"auxiliary-{name}.csv") for name in AUXILIARY]
    for rows, seeds, lines in zip(studies, AUXILIARY.values(), auxiliary.markdown(*studies), strict=True):
        assert [int(row["seed"]) for row in rows] == [seed for _ in range(6) for seed in seeds]
        assert "\n".join(lines) in page
