"""The papers' figures: every command end to end on tiny problems, and the numbers behind them by hand."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line.kinds import parse_choice
from mtl_benchmarks.command_line.words import split
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.description import describe, names
from mtl_benchmarks.figures.experiments import conflict_scatter, label_styles
from mtl_benchmarks.figures.sweeps import pairs_of_bars, sweep_lines
from mtl_benchmarks.paper_figures import FIGURES, measures, teleports, timing
from mtl_benchmarks.paper_figures.imgrad import progress_and_failures
from mtl_benchmarks.paper_figures.setting import Case, Setting

HERE = Path(__file__).parent

TINY = {
    "toy": "--benchmark toy --benchmark.start cagrad --benchmark.steps_per_epoch 8 --epochs 1",
    "lines": "--benchmark many_lines:Three --epochs 2",
}
MORE = {
    "cost-3": "--teleport cost:trigger=always,max_steps=2,max_drift=none",
    "cost-5a": "--many many_lines:Forty",
    "cost-5b": "--teleport cost:trigger=always,search=penalty,max_steps=6,aim=none,max_drift=none",
    "cost-8": "--teleport cost:trigger=always,max_steps=2,max_drift=none --seeds 2",
    "cost-a1": "--teleport cost:trigger=always,max_steps=2,max_drift=none",
    "cost-a2": "--teleport cost:trigger=always,max_steps=2,max_drift=none",
    "cost-a3": "--teleport cost:max_steps=2,max_drift=none",
    "cost-a4": "--methods fairgrad --teleport cost:trigger=always,max_steps=2",
    "imgrad-table2": "--methods ls imgrad",
    "marigold-table3": "--methods ls marigold:lookahead=fused",
}
PNG, PDF, SVG = b"\x89PNG", b"%PDF", b"<?xml"


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


def words(name: str, out: Path) -> list[str]:
    kind = "toy" if name in ("cost-6", "imgrad-table2") else "lines"
    typed = f"figure {name} {TINY[kind]} {MORE.get(name, '')}"
    seeds = "" if "--seeds" in typed else "--seeds 1"
    return [*typed.split(), *seeds.split(), "--out", str(out)]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_from_the_command(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(name, tmp_path)) == 0
    shown = capsys.readouterr()
    figure = FIGURES[name]
    said = shown.out.splitlines()[-4:]
    assert said[0].startswith(f"{name}: {figure.title}. Here: ")
    assert said[1] == f"printed ({figure.source}): {figure.printed}."
    assert said[2:] == [f"picture: {tmp_path / name}.png", f"numbers: {tmp_path / name}.csv"]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    rows = table(tmp_path / f"{name}.csv")
    assert rows
    for row in rows:
        for value in row.values():
            assert value != "nan" or name == "cost-5b"  # a search may leave a point for its drift alone
    assert describe(name).startswith(f"figure {name}, {figure.source}")
    assert name in names()


@pytest.mark.usefixtures("beside")
def test_finished_runs_are_read_and_other_formats_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("imgrad-a2", tmp_path)) == 0
    results = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    numbers = (tmp_path / "imgrad-a2.csv").read_bytes()
    assert results
    for form, begins in (("pdf", PDF), ("svg", SVG)):
        assert main([*words("imgrad-a2", tmp_path), "--format", form]) == 0
        assert (tmp_path / f"imgrad-a2.{form}").read_bytes().startswith(begins)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")} == results
    assert (tmp_path / "imgrad-a2.csv").read_bytes() == numbers
    capsys.readouterr()


def test_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure"]) == 0
    listed = capsys.readouterr().out
    for name, figure in FIGURES.items():
        assert f"{name} " in listed
        assert f"{figure.source}: {figure.title}" in listed
    assert main(["figure", "cost-3", "--help"]) == 0
    assert f"as it is: {FIGURES['cost-3'].command}" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "imgrad-table2" in capsys.readouterr().out


@pytest.mark.parametrize("name", FIGURES)
def test_the_words_for_the_papers_own_benchmark_are_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    figure = FIGURES[name]
    assert main(["figure", name, *figure.papers_words.split(), "--help"]) == 0
    assert f"as printed: mtl-bench figure {name} {figure.papers_words}" in capsys.readouterr().out
    given = split(figure.papers_words.split()).given
    for flag, kind in (("--benchmark", "benchmark"), ("--many", "benchmark"), ("--teleport", "teleport")):
        for text in given.get(flag, ()):
            parse_choice(kind, text)  # type: ignore[arg-type]
    for text in figure.methods:
        parse_choice("method", text)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("figure cost-33", "unknown figure 'cost-33'. Did you mean 'cost-3'? Valid: cost-3, cost-5a"),
        ("figure cost-3 cost-6", "must name one figure"),
        ("figure --seeds 3", "must name a figure, got none. Valid: cost-3"),
        ("figure cost-3 --format gif", "`--format`"),
        ("figure cost-3 --teleports cost", "unknown option '--teleports'. Did you mean '--teleport'?"),
        ("figure cost-3 --methods ls", "`--methods` must look at task gradients for cost-3, got ls"),
        ("figure cost-3 --methods fairgrad famo", "`--methods` must look at task gradients for cost-3, got famo"),
        ("figure cost-3 --benchmark toy", "`--benchmark` must be one problem for this figure, got the 6 of toy"),
        ("figure cost-6 --benchmark digits", "`--benchmark` must be toy for this figure, got digits"),
        ("figure cost-5a --many toy", "`--many` must be one problem, got the 6 of toy"),
        ("figure imgrad-a3 --methods imgrad imgrad", "`--methods` must differ in their measure"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_trained(
    typed: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(typed.split()) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not list(tmp_path.glob("**/config.json"))


def test_without_matplotlib_the_line_that_installs_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    assert main(["figure", "cost-3", "--out", "there"]) == 2
    assert "pip install 'matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/config.json"))


class Seen:
    """A setting that trains nothing and tells what was planned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: list[Setting] = []

        def take(figure: Any, setting: Setting, out: Path, form: str) -> Any:
            self.settings.append(setting)
            return SimpleNamespace(picture="", numbers="", said="")

        monkeypatch.setattr("mtl_benchmarks.paper_figures.making.make_files", take)

    def after(self, typed: str) -> RunConfig:
        assert main(typed.split()) == 0
        setting = self.settings[-1]
        return setting.config(setting.methods[0], seed=setting.seeds[0])


def test_its_own_words_hold_until_others_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Seen(monkeypatch)
    own = seen.after("figure cost-3")
    assert (own.benchmark.options["n_train"], own.training.epochs) == (2000, 6)
    assert seen.after("figure cost-3 --benchmark.n_train 64").benchmark.options["n_train"] == 64
    assert seen.after("figure cost-3 --benchmark.n_train 64").training.epochs == 6
    assert seen.after("figure cost-3 --steps 7").training.steps == 7
    named = seen.after("figure cost-3 --benchmark digits")
    assert (named.benchmark.options["n_train"], named.training.epochs) == (6000, 8)
    assert seen.settings[-1].seeds == (0,)
    assert seen.after("figure imgrad-a3 --seeds 4,5").seed == 4
    weighted = seen.after("figure marigold-sensitivity")
    assert weighted.heads == "weighted"
    capsys.readouterr()


def test_the_second_benchmark_has_its_own_protocol(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Seen(monkeypatch)
    for typed, schedule, lr in (("", "cosine", 2e-3), (" --schedule constant --lr 0.5", "constant", 0.5)):
        seen.after(f"figure cost-5a{typed}")
        many = seen.settings[-1].many
        assert many is not None
        training = many.settings["training"]
        assert (many.benchmark.name, training.epochs) == ("qm9", 6)
        assert (training.schedule.kind, training.lr) == (schedule, lr)
    capsys.readouterr()


def run_of(
    monkeypatch: pytest.MonkeyPatch, jacobians: list[list[list[float]]], losses: list[list[float]], **rows: Any
) -> Any:
    """A run whose tables are made by hand."""
    gramians = [torch.tensor(j, dtype=torch.float64) for j in jacobians]
    progress = rows.get("progress", [[math.nan] * len(losses[0])] * len(losses))
    files = SimpleNamespace(
        read_steps=lambda: [{"step": str(k), "loss": str(x)} for k, each in enumerate(losses) for x in each],
        read_gradients=lambda: [(k, progress[k], (j @ j.T).tolist()) for k, j in enumerate(gramians)],
        read_metrics=lambda: rows.get("metrics", []),
    )
    monkeypatch.setattr(measures.RunDirectory, "existing", lambda path: files)
    config = SimpleNamespace(tasks=("a", "b"), label="mine")
    return SimpleNamespace(config=config, directory=Path("mine"), events=())


def test_measures_of_balance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Orthogonal of lengths 3 and 1: the min-norm point has weights (1, 9)/10 and is (0.3, 0.9); the mean is (1.5, 0.5).
    orthogonal = [[3.0, 0.0], [0.0, 1.0]]
    # Opposed: the shortest lies at cosine -1 with the mean (1, 0), and their hull holds 0.
    opposed = [[3.0, 0.0], [-1.0, 0.0]]
    equal = [[2.0, 0.0], [2.0, 0.0]]
    run = run_of(monkeypatch, [orthogonal, opposed, equal], [[1.0, 3.0]] * 3)
    found = measures.balances(run)
    assert found[0] == pytest.approx({"pm": 0.6, "lm": 0.5 / math.sqrt(2.5), "dc": 1 / 3})
    assert found[1] == pytest.approx({"pm": 0.0, "lm": 0.0, "dc": 1 / 3})
    assert found[2] == pytest.approx({"pm": 1.0, "lm": 1.0, "dc": 1.0})
    assert measures.imbalances(run) == pytest.approx({0: 3.0, 1: 3.0, 2: 1.0})


def test_conflict_against_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(monkeypatch, [[[4.0, 0.0], [-1.0, 0.5]], [[1.0, 0.0], [1.0, 1.0]]], [[1.0, 3.0], [0.5, 0.5]])
    (first, second) = measures.conflict_points(run)
    mean = torch.tensor([1.5, 0.25])
    assert first == pytest.approx((0, 2.0, float(torch.cosine_similarity(torch.tensor([-1.0, 0.5]), mean, dim=0))))
    assert first[2] < 0
    assert second == pytest.approx((1, 0.5, 2 / math.sqrt(5)))


def test_progress_is_read_and_its_absence_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    jacobians, losses = [[[1.0, 0.0], [0.0, 1.0]]] * 2, [[1.0, 1.0]] * 2
    run = run_of(monkeypatch, jacobians, losses, progress=[[0.5, -0.5], [math.nan, math.nan]])
    assert measures.progress_points(run) == [(0, (0.5, -0.5))]
    with pytest.raises(ValueError, match="no cosine with it"):
        measures.progress_points(run_of(monkeypatch, jacobians, losses))
    with pytest.raises(ValueError, match="must look at task gradients"):
        measures.conflict_points(run_of(monkeypatch, [], losses))


def test_shares_by_epoch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(epoch: int, metric: str, value: float, split: str = "train") -> dict[str, str]:
        return {"epoch": str(epoch), "split": split, "metric": metric, "value": str(value)}

    metrics = [
        row(2, "dominated_conflict", 0.25),
        row(1, "dominated_conflict", 0.5),
        row(1, "majority_conflict", 0.0),
        row(1, "dominated_conflict", 0.75),  # a second evaluation in that epoch
        row(3, "dominated_conflict", 1.0, split="test"),
    ]
    run = run_of(monkeypatch, [], [[0.0, 0.0]], metrics=metrics)
    assert measures.epoch_shares(run, "dominated") == [(1, 0.75), (2, 0.25)]
    assert measures.epoch_shares(run, "majority") == [(1, 0.0)]
    with pytest.raises(ValueError, match="must look at task gradients"):
        measures.epoch_shares(run, "weak")


def event(step: int, *, accepted: bool = True, before: float = -0.5, after: float = 0.5) -> dict[str, Any]:
    cosines = {"cosines_before": [0.5, before], "cosines_after": [0.6, after] if accepted else None}
    norms = {"norms_before": [1.0, 0.5], "norms_after": [2.0, 0.25] if accepted else None}
    means = {"mean_norm_before": 1.0, "mean_norm_after": 1.5 if accepted else None}
    smallest = {"min_cosine_before": before, "min_cosine_after": min(0.6, after) if accepted else None}
    rest = {"step": step, "kind": "teleport", "accepted": accepted, "tasks": ["a", "b"]}
    return {**rest, **cosines, **norms, **means, **smallest}


def setting_of(monkeypatch: pytest.MonkeyPatch, trained: Callable[[Any], Any]) -> Setting:
    monkeypatch.setattr(Setting, "train", lambda self, configs: [trained(config) for config in configs])
    case = Case(Choice("digits"), {})
    teleport = Choice("cost")
    return Setting((case,), None, (Choice("fairgrad"),), teleport, (0, 1), Path("runs"), 1, lambda line: None)


def test_the_halves_of_training_share_all_kept_teleports(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [0, 3, 5, 6, 10]
    events = (*(event(step) for step in steps), event(4, accepted=False), {"kind": "note", "step": 1})
    setting = setting_of(monkeypatch, lambda config: SimpleNamespace(config=config, events=events))
    early, later = teleports.before_and_after(setting), teleports.before_and_after_later(setting)
    assert sorted({row[2] for row in early.rows}) == [0, 3, 5]
    assert sorted({row[2] for row in later.rows}) == [6, 10]
    assert early.rows[1] == (1, 0, 0, "b", -0.5, 0.5, 0.5, 0.25)
    # Two seeds with three teleports: in each the mean's norm grows, and one of two tasks'.
    assert early.said.startswith("6 kept teleports: all tasks agree with the mean before 0 and after 6 of them")
    assert early.said.endswith("has grown by 6, that of a task in 6 of 12 cases")


def test_a_move_without_any_kept_teleport_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    undone = (event(4, accepted=False),)
    setting = setting_of(monkeypatch, lambda config: SimpleNamespace(config=config, events=undone))
    for make in (teleports.before_and_after, teleports.inside_one):
        with pytest.raises(ValueError, match="must move at least once"):
            make(setting)


def test_a_sweep_is_drawn_in_order_of_its_setting() -> None:
    points = {0.5: ([2.0], [20.0]), 0.25: ([1.0], [10.0]), 0.75: ([3.0], [30.0])}
    figure = sweep_lines(points, xlabel="fraction", left="measure", right="seconds")
    for axes, values in zip(figure.axes, ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]), strict=True):
        (line,) = axes.get_lines()
        assert list(line.get_xdata()) == [0.25, 0.5, 0.75]
        assert list(line.get_ydata()) == values


def test_pareto_failures_are_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    jacobians, losses = [[[1.0, 0.0], [0.0, 1.0]]] * 3, [[1.0, 1.0]] * 3
    progress = [[0.5, -0.5], [0.25, 0.25], [-0.1, -0.2]]
    run = run_of(monkeypatch, jacobians, losses, progress=progress)
    setting = setting_of(monkeypatch, lambda config: run)
    made = progress_and_failures(setting)
    assert made.said == "fairgrad 2 Pareto failures at 3 steps, median gap between tasks 0.10"
    assert [row[3] for row in made.rows] == [value for each in progress for value in each]


def test_epochs_take_turns_and_the_first_of_each_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Counted:
        def __init__(self, config: Any) -> None:
            self.name, self.device, self.steps_per_epoch = config.label, "cpu", 1
            self.recorder = SimpleNamespace(n_events=lambda accepted: 3 * order.count(self.name))

        def take_step(self) -> None:
            order.append(self.name)

        def evaluate(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(timing, "Trainer", Counted)
    configs: Any = {name: SimpleNamespace(label=name, seed=0, threads=1) for name in "abc"}
    found = timing.epochs_in_turn(configs, epochs=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: [turn.teleports for turn in turns] for name, turns in found.items()} == dict.fromkeys("abc", [3] * 3)


def test_ratios_are_those_of_the_same_turn() -> None:
    # Beside each other each turn is twice as slow; the medians of the two columns would give 3 / 3.
    figure = pairs_of_bars({"ls": ([1.0, 3.0, 5.0], [2.0, 6.0, 10.0])}, ylabel="s")
    assert [text.get_text() for text in figure.axes[0].texts] == ["× 2.00"]


def test_points_in_conflict_stand_on_the_side_of_conflict() -> None:
    figure = conflict_scatter({"mgda": [(1.0, -0.3), (2.0, 0.4)]}, {"mgda": [(1.0, -0.3, 1.0, 0.2)]})
    low, high = figure.axes[0].get_ylim()
    assert low < -0.3
    assert high > 0.4
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"conflict: cosine below 0", "no conflict", "step of mgda", "teleport"}


def test_variants_of_one_method_look_different() -> None:
    styles = label_styles(["marigold", "marigold (lookahead fused)", "marigold + cost"])
    assert len(set(map(str, styles))) == 3
    assert styles[0].colour == styles[1].colour
