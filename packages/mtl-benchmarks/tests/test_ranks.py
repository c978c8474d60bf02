"""Two processes that train together, started as torchrun starts them, beside one that trains alone.

Whoever waits for another here does so for a bounded time: a hang is a failure.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.tally import Rows, combined
from mtl_benchmarks.benchmarks import CTR, Digits
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.ranks import Ranks, joined
from mtl_benchmarks.runs.runner import load_result, run
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import InvalidInputError, InvalidParameterError

HERE = Path(__file__).parent
BOUND = 600  # seconds

PROGRAM = f"""
import json, sys
sys.path.insert(0, {str(HERE)!r})
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.batching.loading import Loading
from mtl_benchmarks.ranks import joined
from mtl_benchmarks.runs.runner import run
from mtl_core.testing import leave

def train(config, path, breaks, workers):
    def stop(now):
        if now.done == breaks:
            raise KeyError("broken off")

    config = RunConfig.from_dict(config)
    return run(config, path, checkpoint_every=1, progress=stop, loading=Loading(workers))

said = sys.stdout  # joined() keeps the others quiet
with joined():
    for name, *job in json.loads(sys.argv[1]):
        try:
            outcome = dict(train(*job).values)
        except Exception as error:
            outcome = f"{{type(error).__name__}}: {{error}}"
        print(json.dumps([name, outcome]), file=said, flush=True)
leave()
"""

Job = tuple[RunConfig, Path, int, int]


def start(words: Sequence[str], size: int = 2) -> list[subprocess.Popen[str]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *words], env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, **pipes)
        for r in range(size)
    ]


def finish(children: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    deadline = time.monotonic() + BOUND
    try:
        found = []
        for child in children:
            out, err = child.communicate(timeout=max(1.0, deadline - time.monotonic()))
            found.append((child.returncode, out, err))
        return found
    finally:
        for child in children:
            child.kill()
            child.wait()


def together(jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """Job → reported values, or the text of an error, as each of two processes has them."""
    listed = [[name, config.as_dict(), str(path), *rest] for name, (config, path, *rest) in jobs.items()]
    found = finish(start(["-c", PROGRAM, json.dumps(listed)]))
    assert [code for code, _, _ in found] == [0, 0], found
    # Gloo of torch 2.9 says there that it is connected.
    own = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for _, out, _ in found]
    return [dict(map(json.loads, lines)) for lines in own]


@pytest.fixture(autouse=True, scope="module")
def _samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        yield


def lines(**options: Any) -> Choice:
    return Choice("sample_benchmarks:Lines", options)


def resolve(benchmark: Choice, method: str, teleport: Choice | None = None, **settings: Any) -> RunConfig:
    return RunConfig.resolve(benchmark, method, teleport, **settings)


def history(path: Path) -> torch.Tensor:
    rows = RunDirectory.existing(path).read_metrics()
    return torch.tensor([float(row["value"]) for row in rows], dtype=torch.float64)


def model(path: Path) -> torch.Tensor:
    state = RunDirectory.existing(path).read_checkpoint()
    assert state is not None
    return torch.cat([tensor.flatten().double() for tensor in state.state["model"].values()])


TELEPORT = Choice("cost", {"trigger": "weak", "max_steps": 2})
PARITY: dict[str, tuple[str, Choice | None, dict[str, Any], dict[str, Any]]] = {
    "fairgrad": ("fairgrad", None, {}, {}),
    "famo": ("famo", None, {}, {}),
    "cost": ("ls", TELEPORT, {}, {}),
    "sdmgrad": ("sdmgrad", None, {"n_train": 23}, {}),
    "modo": ("modo", None, {"n_train": 23}, {}),
    "sdmgrad with cost": ("sdmgrad", TELEPORT, {"n_train": 20}, {}),
    "modo, loaded": ("modo", None, {"n_train": 23, "loaded": True}, {}),
    "micro-batches": ("fairgrad", None, {}, {"accumulate": 2}),
    "loaded": ("fairgrad", None, {"loaded": True}, {}),
    "sharded": ("fairgrad", None, {"n_train": 24}, {"sharding": "fsdp"}),
}
"""Method, teleport, options of the benchmark and what is other in the protocol of two processes."""

RESUMED = {"plain": {}, "norm": {"norm": True}, "dropout": {"dropout": 0.3}}
FAULTS = ("data", "loss", "evaluation")


def parity(name: str) -> tuple[RunConfig, RunConfig]:
    """The run of one process and that of two. The last batch, of 5 samples, falls into unequal parts."""
    method, teleport, options, settings = PARITY[name]
    alone = resolve(lines(**{"n_train": 21, **options}), method, teleport)
    return alone, replace(alone, ranks=2, training=replace(alone.training, **settings))


def resumed(name: str) -> RunConfig:
    return resolve(lines(**RESUMED[name]), "fairgrad", TELEPORT, epochs=2, ranks=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[dict[str, Any]]:
    """Every job below, by one pair of processes: they stay in step whatever a job before has ended in."""
    jobs: dict[str, Job] = {}
    for name in PARITY:
        jobs[name] = (parity(name)[1], folder / "two" / name, 0, int("loaded" in name))
    for name in RESUMED:
        jobs[f"{name} whole"] = (resumed(name), folder / "whole" / name, 0, 0)
        jobs[f"{name} broken"] = (resumed(name), folder / "broken" / name, 4, 0)
        jobs[f"{name} taken up"] = (resumed(name), folder / "broken" / name, 0, 0)
    jobs["sharded broken"] = (parity("sharded")[1], folder / "broken" / "sharded", 4, 0)
    jobs["sharded taken up"] = (parity("sharded")[1], folder / "broken" / "sharded", 0, 0)
    for fault in FAULTS:
        jobs[fault] = (resolve(lines(fault=fault), "fairgrad", epochs=2, ranks=2), folder / "fault" / fault, 0, 0)
    (folder / "else").mkdir()
    (folder / "else" / "file").write_text("not ours")
    plain = resolve(lines(), "ls", epochs=2, ranks=2)
    jobs["refused"] = (plain, folder / "else", 0, 0)
    jobs["left"] = (plain, folder / "left", 2, 0)
    jobs["complete"] = (plain, folder / "complete", 0, 0)
    jobs["complete again"] = (plain, folder / "complete", 0, 0)
    return together(jobs)


@pytest.mark.parametrize("name", PARITY)
def test_two_processes_make_the_run_of_one(folder: Path, outcomes: list[dict[str, Any]], name: str) -> None:
    run(parity(name)[0], folder / "one" / name)
    assert isinstance(outcomes[0][name], dict), outcomes[0][name]
    one, two = folder / "one" / name, folder / "two" / name
    torch.testing.assert_close(history(two), history(one), rtol=0, atol=1e-6)
    torch.testing.assert_close(model(two), model(one), rtol=0, atol=1e-6)
    events = [len(load_result(path).events) for path in (one, two)]
    assert events[0] == events[1]
    assert (events[0] > 0) is ("cost" in name)


def test_all_processes_evaluate_with_the_running_statistics_of_the_first(
    folder: Path, outcomes: list[dict[str, Any]]
) -> None:
    benchmark = make_benchmark(lines(norm=True))
    network = benchmark.build()
    state = RunDirectory.existing(folder / "whole" / "norm").read_checkpoint()
    assert state is not None
    network.load_state_dict(state.state["model"])
    assert outcomes[0]["norm whole"] == pytest.approx(benchmark.evaluate(network, device="cpu")["test"], rel=1e-12)


def test_all_processes_have_the_result(folder: Path, outcomes: list[dict[str, Any]]) -> None:
    first, second = outcomes
    assert first == second
    assert first["complete"] == first["complete again"] == dict(load_result(folder / "complete").values)


@pytest.mark.parametrize("name", [*RESUMED, "sharded"])
def test_broken_off_and_taken_up_they_end_the_same(folder: Path, outcomes: list[dict[str, Any]], name: str) -> None:
    for found in outcomes:
        assert found[f"{name} broken"].startswith("KeyError: ")
        assert "on rank 0: 'broken off'" in found[f"{name} broken"]
    whole = folder / ("two" if name == "sharded" else "whole") / name
    assert (folder / "broken" / name / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert torch.equal(model(folder / "broken" / name), model(whole))


def test_another_number_of_processes_is_refused(folder: Path, outcomes: list[dict[str, Any]]) -> None:
    two = resolve(lines(), "ls", epochs=2, ranks=2)
    with pytest.raises(InvalidParameterError, match="`ranks` must be the number of processes, got 2 with 1"):
        run(two, folder / "left")
    with pytest.raises(InvalidInputError, match="ranks: 2 there, 1 here"):
        run(replace(two, ranks=1), folder / "left")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_on_one_process_is_raised_on_all(outcomes: list[dict[str, Any]], fault: str) -> None:
    words = {"data": "the data", "loss": "the fourth loss", "evaluation": "the evaluation"}[fault]
    assert [found[fault] for found in outcomes] == [f"InvalidInputError: on rank 1: {words} must fail, got it."] * 2


def test_a_directory_that_the_first_is_refused_ends_all(outcomes: list[dict[str, Any]]) -> None:
    assert all(found["refused"].startswith("ResultsDirectoryError: on rank 0: `directory`") for found in outcomes)


def test_a_killed_process_ends_the_other(tmp_path: Path) -> None:
    config = resolve(lines(fault="killed"), "fairgrad", epochs=2, ranks=2)
    first, second = finish(start(["-c", PROGRAM, json.dumps([["killed", config.as_dict(), str(tmp_path), 0, 0]])]))
    assert second[0] == -signal.SIGKILL
    assert "Error" in first[1] + first[2]


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    words = ["run", "digits", "--benchmark.n_train", "48", "--benchmark.n_test", "21", "--epochs", "1"]
    out = tmp_path / "runs"
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        "0",
    ]
    command = [*launch, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "mtl_benchmarks"]
    child = subprocess.run(
        [sys.executable, *command, *words, "--baselines", "none", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    (found,) = [line.removeprefix("run: ") for line in child.stdout.splitlines() if line.startswith("run: ")]
    assert load_result(found).config.ranks == 2


def test_what_the_first_step_would_refuse_ends_all_processes_before_anything_begins(tmp_path: Path) -> None:
    """The last batch of 50 samples has 2, which cannot be cut in three."""
    words = ["run", "digits", "--benchmark.n_train", "50", "--batch_size", "12", "--method", "sdmgrad"]
    found = finish(start(["-m", "mtl_benchmarks", *words, "--epochs", "1", "--out", str(tmp_path / "runs")]))
    assert [code for code, _, _ in found] == [2, 2]
    for _, _, said in found:
        assert "must leave no batch of fewer than 3 samples, as SDMGrad takes three batches" in said
    assert not (tmp_path / "runs").exists()


def test_sharding_needs_several_processes() -> None:
    training = replace(Digits().training, sharding="fsdp")
    with pytest.raises(InvalidParameterError, match="`sharding` must be 'none'"):
        RunConfig.resolve("digits", training=training)


@pytest.mark.parametrize("benchmark", [Digits(n_train=8, n_test=23, n_validation=11), CTR(n_train=50, n_test=203)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_of_an_evaluation_add_up_to_the_whole(benchmark: Any, count: int) -> None:
    network = benchmark.build()
    whole = benchmark.evaluate(network, device="cpu")
    parts = [benchmark.tally(network, device="cpu", part=Part(k, count)) for k in range(count)]
    found = benchmark.metrics_from(combined(parts))
    for split, values in whole.items():
        assert found[split] == pytest.approx(values, rel=1e-6)


def test_rows_are_put_behind_one_another() -> None:
    parts = [{"test": {"x": Rows(torch.tensor([float(k)])), "n": torch.tensor(k)}} for k in range(3)]
    whole = combined(parts)["test"]
    assert isinstance(whole["x"], Rows)
    assert whole["x"].values.tolist() == [0.0, 1.0, 2.0]
    assert whole["n"] == torch.tensor(3)
    with pytest.raises(InvalidInputError, match="same entries"):
        combined([parts[0], {"test": {"n": torch.tensor(1)}}])


def test_without_torchrun_there_is_one_process() -> None:
    with joined({}) as ranks:
        assert ranks == Ranks()
        assert ranks.gather(1) == [1]
        assert ranks.share(1) == 1
        assert ranks.device("cuda") == "cuda"
