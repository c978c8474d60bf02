from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mtl_benchmarks.figures import analysis
from mtl_core import ConflictMonitor, InvalidInputError, InvalidParameterError, Problem, StepReport, step
from mtl_teleport import COST, RandomTeleport, TeleportReport
from mtl_teleport.triggers import Trigger

PNG = b"\x89PNG"


class Always(Trigger):
    def __call__(self, gramian: torch.Tensor) -> bool:
        return True


@pytest.fixture(scope="module")
def steps() -> list[StepReport]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    problem = Problem(model, lambda m, x: (m(x) - x[:, :2]).square().mean(0), shared="0", tasks=("a", "b"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method = COST(lambda jacobian: jacobian.sum(0), trigger=Always(), max_per_epoch=None, max_steps=4)
    return [step(problem, torch.randn(16, 3), optimizer, method) for _ in range(4)]


def teleports(steps: list[StepReport]) -> list[TeleportReport]:
    return [event for report in steps for event in report.events if isinstance(event, TeleportReport)]


def test_figures_of_teleports(steps: list[StepReport], tmp_path: Path) -> None:
    reports = teleports(steps)
    assert reports
    for name, given in (("objects", reports), ("data", [report.as_dict() for report in reports])):
        path = analysis.before_after(given, tmp_path / f"{name}.png")  # type: ignore[arg-type]
        assert path.read_bytes().startswith(PNG)
    assert analysis.inside_teleport(reports[0], tmp_path / "inside.png").read_bytes().startswith(PNG)
    assert analysis.inside_teleport(reports[0].as_dict(), tmp_path / "data.png").read_bytes().startswith(PNG)


def test_nothing_to_draw_is_said(steps: list[StepReport], tmp_path: Path) -> None:
    path = tmp_path / "none.png"
    undone = [dataclasses.replace(report, accepted=False) for report in teleports(steps)]
    with pytest.raises(InvalidInputError, match="must hold a teleport that was kept"):
        analysis.before_after(undone, path)
    random = dataclasses.replace(teleports(steps)[0], search_losses=(), search_growth=())
    with pytest.raises(InvalidInputError, match="must be that of a search"):
        analysis.inside_teleport(random, path)
    with pytest.raises(InvalidInputError, match="measured steps"):
        analysis.conflict_per_epoch({"ls": ConflictMonitor()}, path)
    with pytest.raises(InvalidParameterError, match="kind"):
        analysis.conflict_per_epoch({"ls": ConflictMonitor()}, path, kind="strong")
    with pytest.raises(InvalidInputError, match="steps with a Gramian"):
        analysis.loss_against_conflict({"ls": [StepReport(torch.ones(2), None, None, ("a", "b"))]}, path)
    with pytest.raises(InvalidInputError, match="at least one fraction"):
        analysis.trigger_sweep({}, path)
    with pytest.raises(InvalidInputError, match="epochs without and with"):
        analysis.time_cost({"ls": ([1.0], [])}, path)
    assert not path.exists()


def test_conflict_per_epoch(steps: list[StepReport], tmp_path: Path) -> None:
    monitor = ConflictMonitor()
    for epoch in range(2):
        monitor.start_epoch(epoch)
        for report in steps:
            monitor.update(report)
    for kind in ("weak", "dominated", "majority"):
        path = analysis.conflict_per_epoch({"sum": monitor}, tmp_path / f"{kind}.png", kind=kind)
        assert path.read_bytes().startswith(PNG)


def test_loss_and_conflict_by_hand(steps: list[StepReport], tmp_path: Path) -> None:
    jacobian = torch.tensor([[4.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    report = StepReport(torch.tensor([1.0, 3.0]), None, jacobian @ jacobian.T, ("a", "b"))
    cosine = float(torch.cosine_similarity(jacobian[1], jacobian.mean(0), dim=0))
    ((loss, found),) = analysis.loss_conflict_points([report, StepReport(torch.ones(2), None, None, ("a", "b"))])
    assert loss == 2.0
    assert found == pytest.approx(cosine)
    path = analysis.loss_against_conflict({"sum": steps}, tmp_path / "scatter.png")
    assert path.read_bytes().startswith(PNG)


def test_sweep_and_time(tmp_path: Path) -> None:
    points = {0.5: ([1.0, 2.0], [10.0, 11.0]), 0.25: ([0.5, 0.7], [20.0, 21.0])}
    assert analysis.trigger_sweep(points, tmp_path / "sweep.png").read_bytes().startswith(PNG)
    seconds = {"ls": ([1.0, 1.1], [1.2, 1.3]), "fairgrad": ([2.0], [2.1])}
    assert analysis.time_cost(seconds, tmp_path / "time.png").read_bytes().startswith(PNG)


def test_a_random_move_has_no_search(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    problem = Problem(model, lambda m, x: m(x).square().mean(0), shared=model, tasks=("a", "b"))
    method = RandomTeleport(length=0.1, trigger=Always(), max_per_epoch=None)
    (event,) = step(problem, torch.ones(1, 2), torch.optim.SGD(model.parameters(), lr=0.1), method).events
    assert isinstance(event, TeleportReport)
    assert event.search_losses == ()
