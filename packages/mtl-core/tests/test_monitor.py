from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mtl_core import ConflictMonitor, InvalidInputError, StepReport, collect
from mtl_core.testing import small_problem

# Two tasks: the smaller points against the mean; two that agree, 3 : 1.
CONFLICT = torch.tensor([[4.0, -1.0], [-1.0, 0.5]])
AGREEMENT = torch.tensor([[9.0, 2.0], [2.0, 1.0]])


def measured() -> ConflictMonitor:
    monitor = ConflictMonitor()
    for epoch, gramians in enumerate(([CONFLICT, AGREEMENT], [AGREEMENT])):
        monitor.start_epoch(epoch)
        for gramian in gramians:
            assert monitor.update(gramian)
    return monitor


def test_ratios_by_hand() -> None:
    first, second = measured().epochs()
    assert (first.epoch, first.steps) == (0, 2)
    assert (first.weak, first.dominated, first.majority, first.count) == (0.5, 0.5, 0.5, 0.5)
    # In CONFLICT <g_2, g_0> = -1/4, |g_2| = sqrt(1/2), |g_0| = sqrt(2.5)/2; in AGREEMENT 3/2 over 1 * sqrt(14)/2.
    cosines = [-0.25 / math.sqrt(0.5) / (math.sqrt(2.5) / 2), 1.5 / (math.sqrt(14) / 2)]
    assert first.min_cosine == pytest.approx(sum(cosines) / 2)
    assert first.imbalance == pytest.approx(math.sqrt(math.sqrt(8.0) * 3.0))
    assert (second.steps, second.weak, second.dominated) == (1, 0.0, 0.0)
    assert second.imbalance == pytest.approx(3.0)


def test_takes_reports_and_gradients() -> None:
    problem, batch = small_problem()
    grads = collect(problem.losses(batch).outputs, problem.shared)
    monitor = ConflictMonitor()
    assert monitor.update(grads)
    assert monitor.update(StepReport(grads.losses, None, grads.host_gramian, problem.tasks))
    assert not monitor.update(StepReport(grads.losses, None, None, problem.tasks))
    first, second = monitor.steps()
    assert {**first, "step": 0} == {**second, "step": 0}
    assert (first["step"], second["step"]) == (0, 1)
    assert first["mean_norm"] == pytest.approx(float(grads.mean.norm()))


def test_tasks_without_a_gradient_are_left_out() -> None:
    monitor = ConflictMonitor()
    monitor.update(torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, -1.0], [0.0, -1.0, 0.5]]))
    monitor.update(torch.zeros(2, 2))
    found = monitor.steps()
    assert found[0]["dominated"] == 1.0
    assert found[0]["imbalance"] == pytest.approx(math.sqrt(8.0))
    assert found[1] == {
        **dict.fromkeys(("epoch", "weak", "dominated", "majority", "count", "min_cosine", "mean_norm"), 0.0),
        "step": 1,
        "imbalance": 1.0,
    }


def test_tidy_export(tmp_path: Path) -> None:
    measured().to_csv(tmp_path / "epochs.csv")
    measured().to_csv(tmp_path / "steps.csv", per="step")
    with open(tmp_path / "epochs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert float(rows[0]["dominated"]) == 0.5
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 4


def test_state_goes_through_json() -> None:
    monitor, other = measured(), ConflictMonitor()
    other.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    for each in (monitor, other):
        each.update(CONFLICT)
    assert other.steps() == monitor.steps()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="must be 'epoch' or 'step', got 'run'"):
        measured().to_csv(tmp_path / "x.csv", per="run")
    with pytest.raises(InvalidInputError, match="got none"):
        ConflictMonitor().to_csv(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="square"):
        ConflictMonitor().update(nn.Parameter(torch.ones(2, 3)))
