"""Watching a run changes nothing in it; logs hold what was seen, once, also after a restart."""

from __future__ import annotations

import csv
import io
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from mtl_benchmarks.cli import main
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.logs import CSVLog, TensorBoardLog, WandBLog, make_logs
from mtl_benchmarks.engine.observers import EvaluationSeen, Observer, ObserverError, RunStart, StepSeen, Watching
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.trainer import Trainer
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.runs.work import Work
from mtl_benchmarks.storage.checkpoint import Checkpoints
from mtl_benchmarks.storage.results import Collection, RunDirectory
from mtl_core import InvalidParameterError, MissingExtraError, ResultsDirectoryError

HERE = Path(__file__).parent


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.syspath_prepend(HERE)
    return RunConfig.resolve("many_lines:Noisy", "rlw", epochs=3)  # every loss and every weight is drawn


class Keeps(Observer):
    """Remembers everything that it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, run: RunStart) -> None:
        self.told.append(("start", run.step))

    def step(self, seen: StepSeen) -> None:
        self.told.append(("step", seen.step, seen.epoch, dict(seen.losses), dict(seen.weights), dict(seen.norms)))

    def evaluation(self, seen: EvaluationSeen) -> None:
        self.told.append(("evaluation", seen.step, seen.epoch, seen.values, seen.seconds))

    def finish(self) -> None:
        self.told.append(("finish",))

    def broken_off(self) -> None:
        self.told.append(("broken off",))


class Meddles(Observer):
    """Does to the process whatever an observer could."""

    def step(self, seen: StepSeen) -> None:
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)  # noqa: NPY002
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        with pytest.raises(TypeError):
            seen.losses["first"] = 0.0  # type: ignore[index]

    def evaluation(self, seen: EvaluationSeen) -> None:
        with pytest.raises(TypeError):
            seen.values["test"]["error_first"] = 0.0  # type: ignore[index]


def test_what_is_told_in_which_order(config: RunConfig, tmp_path: Path) -> None:
    keeps = Keeps()
    result = run(config, tmp_path / "run", observers=[keeps])
    kinds = [each[:2] for each in keeps.told]
    assert kinds == [
        ("start", 0),
        *(("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("step", 4), ("evaluation", 4)),
        *(("step", 5), ("step", 6), ("evaluation", 6), ("finish",)),
    ]
    steps = [each for each in keeps.told if each[0] == "step"]
    assert [each[1] for each in steps] == [1, 2, 3, 4, 5, 6]
    assert [each[2] for each in steps] == [0, 0, 1, 1, 2, 2]
    assert all(set(each[3]) == {"first", "second", "third"} for each in steps)
    last = keeps.told[-2]
    assert last[:3] == ("evaluation", 6, 3)
    assert last[3]["test"] == result.values
    # The mean over the steps of the last epoch is that of what was told of them.
    for task in ("first", "second", "third"):
        assert last[3]["train"][f"loss_{task}"] == pytest.approx((steps[4][3][task] + steps[5][3][task]) / 2)
        assert last[3]["train"][f"weight_{task}"] == pytest.approx((steps[4][4][task] + steps[5][4][task]) / 2)
    assert set(last[4]) == {"data", "forward", "backward", "teleports", "evaluation"}
    again = Keeps()
    run(config, tmp_path / "run", observers=[again])
    assert again.told == []  # a complete run is only read


def test_no_observer_changes_the_numbers(config: RunConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "alone")
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    run(config, tmp_path / "watched", observers=[Meddles(), CSVLog(every=1), Meddles()])
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()) == before
    for name in ("metrics.csv", "steps.csv", "cosines.csv", "events.jsonl"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "watched" / name).read_bytes()
    alone, watched = (RunDirectory.existing(tmp_path / name).read_checkpoint() for name in ("alone", "watched"))
    assert alone is not None
    assert watched is not None
    for key, value in alone.state["model"].items():
        assert torch.equal(value, watched.state["model"][key])


class Fails(Observer):
    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, seen: StepSeen) -> None:
        if seen.step == self.at:
            raise KeyError("nothing")


def test_an_error_names_the_observer_and_the_run_goes_on_without_it(config: RunConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "alone")
    with pytest.raises(ObserverError, match="observer Fails must not fail, got KeyError at step 4: 'nothing'"):
        run(config, tmp_path / "run", observers=[CSVLog(every=1), Fails(4)])
    keeps = Keeps()
    run(config, tmp_path / "run", observers=[CSVLog(every=1), keeps])
    assert keeps.told[0] == ("start", 2)
    assert [each[1] for each in keeps.told if each[0] == "step"] == [3, 4, 5, 6]
    assert [each[1] for each in keeps.told if each[0] == "evaluation"] == [2, 4, 6]
    assert (tmp_path / "alone/metrics.csv").read_bytes() == (tmp_path / "run/metrics.csv").read_bytes()
    # Nothing is in the log twice, and nothing is missing.
    rows = list(csv.DictReader((tmp_path / "run/log/log.csv").read_text().splitlines()))
    keys = [(row["step"], row["name"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert [row["step"] for row in rows if row["name"] == "step/loss/first"] == ["1", "2", "3", "4", "5", "6"]
    assert [row["step"] for row in rows if row["name"] == "test/error_first"] == ["2", "4", "6"]


@pytest.mark.parametrize(
    ("cls", "name"),
    [(Watching, "finish"), (Work, "_finish"), (RunDirectory, "write_result"), (Keeps, "finish"), (Keeps, "evaluation")],
)
def test_a_run_that_lacks_nothing_but_its_result_still_tells_of_its_end(
    cls: type, name: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, tmp_path / "whole", observers=[CSVLog(every=1)])

    def ends(*arguments: Any) -> None:
        if name != "evaluation" or arguments[1].step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cls, name, ends)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run", observers=[Keeps(), CSVLog(every=1)])
    assert not (tmp_path / "run" / "result.json").exists()
    keeps = Keeps()
    run(config, tmp_path / "run", observers=[keeps, CSVLog(every=1)])
    assert [each[:2] for each in keeps.told] == [("start", 6), ("evaluation", 6), ("finish",)]
    whole, found = (
        [
            row[:4]
            for row in csv.reader((tmp_path / each / "log/log.csv").read_text().splitlines())
            if "seconds/" not in row[2]
        ]
        for each in ("whole", "run")
    )
    assert found == whole


def logged(directory: Path) -> list[tuple[int, str, str]]:
    """Step, name and value of every line but those of times, which no two runs share."""
    rows = csv.DictReader((directory / "log/log.csv").read_text().splitlines())
    return [(int(row["step"]), row["name"], row["value"]) for row in rows if "seconds/" not in row["name"]]


Ends = Callable[[pytest.MonkeyPatch, type[BaseException]], Callable[[Progress], None] | None]


def in_the_progress_of(step: int) -> Ends:
    def ends(patched: pytest.MonkeyPatch, error: type[BaseException]) -> Callable[[Progress], None]:
        def progress(now: Progress) -> None:
            if now.done == step:
                raise error

        return progress

    return ends


def in_(cls: type, name: str, *, call: int, after: bool) -> Ends:
    """Before or after a call of a method."""

    def ends(patched: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        whole, calls = getattr(cls, name), [0]

        def broken(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == call and not after:
                raise error
            found = whole(*arguments, **named)
            if calls[0] == call:
                raise error
            return found

        patched.setattr(cls, name, broken)

    return ends


PLACES: dict[str, tuple[Ends, int]] = {
    "in the first step": (in_(Trainer, "take_step", call=1, after=False), 0),
    "after a step": (in_the_progress_of(3), 3),
    "after the last step of an epoch": (in_the_progress_of(4), 4),
    "in the first step of an epoch": (in_(Trainer, "take_step", call=5, after=False), 4),
    "after an evaluation": (in_(Trainer, "evaluate", call=2, after=True), 4),
    "before the checkpoint of an epoch": (in_(Checkpoints, "write", call=4, after=False), 4),
    "after the checkpoint of an epoch": (in_(Checkpoints, "write", call=4, after=True), 4),
    "before the checkpoint of a step": (in_(Checkpoints, "write", call=3, after=False), 3),
    "after the checkpoint of a step": (in_(Checkpoints, "write", call=3, after=True), 3),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", list(PLACES))
def test_a_log_has_all_that_was_seen_where_the_run_is_broken_off_and_goes_on_without_a_gap(
    place: str, error: type[BaseException], config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, tmp_path / "whole", observers=[CSVLog(every=1)])
    ends, steps = PLACES[place]
    keeps = Keeps()
    with monkeypatch.context() as patched:
        progress = ends(patched, error)
        with pytest.raises(error):
            run(config, tmp_path / "run", checkpoint_every=1, progress=progress, observers=[CSVLog(every=1), keeps])
    whole = logged(tmp_path / "whole")
    evaluated = 4 if place in ("in the first step of an epoch", "after an evaluation") or "of an epoch" in place else 2
    if steps:
        # Of the step at whose end it was broken off there is no evaluation where that had not been made.
        evaluated = 2 if place == "after the last step of an epoch" else evaluated
        expected = [row for row in whole if row[0] <= steps and (row[1].startswith("step/") or row[0] <= evaluated)]
        assert logged(tmp_path / "run") == expected
        assert keeps.told[-1] == ("broken off",)
    else:
        assert keeps.told == []
    run(config, tmp_path / "run", observers=[CSVLog(every=1)])
    assert logged(tmp_path / "run") == whole


def test_a_log_that_is_broken_off_while_it_is_opened_again_loses_nothing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(now: Progress) -> None:
        if now.done == 4:
            raise KeyboardInterrupt

    def interrupt(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", progress=stop, observers=[CSVLog(every=1)])
    before = logged(tmp_path / "run")
    assert before[-1][0] == 4
    log, at_two = CSVLog(every=1), RunStart(config, tmp_path / "run", 2)
    with monkeypatch.context() as patched:
        patched.setattr(csv, "writer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            log.start(at_two)
    assert logged(tmp_path / "run") == before


def test_a_torn_line_of_a_log_is_written_again(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ObserverError):
        run(config, tmp_path / "run", observers=[CSVLog(every=1), Fails(4)])
    log = tmp_path / "run/log/log.csv"
    log.write_bytes(log.read_bytes() + b"4,2,step/lo")
    run(config, tmp_path / "run", observers=[CSVLog(every=1)])
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert all(row["value"] and float(row["value"]) is not None for row in rows)


def test_tensorboard(config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra [tensorboard])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(config, tmp_path / "run", observers=[TensorBoardLog(every=2)])
    read = EventAccumulator(str(tmp_path / "run/log/tensorboard"))
    read.Reload()
    names = set(read.Tags()["scalars"])
    assert {"step/loss/first", "step/weight/third", "test/error_first", "train/lr", "seconds/forward"} <= names
    assert [event.step for event in read.Scalars("step/loss/first")] == [1, 2, 4, 6]
    assert read.Scalars("test/error_first")[-1].value == pytest.approx(result.values["error_first"])


def test_tensorboard_has_what_was_seen_where_the_run_is_broken_off(config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra [tensorboard])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def stop(now: Progress) -> None:
        if now.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", progress=stop, observers=[TensorBoardLog(every=1)])
    read = EventAccumulator(str(tmp_path / "run/log/tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("step/loss/first")] == [1, 2, 3, 4]
    assert [event.step for event in read.Scalars("test/error_first")] == [2]


def test_wandb_offline(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (extra [wandb])")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(config, tmp_path / "run", observers=[WandBLog(every=2)])
    wandb.teardown()  # its own process writes the file, and has done so when this returns
    (file,) = (tmp_path / "run/log/wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for name in (b"step/loss/first", b"test/error_first", b"seconds/forward", config.name.encode()):
        assert name in content


def test_names_of_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [type(log) for log in make_logs(["csv", "csv"])] == [CSVLog]
    with pytest.raises(InvalidParameterError, match="csv"):
        make_logs(["paper"])
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="pip install 'tensorboard>="):
        make_logs(["tensorboard"])
    with pytest.raises(MissingExtraError, match="pip install 'wandb>="):
        make_logs(["wandb"])


def wandb_that(mode: str = "online", error: Exception | None = None) -> ModuleType:
    """What this package asks of wandb before a run."""

    def login() -> bool:
        if error is not None:
            raise error
        return True

    class Error(Exception):
        pass

    fake = ModuleType("wandb")
    vars(fake).update(login=login, Error=Error, setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode)))
    if isinstance(error, RuntimeError):
        error = Error(*error.args)
    return fake


NO_KEY = RuntimeError("No API key configured.")


@pytest.mark.parametrize(
    ("mode", "error", "is_ready"),
    [
        ("online", None, True),
        ("online", NO_KEY, False),
        ("shared", NO_KEY, False),
        ("online", ValueError("API key must have 40 characters"), False),
        ("offline", NO_KEY, True),
        ("dryrun", NO_KEY, True),
        ("disabled", NO_KEY, True),
    ],
)
def test_wandb_needs_a_key_before_anything_begins(
    mode: str,
    error: Exception | None,
    is_ready: bool,
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb_that(mode, error))
    log = WandBLog()
    if is_ready:
        log.ready(tmp_path / "run")
        return
    with pytest.raises(InvalidParameterError, match="must have a key of Weights & Biases, got none that it takes"):
        run(config, tmp_path / "run", observers=[log])
    assert not (tmp_path / "run").exists()
    command = ["run", "many_lines:Three", "--epochs", "1", "--log", "wandb", "--out", str(tmp_path / "runs")]
    assert main(command) == 2
    assert "`--log` wandb must have a key" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_real_wandb_without_a_key(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (extra [wandb])")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NETRC", "HOME", "WANDB_CONFIG_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "HOME").mkdir()
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # no terminal to ask at
    wandb.teardown()
    try:
        with pytest.raises(InvalidParameterError, match=r"got none that it takes .* WANDB_MODE=offline"):
            run(config, tmp_path / "run", observers=[WandBLog()])
    finally:
        wandb.teardown()
    assert not (tmp_path / "run").exists()


IN_THE_WAY = {
    "a file for the folder": ("csv", "log", "must be written in a folder"),
    "a link that leads nowhere": ("csv", "log->", "must be written in a folder"),
    "a folder for the file": ("csv", "log/log.csv/", "must be written in a file"),
    "a file for the folder of tensorboard": ("tensorboard", "log/tensorboard", "must be written in a folder"),
    "a file for the folder of wandb": ("wandb", "log/wandb", "must be written in a folder"),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_log_that_cannot_be_written_is_refused_before_the_first_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the second of two runs, which a command would have come to after training the first."""
    monkeypatch.syspath_prepend(HERE)
    log, name, said = IN_THE_WAY[kind]
    pytest.importorskip(log, reason=f"{log} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "runs"
    words = ["run", "many_lines:Noisy", "--epochs", "1", "--seeds", "2", "--out", str(out), "--baselines", "none"]
    configs = [RunConfig.resolve("many_lines:Noisy", "ls", epochs=1, seed=seed) for seed in (0, 1)]
    place = Collection(out).run_path(configs[1].name) / name.rstrip("/->")
    place.parent.mkdir(parents=True)
    if name.endswith("->"):
        place.symlink_to(tmp_path / "nowhere")
    elif name.endswith("/"):
        place.mkdir()
    else:
        place.write_text("of somebody else")
    assert main([*words, "--log", log]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(place) in error
    assert error.count("\n") == 1
    assert not (out / configs[0].name).exists()


@pytest.mark.parametrize("log", [CSVLog(), TensorBoardLog()], ids=["csv", "tensorboard"])
def test_a_log_that_may_not_be_written_to(log: Observer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/log.csv").write_text("step,epoch,name,value\n")
    (tmp_path / "log/tensorboard").mkdir()
    log.ready(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in ("log.csv", "tensorboard"))
    with pytest.raises(ResultsDirectoryError, match="must be writable, got"):
        log.ready(tmp_path)


def test_a_folder_by_the_name_of_wandb_is_not_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(MissingExtraError, match="pip install 'wandb>="):
        WandBLog()


@pytest.mark.parametrize("line", ['3,1,"never ends,1.0', "3,1," + 200_000 * "x" + ",1.0", "x" * 200_000])
def test_a_damaged_line_of_a_log_takes_no_others_with_it(line: str, config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run/log/log.csv"
    path.parent.mkdir(parents=True)
    path.write_text(f"step,epoch,name,value\n1,1,step/loss/first,1.0\n{line}\n2,1,step/loss/first,2.0\n")
    log = CSVLog()
    log.start(RunStart(config, tmp_path / "run", 2))
    log.finish()
    lines = path.read_text().splitlines()
    assert lines[1] == "1,1,step/loss/first,1.0"
    assert "2,1,step/loss/first,2.0" in lines


def test_observers_are_asked_before_a_run(config: RunConfig, tmp_path: Path) -> None:
    class Unable(Observer):
        def ready(self, directory: Path) -> None:
            assert directory == tmp_path / "run"
            torch.rand(1)
            raise OSError("no line")

    before = torch.get_rng_state()
    with pytest.raises(ObserverError, match="observer Unable must be ready before a run, got OSError: no line"):
        run(config, tmp_path / "run", observers=[Unable()])
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "run").exists()
