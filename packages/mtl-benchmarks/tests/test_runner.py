import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.recorder import PER_TASK
from mtl_benchmarks.runs.runner import RunResult, load_result, run
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import InvalidParameterError, ResultsDirectoryError

TINY = Choice("digits", {"n_train": 96, "n_test": 60, "width": 2})


def tiny(method: str | Choice = "fairgrad", teleport: str | Choice | None = None, **settings: object) -> RunConfig:
    defaults: dict[str, object] = {"epochs": 3, "batch_size": 24}
    return RunConfig.resolve(TINY, method, teleport, **{**defaults, **settings})  # type: ignore[arg-type]


class Broken(Exception):
    """Stands for the end of the process."""


def break_at(step: int) -> object:
    def progress(now: Progress) -> None:
        if now.done == step:
            raise Broken

    return progress


def content(result: RunResult | Path) -> dict[str, object]:
    """Everything in a run's directory that has to be the same however often it was broken off."""
    path = result.directory if isinstance(result, RunResult) else result
    events = [
        {key: value for key, value in event.items() if key != "seconds"}
        for event in RunDirectory.existing(path).read_events()
    ]
    checkpoint = RunDirectory.existing(path).read_checkpoint()
    assert checkpoint is not None
    state = checkpoint.state
    tensors = {name: tensor.tolist() for name, tensor in state["model"].items()}
    values = json.loads((path / "result.json").read_text())["values"]
    return {
        "metrics": (path / "metrics.csv").read_bytes(),
        "events": events,
        "model": tensors,
        "values": values,
        "training": state["recorder"]["training"],
    }


TELEPORT = Choice("cost", {"trigger": "weak", "max_steps": 2})
CONTROL = Choice("random", {"length": [0.01, 0.02], "trigger": "weak"})


@pytest.mark.parametrize(
    ("method", "teleport"),
    [("ls", None), ("fairgrad", None), ("pcgrad", None), ("cagrad", TELEPORT), ("ls", TELEPORT), ("pcgrad", CONTROL)],
    ids=lambda each: each.name if isinstance(each, Choice) else str(each),
)
@pytest.mark.parametrize("broken_at", [1, 4, 7])
def test_a_broken_run_resumes_bit_for_bit(tmp_path: Path, method: str, teleport: Choice | None, broken_at: int) -> None:
    config = tiny(method, teleport)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Broken):
        run(config, tmp_path / "broken", checkpoint_every=2, progress=break_at(broken_at))  # type: ignore[arg-type]
    assert not (tmp_path / "broken" / "result.json").exists()
    assert content(run(config, tmp_path / "broken", checkpoint_every=2)) == content(whole)
    if teleport is not None:
        assert whole.events


def test_a_run_broken_at_every_step_ends_the_same(tmp_path: Path) -> None:
    config = tiny("pcgrad", TELEPORT)
    whole = run(config, tmp_path / "whole")
    for step in range(1, 13):
        with pytest.raises(Broken):
            run(config, tmp_path / "broken", checkpoint_every=1, progress=break_at(step))  # type: ignore[arg-type]
    assert content(run(config, tmp_path / "broken", checkpoint_every=1)) == content(whole)


def test_a_killed_process_resumes_bit_for_bit(tmp_path: Path) -> None:
    options = {"n_train": 300, "n_test": 100, "width": 2}
    config = RunConfig.resolve(
        Choice("digits", options),
        "pcgrad",
        Choice("cost", {"max_steps": 2}),
        epochs=8,
        batch_size=10,
    )
    whole = run(config, tmp_path / "whole")
    program = f"""
import json
from mtl_benchmarks import RunConfig, run
config = RunConfig.from_dict(json.loads({json.dumps(json.dumps(config.as_dict()))}))
run(config, {str(tmp_path / "killed")!r}, checkpoint_every=7, say=print)
"""
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    position = -1
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        child = subprocess.Popen([sys.executable, "-c", program])
        try:
            deadline = time.monotonic() + 600
            while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
                assert child.poll() is None, "the child ended before it could be killed"
                assert time.monotonic() < deadline, "the child wrote no checkpoint"
                time.sleep(0.002)
            time.sleep(0.02)
            os.kill(child.pid, signal.SIGKILL)
        finally:
            child.kill()
            assert child.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "result.json").exists()
        state = RunDirectory.existing(tmp_path / "killed").read_checkpoint()
        assert state is not None
        reached = state.position["step"]
        assert reached > position
        position = reached
    # Killed between two renames, it goes on from the checkpoint before and says so: no warning here.
    assert content(run(config, tmp_path / "killed", say=print)) == content(whole)


def test_a_complete_run_is_only_read(tmp_path: Path) -> None:
    config = tiny()
    first = run(config, tmp_path)
    modified = (tmp_path / "checkpoint.pt").stat().st_mtime_ns

    def never(now: Progress) -> None:
        raise AssertionError("a complete run must not train")

    assert run(config, tmp_path, progress=never) == first
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == modified


def test_same_seed_same_numbers_other_seed_other_numbers(tmp_path: Path) -> None:
    one, two, other = (run(tiny(seed=seed), tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert content(one) == content(two)
    assert content(one)["metrics"] != content(other)["metrics"]


def test_the_caller_keeps_its_random_state_and_threads(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)  # noqa: NPY002 - the legacy generator is what libraries draw from
    expected = (torch.rand(1).item(), random.random(), numpy.random.rand())  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)  # noqa: NPY002 - the legacy generator is what libraries draw from
    threads = torch.get_num_threads()
    run(tiny(epochs=1), tmp_path)
    assert (torch.rand(1).item(), random.random(), numpy.random.rand()) == expected  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_metrics_are_tidy_and_name_their_direction(tmp_path: Path) -> None:
    result = run(tiny(epochs=2), tmp_path)
    rows = RunDirectory.existing(tmp_path).read_metrics()
    assert {row["epoch"] for row in rows} == {"1", "2"}
    last = {row["metric"]: row for row in rows if row["epoch"] == "2" and row["split"] == "test"}
    assert float(last["accuracy_left"]["value"]) == result.values["accuracy_left"]
    assert (last["accuracy_left"]["unit"], last["accuracy_left"]["higher_is_better"]) == ("%", "true")
    assert (last["error_image"]["task"], last["error_image"]["higher_is_better"]) == ("image", "false")
    training = {row["metric"] for row in rows if row["split"] == "train"}
    assert training == {
        *PER_TASK,
        "weak_conflict",
        "any_mean_conflict",
        "majority_conflict",
        "dominated_conflict",
        "min_cosine",
        "gradient_norm",
        "imbalance",
        "lr",
    }


def test_single_task_run_reports_its_task_alone(tmp_path: Path) -> None:
    result = run(tiny("ls", tasks=["right"]), tmp_path)
    assert set(result.values) == {"accuracy_right"}
    assert {row["metric"] for row in RunDirectory.existing(tmp_path).read_metrics()} == {
        "loss",
        "weight",
        "lr",
        "accuracy_right",
    }


def test_toy_run_records_its_path(tmp_path: Path) -> None:
    config = RunConfig.resolve(Choice("toy", {"start": 0, "steps_per_epoch": 5}), "ls", epochs=2)
    result = run(config, tmp_path)
    trace = RunDirectory.existing(tmp_path).read_trace()
    assert len(trace) == 10
    assert trace[-1] == [result.values["x1"], result.values["x2"]]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="checkpoint_every"):
        run(tiny(), tmp_path, checkpoint_every=0)
    with pytest.raises(ResultsDirectoryError, match="must hold a run"):
        load_result(tmp_path)
    with pytest.raises(Broken):
        run(tiny(), tmp_path, progress=break_at(1))  # type: ignore[arg-type]
    with pytest.raises(ResultsDirectoryError, match="complete run"):
        load_result(tmp_path)
    with pytest.raises(ResultsDirectoryError, match="seed: 0 there, 1 here"):
        run(tiny(seed=1), tmp_path)
