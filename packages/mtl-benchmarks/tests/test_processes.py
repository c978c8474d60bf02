"""Runs and real processes: killed ones, two in one directory, workers whose parent is gone, a limit on files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.runner import load_result, run
from mtl_benchmarks.storage import lock
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import NonFiniteStateError, ResultsDirectoryError, SolverError, UnknownNameError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PATIENCE = 600.0  # seconds, to end a hang and nothing else

LONG = """
import sys, time
import torch
from torch import nn
import mtl_core
from mtl_benchmarks import Benchmark, Metric, OptimizerChoice, RunConfig, Training
from mtl_benchmarks.batching.batches import Repeated


class Long(Benchmark):
    "A run of many short steps, until somebody ends it; says its number on the way."

    name, tasks = "long", ("a", "b")
    metrics = (Metric("error", "a", "", False),)
    has_single_task_runs = False

    def __init__(self, *, n_epochs: int = 100000) -> None:
        self.n_epochs = n_epochs

    @property
    def training(self):
        return Training(epochs=self.n_epochs, batch_size=1, optimizer=OptimizerChoice("adam", {"lr": 1e-3}))

    def build(self):
        return nn.Linear(2, 2)

    def problem(self, model, *, tasks):
        return mtl_core.Problem(model, lambda m, x: m(x).square().mean(0), shared=model, tasks=tasks)

    def batches(self, *, batch_size, seed, device):
        return Repeated(torch.ones(1, 2), 2)

    def evaluate(self, model, *, device):
        time.sleep(0.01)
        return {"test": {"error": float(model.weight.detach().sum())}}


def configs(n):
    return [RunConfig.resolve("long_runs:Long", "ls", seed=k) for k in range(n)]
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "long_runs.py").write_text(LONG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    yield tmp_path
    sys.modules.pop("long_runs", None)


@pytest.fixture
def start(beside: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    begun: list[subprocess.Popen[str]] = []

    def go(program: str) -> subprocess.Popen[str]:
        (beside / "program.py").write_text(program)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(subprocess.Popen([sys.executable, str(beside / "program.py")], text=True, cwd=beside, **pipes))
        return begun[-1]

    yield go
    for process in begun:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def soon(what: Callable[[], Any], why: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.02)
    return found


def workers_of(parent: int) -> list[int]:
    """Processes of ours under another, without the one that multiprocessing keeps for its own resources."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat.rpartition(")")[2].split()[1]) == parent and "spawn_main" in line:
                found.append(int(entry.name))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


TWO = """
import sys
from long_runs import configs
from mtl_benchmarks import run_all

if __name__ == "__main__":
    try:
        run_all(configs(2), "runs", processes=2)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_workers_end_with_a_parent_that_was_killed(beside: Path, start: Callable[[str], subprocess.Popen[str]]) -> None:
    parent = start(TWO)
    soon(lambda: len(list(beside.glob("runs/*/checkpoint.pt"))) == 2, "the workers did not begin")
    workers = workers_of(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    soon(lambda: not any(map(lives, workers)), "the workers outlived their parent")
    for directory in (beside / "runs").iterdir():
        if directory.is_dir():
            assert RunDirectory(directory).read_checkpoint() is not None


def test_a_worker_that_is_killed_is_told_in_one_line(
    beside: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    parent = start(TWO)
    soon(lambda: len(list(beside.glob("runs/*/checkpoint.pt"))) == 2, "the workers did not begin")
    workers = workers_of(parent.pid)
    os.kill(workers[0], signal.SIGKILL)
    out, err = parent.communicate(timeout=PATIENCE)
    assert out.startswith("ResultsDirectoryError the process of the run 'runs/long_runs.Long-ls-seed")
    assert "must live until the run is complete, got one that was ended by signal SIGKILL. If memory ran out" in out
    assert out.count("\n") == 1
    assert err == ""
    assert not any(map(lives, workers))


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(beside: Path, start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start(
        "from long_runs import configs\nfrom mtl_benchmarks import run_all\nrun_all(configs(2), 'runs', processes=2)"
    )
    _, err = process.communicate(timeout=PATIENCE)
    assert "must do so under `if __name__ == '__main__':`" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        UnknownNameError("method", "fairgard", ["fairgrad"]),
        SolverError("did not converge", residual=1.0, iterations=3),
        NonFiniteStateError("nan", epoch=1, step=2),
    ],
)
def test_errors_come_from_other_processes_as_they_are(error: Exception) -> None:
    import pickle

    from mtl_benchmarks.runs.pool import _portable

    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert _portable(error) is error

    class Local(Exception):
        """Cannot be made again elsewhere."""

    assert str(_portable(Local("lost"))) == "Local: lost"


HOLDS = """
import sys
from long_runs import configs
from mtl_benchmarks import run

def wait(now):
    if now.done == 4:
        print("here", flush=True)
        if sys.stdin.readline() == "":
            sys.exit(3)
    if now.done == 8:
        sys.exit(0)

run(configs(1)[0], "run", progress=wait)
"""


def listing(directory: Path) -> dict[str, tuple[int, int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in directory.iterdir()
    }


def test_a_refused_second_process_leaves_the_first_one_alone(
    beside: Path, start: Callable[[str], subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(HOLDS)
    assert first.stdout is not None
    assert first.stdout.readline() == "here\n"
    part = beside / "run" / ".mtl-bench-checkpoint.pt-1-abcd"
    part.write_text("the first one is writing this")
    before = listing(beside / "run")
    from long_runs import configs  # type: ignore[import-not-found]

    # From its beginning: the error was once put into another one's words, about names that no file can have.
    with pytest.raises(ResultsDirectoryError, match=r"^`directory` .* must be free, got a run that another process is"):
        run(configs(1)[0], beside / "run")
    with pytest.raises(ResultsDirectoryError, match="broken off"):
        load_result(beside / "run")
    assert listing(beside / "run") == before
    assert first.stdin is not None
    first.stdin.write("\n")
    first.stdin.close()
    assert first.wait(PATIENCE) == 0
    assert RunDirectory(beside / "run").read_checkpoint() is not None


def test_a_lock_ends_with_its_process_though_its_children_live(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock.locked(tmp_path / "lock"):
            child = os.fork()
            if child:
                os.write(writing, child.to_bytes(4, "little"))
            time.sleep(PATIENCE)
        os._exit(0)
    child = int.from_bytes(os.read(reading, 4), "little")
    try:
        with pytest.raises(ResultsDirectoryError, match="another process"), lock.locked(tmp_path / "lock"):
            pass
        time.sleep(0.2)  # the child closes the file as the first thing it does
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with lock.locked(tmp_path / "lock") as reason:
            assert reason is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_a_lock_is_free_at_once_when_its_holder_is_done(tmp_path: Path) -> None:
    for _ in range(20):
        with lock.locked(tmp_path / "lock"):
            child = os.fork()
            if child == 0:
                os._exit(0)
        with lock.locked(tmp_path / "lock") as reason:
            assert reason is None
        os.waitpid(child, 0)


def test_without_locks_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    config = RunConfig.resolve(Choice("toy", {"start": 0, "steps_per_epoch": 2}), epochs=1)
    said: list[str] = []
    run(config, tmp_path / "run", say=said.append)
    assert said == [
        f"{tmp_path / 'run'}: this platform has no file locks: see to it that no other process works on this run."
    ]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
from mtl_benchmarks.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_limit_on_files_is_one_line_and_afterwards_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "toy", "--benchmark.start", "0", "--benchmark.steps_per_epoch", "2", "--epochs", "2"]
    command = [sys.executable, "-c", LIMITED, *words, "--out", str(tmp_path / "runs")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "`checkpoint.pt` in" in found.stderr
    assert "(EFBIG). Make room and give the same command again" in found.stderr
    for out in ("runs", "whole"):
        assert main([*words, "--out", str(tmp_path / out)]) == 0
    broken, whole = (json.loads(next((tmp_path / out).glob("*/result.json")).read_text()) for out in ("runs", "whole"))
    assert broken["values"] == whole["values"]
    capsys.readouterr()


@pytest.mark.slow
def test_killed_at_random_it_goes_on_bit_for_bit(beside: Path, start: Callable[[str], subprocess.Popen[str]]) -> None:
    program = (
        "from mtl_benchmarks import RunConfig, run, Choice\n"
        "config = RunConfig.resolve(Choice('long_runs:Long', {'n_epochs': 60}), 'ls')\n"
        "print('here', flush=True)\n"
        "run(config, 'killed', checkpoint_every=1)\n"
    )
    config = RunConfig.resolve(Choice("long_runs:Long", {"n_epochs": 60}), "ls")
    whole = run(config, beside / "whole", checkpoint_every=1)
    for number in range(6):
        process = start(program)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        time.sleep(0.05 * (number + 1))
        process.kill()
        process.wait()
    found = run(config, beside / "killed", checkpoint_every=1, say=[].append)
    assert found.values == whole.values
    assert (beside / "killed" / "metrics.csv").read_bytes() == (beside / "whole" / "metrics.csv").read_bytes()


def test_two_at_a_time_give_what_one_gives(tmp_path: Path) -> None:
    toy = Choice("toy", {"start": 4, "steps_per_epoch": 2})
    configs = [RunConfig.resolve(toy, "ls", seed=seed, epochs=1) for seed in range(3)]
    alone = run_all(configs, tmp_path / "alone")
    seen: list[int] = []
    beside = run_all(configs, tmp_path / "beside", processes=2, progress=lambda result: seen.append(result.config.seed))
    assert seen == [0, 1, 2]
    assert [result.values for result in beside] == [result.values for result in alone]
