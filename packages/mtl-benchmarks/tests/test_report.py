import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtl_benchmarks.baselines import own_baselines, single_task_configs
from mtl_benchmarks.comparison import Estimate, comparison_table, find_runs, group_runs, moves, moves_table
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.figures import draw_all
from mtl_benchmarks.options import Choice
from mtl_benchmarks.results import Collection
from mtl_benchmarks.runner import RunResult, run
from mtl_core import MissingExtraError, ResultsDirectoryError


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


FULL = {"accuracy_left": 90.0, "accuracy_right": 80.0, "error_image": 0.2}


def test_estimate_by_hand() -> None:
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t of 2 degrees of freedom
    assert Estimate.of([5.0]) == Estimate(5.0, None)
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
    (group,) = group_runs([result(config, FULL)], others=pool)
    assert group.delta_m is not None
    assert group.delta_m.mean == pytest.approx((10 + 20 + 100) / 3)
    assert own_baselines(config, pool[:3]) == ()
    assert group_runs([result(config, FULL)], others=pool[:3])[0].delta_m is None


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
    groups = group_runs(
        [result(config, value) for config, value in zip(configs, [*values, {"accuracy_left": 95.0}], strict=True)]
    )
    assert [group.label for group in groups] == [
        "fairgrad (method.alpha=1.0)",
        "fairgrad (method.alpha=2.0)",
        "single left",
    ]
    assert [len(group.runs) for group in groups] == [2, 2, 1]
    assert groups[0].values["accuracy_left"].mean == 90.5
    text = printed(comparison_table(groups, title="digits"))
    row = next(line for line in text.splitlines() if "alpha=2.0" in line)
    assert "92.50 ±6.35" in row
    assert " 1.00 " in row  # first on one metric, tied on the others


def test_controls_with_lengths_of_their_own_are_one_group() -> None:
    configs = [RunConfig.resolve("digits", "ls", Choice("random", {"length": [0.1 * k]}), seed=k) for k in (1, 2)]
    fixed = RunConfig.resolve("digits", "ls", Choice("random", {"length": 0.1}))
    groups = group_runs([result(config, FULL) for config in [*configs, fixed]])
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("ls + random (teleport.length=listed)", 2),
        ("ls + random (teleport.length=0.1)", 1),
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
    table = moves_table(group_runs([with_moves]), title="moves")
    assert table is not None
    assert "-0.500 → 0.200" in printed(table)
    assert moves_table(group_runs([result(config, FULL)]), title="moves") is None


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    config = RunConfig.resolve(Choice("toy", {"start": 0}))
    with pytest.raises(MissingExtraError, match=r"pip install 'mtl-benchmarks\[figures\]'"):
        draw_all([result(config, {})], tmp_path)


def test_find_runs_and_figures(tmp_path: Path) -> None:
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
    assert len(figures) == 1
    assert all(path.stat().st_size > 10_000 for path in figures)
    (tmp_path / "other").mkdir()
    with pytest.raises(ResultsDirectoryError, match="written by mtl-bench"):
        find_runs([tmp_path / "other"])
