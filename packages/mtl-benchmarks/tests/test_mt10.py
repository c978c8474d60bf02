"""MT10 by imitation, on a point mass in place of the simulator, and once in the simulator."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtl_benchmarks.benchmarks import MT10, mt10
from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.models import ClonedPolicy
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.runner import RunResult, run
from mtl_benchmarks.storage.results import RunDirectory
from mtl_benchmarks.worlds import HELD_OUT, MT10_TASKS, MetaWorld, Workers, play, success_rates
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, collect
from mtl_teleport import COST

sys.path.insert(0, str(Path(__file__).parent))
from small_world import Field

WORLD = "small_world:Field"
SMALL: dict[str, Any] = {"n_episodes": 3, "horizon": 40, "n_goals": 4, "width": 16, "layers": 1, "world": WORLD}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("MTL_WORKERS", "1")
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    mt10._loaded.clear()
    yield
    mt10._loaded.clear()


def small(method: str = "ls", teleport: Choice | None = None, **settings: Any) -> RunConfig:
    options = {**SMALL, **settings.pop("options", {})}
    return RunConfig.resolve(Choice("mt10", options), method, teleport, **{"epochs": 2, "batch_size": 60, **settings})


def tables(result: RunResult) -> dict[str, bytes]:
    names = ("metrics.csv", "steps.csv")
    return {name: (result.directory / name).read_bytes() for name in names}


def test_a_batch_holds_equally_many_transitions_of_each_task() -> None:
    benchmark = MT10(**SMALL)
    found = benchmark.demonstrations
    batches = benchmark.batches(batch_size=50, seed=3, device="cpu")
    seen: dict[str, list[tuple[float, ...]]] = {task: [] for task in MT10_TASKS}
    for k in range(len(batches)):
        batch = batches.batch(0, k)
        assert {len(rows) for rows in batch.actions.values()} == {len(batch.actions["reach"])}
        for task in MT10_TASKS:
            seen[task] += [tuple(row) for row in batch.observations[task].tolist()]
    lengths = {task: len(found.actions[found.of(task)]) for task in MT10_TASKS}
    longest = max(lengths.values())
    assert len(set(lengths.values())) > 1
    for task in MT10_TASKS:
        every = [tuple(row) for row in found.observations[found.of(task)].tolist()]
        assert len(seen[task]) == longest
        assert set(seen[task]) == set(every)
        if lengths[task] == longest:
            assert sorted(seen[task]) == sorted(every)
    again = benchmark.batches(batch_size=50, seed=3, device="cpu").batch(0, 1).observations["push"]
    assert torch.equal(again, batches.batch(0, 1).observations["push"])
    assert not torch.equal(again, batches.batch(1, 1).observations["push"])


@pytest.mark.parametrize("heads", ["per_task", "one"])
def test_a_tasks_loss_and_gradient_are_those_of_its_own_transitions(heads: Any) -> None:
    benchmark = MT10(**{**SMALL, "heads": heads})
    torch.manual_seed(0)
    model = benchmark.build()
    assert isinstance(model, ClonedPolicy)
    problem = benchmark.problem(model, tasks=("push", "reach"))
    assert (len(problem.heads) == 0) == (heads == "one")
    batch = benchmark.batches(batch_size=60, seed=0, device="cpu").batch(0, 0)
    rows = []
    for task in ("push", "reach"):
        output = model({task: batch.observations[task]})[task]
        loss = (output - batch.actions[task]).square().sum() / output.numel()
        gradients = torch.autograd.grad(loss, problem.shared)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    found = problem.losses(batch)
    collected = collect(found.values, problem.shared, features=found.features, heads=problem.heads)
    torch.testing.assert_close(collected.matrix, torch.stack(rows))


def test_only_the_trained_tasks_are_tried_out(tmp_path: Path) -> None:
    result = run(small(tasks=("reach", "push"), epochs=1), tmp_path / "run")
    assert sorted(result.values) == ["success", "success_push", "success_reach"]
    assert result.values["success"] == (result.values["success_push"] + result.values["success_reach"]) / 2
    rows = RunDirectory.existing(result.directory).read_metrics()
    assert {row["metric"] for row in rows if row["split"] == "test"} == set(result.values)


def test_a_policy_that_has_learned_succeeds(tmp_path: Path) -> None:
    options = {"n_episodes": 40, "width": 64, "layers": 2}
    untrained = run(small(tasks=("reach",), epochs=1, lr=1e-9, options=options), tmp_path / "untrained")
    learned = run(small(tasks=("reach",), epochs=60, batch_size=640, lr=1e-2, options=options), tmp_path / "learned")
    assert untrained.values["success_reach"] == 0.0
    assert learned.values["success_reach"] >= 75.0


def test_success_is_in_percent_of_held_out_goals() -> None:
    benchmark = MT10(**SMALL)

    class Expert(nn.Module):
        def act(self, task: str, observations: torch.Tensor) -> torch.Tensor:
            if task == "push" or float(observations[0, 36]) not in goals[:3]:
                return torch.zeros(1, 4)
            return torch.from_numpy(Field(task).expert(observations[0].double().numpy()))[None].float()

    goals = [float(torch.tensor(Field("reach", HELD_OUT).begin(k)[36]).float()) for k in range(4)]
    found = benchmark.evaluate_tasks(Expert(), ("reach", "push"), device="cpu")
    assert found == {"test": {"success_reach": 75.0, "success_push": 0.0, "success": 37.5}}


class Broken(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("broken_at", [1, 5])
def test_a_broken_run_resumes_bit_for_bit(tmp_path: Path, broken_at: int) -> None:
    def progress(now: Progress) -> None:
        if now.done == broken_at:
            raise Broken

    config = small("fairgrad")
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Broken):
        run(config, tmp_path / "broken", checkpoint_every=2, progress=progress)
    assert tables(run(config, tmp_path / "broken", checkpoint_every=2)) == tables(whole)


@pytest.mark.parametrize("heads", ["per_task", "one"])
def test_cost_teleports_on_the_policy(tmp_path: Path, heads: str) -> None:
    always = Choice("cost", {"trigger": "small_world:Always", "max_steps": 2, "max_per_epoch": 1})
    result = run(small("fairgrad", always, options={"heads": heads}), tmp_path / "run")
    moves = [event for event in result.events if event["kind"] == "teleport"]
    assert len(moves) == 2
    assert any(event["accepted"] for event in moves)
    assert all(event["drift"] < 0.05 for event in moves if event["accepted"])


def test_cost_moves_the_shared_layers_and_no_output() -> None:
    benchmark = MT10(**SMALL)
    torch.manual_seed(0)
    model = benchmark.build()
    problem = benchmark.problem(model, tasks=MT10_TASKS)
    batch = benchmark.batches(batch_size=60, seed=0, device="cpu").batch(0, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = problem.losses(batch).values.detach()
    gradients = collect(problem.losses(batch).values, problem.shared)
    report = COST(max_steps=3, lr=1e-2).teleport(problem, [batch], gradients)
    assert report.accepted
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("trunk.") for name in changed)
    torch.testing.assert_close(problem.losses(batch).values.detach(), losses, rtol=0.05, atol=0.0)


def lines_of_collecting(n_episodes: int = 3, n_goals: int = 4) -> list[str]:
    parts = (("experts are tried out", 10 * n_goals), ("experts demonstrate", 10 * n_episodes))
    return [f"mt10, once on this machine: {what}, {k} of {n} episodes" for what, n in parts for k in (0, n)]


def test_the_first_collecting_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [word for name, value in SMALL.items() for word in (f"--benchmark.{name}", str(value))]
    words = ["run", "mt10", *options, "--epochs", "1", "--baselines", "none", "--out", str(tmp_path / "runs")]
    assert main(words) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in said if line.startswith("mt10, once")] == lines_of_collecting()
    mt10._loaded.clear()  # another process finds it in the cache
    assert main([*words, "--seeds", "2"]) == 0
    assert "mt10, once" not in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_a_run_from_python_says_it_to_whom_it_may_concern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    run(small(epochs=1), tmp_path / "one", preparing=said.append)
    assert said == lines_of_collecting()
    run(small(epochs=1, options={"n_episodes": 2, "n_goals": 3}), tmp_path / "two")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("is_heard", [True, False])
def test_runs_beside_each_other_say_it_to_whom_it_may_concern(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_heard: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_all([small(epochs=1)], tmp_path / "runs", processes=2, say=said.append if is_heard else None)
    assert said == (lines_of_collecting() if is_heard else [])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="`horizon` must be at most 500"):
        MT10(horizon=501)
    with pytest.raises(InvalidParameterError, match=r"`batch_size` must be a multiple of 10.*got 64"):
        run(small(batch_size=64), tmp_path / "uneven")
    with pytest.raises(InvalidInputError, match=r"got none for reach, push.*hides its goals"):
        run(small(options={"horizon": 2}), tmp_path / "hopeless")

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(MissingExtraError, match=r"pip install metaworld=="):
        MT10().batches(batch_size=320, seed=0, device="cpu")
    assert MT10().remarks() == ()


def test_the_experts_own_success_is_told() -> None:
    benchmark = MT10(**SMALL)
    assert benchmark.remarks() == ()
    benchmark.batches(batch_size=10, seed=0, device="cpu")
    (told,) = benchmark.remarks()
    assert told == "The experts themselves, on the same 4 goals within 40 steps: mean 100.0 %, 100 % in each task."


def test_tables_tell_the_experts_success_and_why_there_is_no_delta(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    options = [f"--benchmark.{name}={value}" for name, value in SMALL.items()]
    words = ["run", "mt10", *options, "--tasks", "reach", "push", "--epochs", "1", "--lr", "1e-9", "--out", str(out)]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The experts themselves, on the same 4 goals within 40 steps: mean 100.0 %" in shown
    assert "No Δm, as the single-task value of success_reach, success_push is 0." in shown


@pytest.mark.extras
@pytest.mark.slow
def test_the_real_simulator_gives_the_same_episodes_in_any_order_and_process() -> None:
    pytest.importorskip("metaworld")
    world = MetaWorld("push", HELD_OUT)
    first = [play(world, goal, world.expert, horizon=150) for goal in (0, 1, 2)]
    again = [play(world, goal, world.expert, horizon=150) for goal in (2, 0, 1)]
    for episode, other in zip(first, [again[1], again[2], again[0]], strict=True):
        assert (episode.observations == other.observations).all()
        assert episode.success
    torch.manual_seed(0)
    policy = ClonedPolicy(hidden=(8,))
    with Workers(2) as workers:
        found = [
            success_rates(policy, ("drawer-close",), goals=HELD_OUT, n_goals=6, horizon=60, workers=each)
            for each in (workers, Workers(1))
        ]
    assert found[0] == found[1]
