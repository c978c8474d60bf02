import csv
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from mtl_benchmarks import Digits
from mtl_benchmarks.comparison import (
    Column,
    Comparison,
    Estimate,
    Group,
    Pair,
    Row,
    Table,
    all_tables,
    as_csv,
    as_latex,
    as_markdown,
    as_rich,
    cell_text,
    compare,
    find_runs,
    moves,
    moves_table,
    paired_difference,
    paired_table,
    published_rows_table,
    result_table,
)
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.figures import draw_all, front
from mtl_benchmarks.figures.drawing import new_figure
from mtl_benchmarks.figures.outcome import delta_by_task, time_and_measure
from mtl_benchmarks.metrics import Metric, ranks
from mtl_benchmarks.runs.baselines import own_baselines, single_task_configs
from mtl_benchmarks.runs.copies import distinct
from mtl_benchmarks.runs.runner import RunResult, run
from mtl_benchmarks.storage.results import Collection
from mtl_core import MissingExtraError, ResultsDirectoryError, UnknownNameError

HERE = Path(__file__).parent


def groups_of(runs: list[RunResult], *, others: list[RunResult] | None = None) -> tuple[Group, ...]:
    (comparison,) = compare(runs, others=others or [])
    return comparison.groups


def result(config: RunConfig, values: Mapping[str, float], events: tuple[Mapping[str, Any], ...] = ()) -> RunResult:
    return RunResult(config, Path("nowhere"), values, events, 2.0)


def event(accepted: bool, cosine: float | None, norm: float | None) -> dict[str, Any]:
    return {
        "accepted": accepted,
        "min_cosine_before": -0.5,
        "min_cosine_after": cosine,
        "mean_norm_before": 1.0,
        "mean_norm_after": norm,
        "drift": 0.01,
        "length": 0.25,
        "seconds": 0.5,
    }


def printed(table: object) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


DIGITS_METRICS: tuple[Metric, ...] = Digits.metrics
FULL = {"accuracy_left": 90.0, "accuracy_right": 80.0, "error_image": 0.2}


def test_estimate_by_hand() -> None:
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t of 2 degrees of freedom
    assert Estimate.of([5.0]) == Estimate(5.0, None)
    assert math.isnan(Estimate.of([1.0, math.nan]).mean)
    assert found.text(1) == "2.0 ±2.5"


def test_delta_m_uses_the_single_task_runs_that_belong_to_it() -> None:
    config = RunConfig.resolve("digits", "fairgrad")
    singles = single_task_configs(config)
    assert [single.tasks for single in singles] == [("left",), ("right",), ("image",)]
    pool = [
        result(singles[0], {"accuracy_left": 99.0}),
        result(RunConfig.resolve("digits", "ls", seed=1, tasks=["left"]), {"accuracy_left": 101.0}),
        result(singles[1], {"accuracy_right": 100.0}),
        result(singles[2], {"error_image": 0.1}),
        result(RunConfig.resolve("digits", "ls", tasks=["left"], epochs=3), {"accuracy_left": 1.0}),
    ]
    baselines = own_baselines(config, pool)
    assert [baseline.value for baseline in baselines] == [100.0, 100.0, 0.1]
    assert baselines[0].source == "2 single-task run(s) of this code, seeds 0, 1"
    (group,) = groups_of([result(config, FULL)], others=pool)
    assert group.delta_m is not None
    assert group.delta_m.mean == pytest.approx((10 + 20 + 100) / 3)
    assert own_baselines(config, pool[:3]) == ()
    assert groups_of([result(config, FULL)], others=pool[:3])[0].delta_m is None


def test_toy_has_no_single_task_runs() -> None:
    assert single_task_configs(RunConfig.resolve(Choice("toy", {"start": 0}))) == ()


def test_groups_and_their_labels() -> None:
    configs = [
        RunConfig.resolve("digits", Choice("fairgrad", {"alpha": alpha}), seed=seed)
        for alpha in (1.0, 2.0)
        for seed in (0, 1)
    ]
    configs.append(RunConfig.resolve("digits", "ls", tasks=["left"]))
    values: list[Mapping[str, float]] = [{**FULL, "accuracy_left": 90.0 + k} for k in range(4)]
    groups = groups_of(
        [result(config, value) for config, value in zip(configs, [*values, {"accuracy_left": 95.0}], strict=True)]
    )
    assert [group.label for group in groups] == [
        "fairgrad",
        "fairgrad (alpha=2.0)",
        "single left",
    ]
    assert [len(group.runs) for group in groups] == [2, 2, 1]
    assert groups[0].values["accuracy_left"].mean == 90.5
    (comparison,) = compare([run for group in groups for run in group.runs])
    text = printed(as_rich(result_table(comparison)))
    row = next(line for line in text.splitlines() if "alpha=2.0" in line)
    assert "92.50 ±6.35" in row
    assert " 1.00 " in row  # first on one metric, tied on the others


def test_groups_whose_options_differ_as_texts_alone_keep_their_rows() -> None:
    """As of files that were written by hand: 2 and 2.0 are other configurations, and equal to Python."""
    configs = [RunConfig.resolve("digits", Choice("fairgrad", {"alpha": 2.0}), seed=seed) for seed in (0, 1)]
    configs += [replace(each, method=Choice("fairgrad", {**each.method.options, "alpha": 2})) for each in configs]
    runs = [result(config, {**FULL, "error_image": 0.1 * k + 0.1}) for k, config in enumerate(configs)]
    (comparison,) = compare(runs)
    assert [len(group.runs) for group in comparison.groups] == [2, 2]
    assert len({group.label for group in comparison.groups}) == 2
    ranks_of = [row.cells["mean_rank"] for row in result_table(comparison).rows]
    assert ranks_of == [pytest.approx(4 / 3), pytest.approx(5 / 3)] or len(set(ranks_of)) == 2


def test_labels_say_where_an_option_belongs_and_leave_defaults_out() -> None:
    fairgrad = Choice("fairgrad", {"alpha": 2.0})
    other = Choice("cost", {"start_after": 6, "trigger": Choice("majority", {"fraction": 0.75})})
    pairs: list[tuple[str | Choice, str | Choice | None]] = [
        ("fairgrad", None),
        ("fairgrad", "cost"),
        (fairgrad, "cost"),
        (fairgrad, other),
        ("ls", None),
    ]
    runs = [result(RunConfig.resolve("digits", method, teleport), FULL) for method, teleport in pairs]
    assert [group.label for group in groups_of(runs)] == [
        "fairgrad",
        "fairgrad + cost",
        "fairgrad (alpha=2.0) + cost",
        "fairgrad (alpha=2.0) + cost (trigger.name=majority, trigger.fraction=0.75, start_after=6)",
        "ls",
    ]


def test_an_option_that_older_files_lack_is_named_where_nothing_else_differs() -> None:
    new = RunConfig.resolve("digits", "fairgrad")
    options = {name: value for name, value in new.method.options.items() if name != "ridge"}
    old = replace(new, method=Choice("fairgrad", options), seed=1)
    assert [group.label for group in groups_of([result(new, FULL), result(old, FULL)])] == [
        "fairgrad (ridge=0.001)",
        "fairgrad",
    ]


def test_controls_with_lengths_of_their_own_are_one_group() -> None:
    configs = [RunConfig.resolve("digits", "ls", Choice("random", {"length": [0.1 * k]}), seed=k) for k in (1, 2)]
    fixed = RunConfig.resolve("digits", "ls", Choice("random", {"length": 0.1}))
    groups = groups_of([result(config, FULL) for config in [*configs, fixed]])
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("ls + random (length=listed)", 2),
        ("ls + random (length=0.1)", 1),
    ]


def test_moves_by_hand() -> None:
    config = RunConfig.resolve("digits", "ls", "cost")
    with_moves = result(config, FULL, (event(True, 0.1, 2.0), event(False, None, None), event(True, 0.3, 3.0)))
    found = moves([with_moves])
    assert found is not None
    assert (found.accepted, found.rejected, found.drift, found.length) == (2, 1, 0.01, 0.25)
    assert found.min_cosine == pytest.approx((-0.5, 0.2))
    assert found.mean_norm == pytest.approx((1.0, 2.5))
    assert moves([result(config, FULL, ({"kind": "skipped_update"},))]) is None
    table = moves_table(compare([with_moves])[0])
    assert table is not None
    assert "-0.500 → 0.200" in printed(as_rich(table))
    assert moves_table(compare([result(config, FULL)])[0]) is None


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'matplotlib>="):
        new_figure(1, 1)


def digits(n: int, epochs: int, method: str = "ls", *, seed: int = 0, **more: Any) -> RunConfig:
    return RunConfig.resolve(Choice("digits", {"n_train": n}), method, seed=seed, epochs=epochs, **more)


def test_protocols_never_share_a_table_and_the_heading_says_what_differs() -> None:
    runs = [
        result(digits(64, 1), FULL),
        result(digits(3000, 3, "mgda"), FULL),
        result(digits(3000, 3, "fairgrad"), FULL),
        result(digits(3000, 3, "famo", tasks=["left", "right"]), {"accuracy_left": 1.0, "accuracy_right": 2.0}),
        result(digits(3000, 3, "pcgrad", lr=0.5), FULL),
        result(digits(3000, 3, "cagrad", precision="bf16"), FULL),
    ]
    found = compare(runs)
    assert [[group.label for group in each.groups] for each in found] == [
        ["ls"],
        ["mgda", "fairgrad"],
        ["famo"],
        ["pcgrad"],
        ["cagrad"],
    ]
    assert "n_train 64" in found[0].title
    assert "epochs 1" in found[0].title
    assert "tasks left, right" in found[2].title
    assert "lr 0.5" in found[3].title
    assert "precision bf16" in found[4].title
    assert [column.key for column in result_table(found[2]).columns][:3] == ["seeds", "accuracy_left", "accuracy_right"]
    assert "mean_rank" not in {column.key for column in result_table(found[0]).columns}  # it stands alone


def test_methods_teleports_seeds_and_threads_are_no_protocol() -> None:
    runs = [
        result(digits(64, 1, "mgda", seed=2, threads=2), FULL),
        result(digits(64, 1, "ls", teleport="cost"), FULL),
        result(digits(64, 1, "ls"), FULL),
    ]
    (comparison,) = compare(runs)
    assert [group.label for group in comparison.groups] == ["mgda", "ls", "ls + cost"]
    assert comparison.title == "digits"


def test_a_copy_is_no_second_seed() -> None:
    first, again = result(digits(64, 1), FULL), result(digits(64, 1), FULL)
    other = result(digits(64, 1), {**FULL, "error_image": 0.9})
    kept, copies = distinct([first, again, other])
    assert kept == [first]
    assert [copy.differing for copy in copies] == [(), ("error_image",)]
    assert "counts once" in copies[0].text
    assert "other values of error_image" in copies[1].text
    diverged = [result(digits(64, 1), {**FULL, "error_image": math.nan}) for _ in range(2)]
    assert distinct(diverged)[1][0].differing == ()
    (group,) = groups_of([first, again])
    assert group.values["accuracy_left"] == Estimate(90.0, None)  # no interval of width zero
    # Nor does a copy of a single-task run weigh double.
    single = [result(digits(64, 1, tasks=["left"], seed=k), {"accuracy_left": v}) for k, v in ((0, 50.0), (1, 100.0))]
    pair = result(digits(64, 1, "mgda", tasks=["left", "right"]), {"accuracy_left": 75.0, "accuracy_right": 50.0})
    right = result(digits(64, 1, tasks=["right"]), {"accuracy_right": 50.0})
    (group, *_) = groups_of([pair], others=[single[0], single[0], *single, right])
    assert group.delta_m == Estimate(0.0, None)


def test_delta_m_of_a_subset_is_over_what_was_trained() -> None:
    pair = result(digits(64, 1, "mgda", tasks=["left", "image"]), {"accuracy_left": 45.0, "error_image": 0.3})
    singles = [
        result(digits(64, 1, tasks=["left"]), {"accuracy_left": 50.0}),
        result(digits(64, 1, tasks=["image"]), {"error_image": 0.2}),
    ]
    (group,) = groups_of([pair], others=singles)
    assert group.delta_m is not None
    assert group.delta_m.mean == pytest.approx((10 + 50) / 2)
    other = [result(digits(65, 1, tasks=[t]), s.values) for t, s in zip(("left", "image"), singles, strict=True)]
    assert groups_of([pair], others=other)[0].delta_m is None  # another protocol


def test_single_task_runs_alone_make_a_table_of_their_own() -> None:
    (comparison,) = compare([result(digits(64, 1, tasks=["left"]), {"accuracy_left": 50.0})])
    assert [row.kind for row in result_table(comparison).rows] == ["single-task"]
    assert paired_table(comparison) is None


def test_a_diverged_run_does_not_take_the_table_with_it() -> None:
    runs = [
        result(digits(64, 1, "ls"), {**FULL, "error_image": math.nan}),
        result(digits(64, 1, "mgda"), FULL),
        result(digits(64, 1, "famo"), FULL),
        *(result(digits(64, 1, tasks=[m.task]), {m.name: FULL[m.name]}) for m in DIGITS_METRICS),
    ]
    table = result_table(compare(runs)[0])
    cells = {row.label: row.cells for row in table.rows}
    assert "mean_rank" not in cells["ls"]
    assert cells["mgda"]["mean_rank"] == 1.0
    assert cell_text(cells["ls"]["delta_m"], Column("delta_m", "")) == "nan"
    assert cell_text(cells["mgda"]["delta_m"], Column("delta_m", "")) == "0.00"


@pytest.mark.parametrize(("seeds", "said"), [((0,), "one seed"), ((0, 1), "with 95 % intervals")])
def test_a_figure_of_one_seed_promises_no_intervals(seeds: tuple[int, ...], said: str) -> None:
    runs = [
        *(result(digits(64, 1, "ls", seed=seed), {**FULL, "error_image": 0.3 + seed}) for seed in seeds),
        *(result(digits(64, 1, tasks=[m.task]), {m.name: FULL[m.name]}) for m in DIGITS_METRICS),
    ]
    (comparison,) = compare(runs)
    assert delta_by_task(comparison).get_suptitle().endswith(said)


def test_a_diverged_run_does_not_take_the_figures_with_it() -> None:
    methods = {"ls": math.nan, "mgda": 0.4, "famo": 0.3}
    runs = [
        *(result(digits(64, 1, method), {**FULL, "error_image": value}) for method, value in methods.items()),
        *(result(digits(64, 1, tasks=[m.task]), {m.name: FULL[m.name]}) for m in DIGITS_METRICS),
    ]
    (comparison,) = compare(runs)
    assert delta_by_task(comparison) is not None
    assert time_and_measure(comparison) is not None
    # What is no number is neither quick nor good, and hides nothing that is.
    assert front([(1.0, math.nan), (2.0, 5.0), (3.0, math.inf), (4.0, 4.0)], higher_is_better=False) == [1, 3]
    assert front([(1.0, math.nan)], higher_is_better=True) == []


def test_there_is_no_delta_against_a_single_task_run_that_diverged() -> None:
    runs = [
        result(digits(64, 1, "mgda"), FULL),
        *(result(digits(64, 1, tasks=[m.task]), {m.name: FULL[m.name]}) for m in DIGITS_METRICS[:-1]),
        result(digits(64, 1, tasks=["image"]), {"error_image": math.nan}),
    ]
    (comparison,) = compare(runs)
    assert comparison.baselines == ()
    assert comparison.groups[0].delta_m is None
    assert comparison.measure.why == "the single-task run of image with seed 0 diverged"
    assert "No Δm, as the single-task run of image with seed 0 diverged." in result_table(comparison).notes


def test_paired_differences_by_hand() -> None:
    values = {"ls": (80.0, 90.0, 70.0), "mgda": (81.0, 92.0, 73.0)}
    runs = [
        result(digits(64, 1, method, seed=seed), {**FULL, "accuracy_left": value})
        for method, each in values.items()
        for seed, value in enumerate(each)
    ]
    (comparison,) = compare(runs)
    table = paired_table(comparison)
    assert table is not None
    (row,) = table.rows
    found = row.cells["accuracy_left"]
    assert isinstance(found, Estimate)
    assert (found.mean, found.n) == (2.0, 3)
    # The standard deviation of 1, 2, 3 is 1, where that of either method is 10.
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    back = paired_table(comparison, reference="mgda")
    assert back is not None
    assert back.rows[0].cells["accuracy_left"].mean == -2.0  # type: ignore[union-attr]
    with pytest.raises(UnknownNameError, match=r"unknown reference 'adam'\. Valid: ls, mgda"):
        paired_table(comparison, reference="adam")
    assert paired_difference({0: 1.0}, {0: 2.0}) is None


def test_published_rows_stand_beside_and_are_not_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    runs = [
        result(RunConfig.resolve("many_lines:Streets", m, t), {"mIoU": 70.0, "abs_error": 0.02})
        for m, t in (("ls", None), ("fairgrad", "cost"), ("upgrad", None))
    ]
    (comparison,) = compare(runs)
    (table,) = published_rows_table(comparison)
    assert "COST, Table 1, CityScapes" in table.title
    assert {row.label: (row.cells["mIoU"], row.cells["abs_error"]) for row in table.rows} == {
        "Independent (single task)": (74.01, 0.0125),
        "LS (ls)": (75.18, 0.0155),
        "COST (fairgrad + cost)": (75.73, 0.0133),
    }
    assert "another protocol" not in " ".join(table.notes)
    assert all(row.kind != "published" for row in result_table(comparison).rows)
    longer = [result(RunConfig.resolve("many_lines:Streets", "ls", epochs=9), {"mIoU": 70.0, "abs_error": 0.02})]
    assert "epochs 9 instead of 2" in " ".join(published_rows_table(compare(longer)[0])[0].notes)
    assert published_rows_table(compare([result(digits(64, 1), FULL)])[0]) == []


names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)
numbers = st.floats(-1e5, 1e5, allow_nan=False)
cells = st.one_of(
    numbers,
    st.integers(0, 10**6),
    st.builds(Pair, numbers, numbers),
    st.lists(numbers, min_size=1, max_size=4).map(Estimate.of),
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    keys = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    columns = tuple(Column(k, k, draw(st.sampled_from(["", "%", "°"])), digits=draw(st.integers(0, 4))) for k in keys)
    rows = tuple(
        Row(label, "multi-task", {k: draw(cells) for k in keys if draw(st.booleans())})
        for label in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    )
    return Table("results", draw(names), columns, rows)


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text).strip()


@given(tables())
@example(Table("results", "a|b", (Column("a_b", "a_b"),), (Row("[/bold] |x|", "multi-task", {"a_b": -1.5}),)))
def test_every_format_holds_the_same_cells(table: Table) -> None:
    lines = [line for line in as_markdown(table).splitlines() if line.startswith("| ")][1:]
    markdown = [[unescaped(cell) for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]] for line in lines]
    assert markdown == [[cell.strip() for cell in row] for row in table.texts()]

    read = list(csv.DictReader(as_csv([table]).splitlines()))
    for row in table.rows:
        for column in table.columns:
            own = {r["column"]: r for r in read if r["row"] == row.label and r["column"].startswith(column.key)}
            cell = row.cells.get(column.key)
            if isinstance(cell, Pair):
                again: Any = Pair(*(float(own[f"{column.key}_{when}"]["value"]) for when in ("before", "after")))
            elif isinstance(cell, Estimate):
                half = own[column.key]["half_width"]
                n = int(own[column.key]["n"])
                again = Estimate(float(own[column.key]["value"]), float(half) if half else None, n)
            else:
                again = None if cell is None else type(cell)(own[column.key]["value"])
            assert again == cell

    body = as_latex(table).split("\\midrule\n")[1].split("\\bottomrule")[0]
    latex = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body.splitlines()]
    assert [len(row) for row in latex] == [1 + len(table.columns)] * len(table.rows)
    plain = {r"$-$": "-", r"$\pm$": "±", r"$\to$": "→"}
    for row, texts in zip(latex, table.texts(), strict=True):
        for cell, text in zip(row[1:], texts[1:], strict=True):
            for written, sign in plain.items():
                cell = cell.replace(written, sign)
            assert cell.strip() == text


def test_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here (Debian: texlive-latex-base, texlive-latex-recommended)")
    strange = "a_b & 100% #1 $x$ {~^} \\ <|>"
    table = Table(
        "results",
        f"{strange}: Δm ± ‖g‖ → ° ·",
        (Column("x", "error", "°", "lower"), Column("y", "Δm", "%", "lower")),
        (Row(strange, "multi-task", {"x": Estimate.of([1.0, -2.0]), "y": Pair(-1.0, -2.0)}),),
        ("A note of 95 %.",),
    )
    source = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n%s\\end{document}\n"
    (tmp_path / "table.tex").write_text(source % as_latex(table), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_names_are_no_markup() -> None:
    table = Table("results", "[bold]title", (Column("x", "[red]x"),), (Row("[/bold]", "multi-task", {"x": 1.0}),))
    text = printed(as_rich(table))
    assert all(part in text for part in ("[bold]title", "[red]x", "[/bold]"))


@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8), st.booleans())
def test_laws_of_ranks(values: list[float], better: bool) -> None:
    found = {ties: ranks(values, higher_is_better=better, ties=ties) for ties in ("competition", "dense", "average")}
    assert sum(found["average"]) == pytest.approx(len(values) * (len(values) + 1) / 2)
    assert all(min(each) >= 1.0 for each in found.values())
    assert min(found["competition"]) == min(found["dense"]) == 1.0
    for dense, competition, average in zip(found["dense"], found["competition"], found["average"], strict=True):
        assert dense <= competition <= average
    order = [-value if better else value for value in values]
    for one, first in zip(order, found["competition"], strict=True):
        for other, second in zip(order, found["competition"], strict=True):
            assert (one < other) == (first < second)


def test_all_tables_of_a_comparison_are_named() -> None:
    with_moves = result(digits(64, 1, "ls", teleport="cost"), FULL, (event(True, 0.1, 2.0),))
    (comparison,) = compare([with_moves, result(digits(64, 1, "ls"), FULL)])
    assert [table.name for table in all_tables(comparison)] == ["results", "teleports"]
    assert isinstance(comparison, Comparison)


def test_find_runs(tmp_path: Path) -> None:
    collection = Collection(tmp_path / "runs")
    with pytest.raises(ResultsDirectoryError, match="complete run"):
        find_runs([collection.path])
    toy = Choice("toy", {"start": 0, "steps_per_epoch": 4})
    move = Choice("random", {"length": 0.1, "trigger": "any-mean"})
    ones = [RunConfig.resolve(toy, "ls", teleport, epochs=2) for teleport in (None, move)]
    written = [run(config, collection.run_path(config.name)) for config in ones]
    asked, others = find_runs([written[0].directory])
    assert [each.config for each in asked] == ones[:1]
    assert [each.config for each in others] == ones[1:]
    assert len(find_runs([collection.path])[0]) == 2
    figures = draw_all(asked + others, tmp_path / "figures")
    assert {path.name for path in figures} >= {"toy-scale-1.png", "toy-scale-1-losses.png", "toy-start-0-learning.png"}
    assert all(path.stat().st_size > 10_000 for path in figures)
    (tmp_path / "other").mkdir()
    with pytest.raises(ResultsDirectoryError, match="written by mtl-bench"):
        find_runs([tmp_path / "other"])
