"""Watching a run changes nothing in it; logs hold what was seen, once, also after a restart."""

from __future__ import annotations

import csv
import io
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from mtl_benchmarks.cli import main
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.logs import CSVLog, TensorBoardLog, WandBLog, make_logs
from mtl_benchmarks.engine.observers import EvaluationSeen, Observer, ObserverError, RunStart, StepSeen
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.trainer import Trainer
from mtl_benchmarks.engine.watching import Watching
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.runs.work import Work
from mtl_benchmarks.storage.checkpoint import Checkpoints
from mtl_benchmarks.storage.results import Collection, RunDirectory
from mtl_core import DamagedFileError, InvalidParameterError, MissingExtraError, ResultsDirectoryError

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
    before = (tmp_path / LOG).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        log = CSVLog(every=1)
        log.look_back(tmp_path / "run", known(tmp_path / "run"))
        with pytest.raises(KeyboardInterrupt):
            log.start(RunStart(config, tmp_path / "run", 2))
    assert (tmp_path / LOG).read_bytes() == before


LOG = "run/log/log.csv"


def known(directory: Path) -> Mapping[str, Any]:
    """What the last checkpoint has of the log."""
    checkpoint = RunDirectory.existing(directory).read_checkpoint()
    assert checkpoint is not None
    state: Mapping[str, Any] = checkpoint.observers["CSVLog"][0]
    return state


def broken_off(config: RunConfig, directory: Path, *, at: int, observers: Sequence[Observer] = ()) -> None:
    """A run with a checkpoint at every step but the last that it takes."""
    with pytest.raises(ObserverError):
        run(config, directory, checkpoint_every=1, observers=[*observers, Fails(at)])


def same(log: Path, whole: Path) -> None:
    """But for its seconds a log is another one to the byte."""
    found, expected = (
        [line for line in each.read_text().splitlines() if "seconds/" not in line] for each in (log, whole)
    )
    assert found == expected


def cut(content: bytes, at: int) -> bytes:
    return content[:at]


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[min(at, len(content) - 1)] ^= 1
    return bytes(changed)


def longer(content: bytes, at: int) -> bytes:
    return content[:at] + b"0" + content[at:]


@pytest.mark.parametrize("damage", [cut, flipped, longer])
def test_a_log_goes_on_to_the_byte_or_is_refused(
    damage: Callable[[bytes, int], bytes], config: RunConfig, tmp_path: Path
) -> None:
    whole = tmp_path / "whole/log/log.csv"
    run(config, tmp_path / "whole", observers=[CSVLog(every=1)])
    broken_off(config, tmp_path / "half", at=4, observers=[CSVLog(every=1)])
    content, size = (tmp_path / "half/log/log.csv").read_bytes(), known(tmp_path / "half")["log.csv"]["size"]
    assert size < len(content)
    for at in (0, 3, size // 3, content.index(b"\n", size // 2), size - 1, size, (size + len(content)) // 2):
        shutil.copytree(tmp_path / "half", tmp_path / "run")
        log = tmp_path / LOG
        log.write_bytes(damage(content, at))
        if at >= size:  # of the step that comes again
            run(config, tmp_path / "run", observers=[CSVLog(every=1)])
            same(log, whole)
        else:
            before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
            with pytest.raises(DamagedFileError, match=r"`log\.csv` in .* must be as it was written") as raised:
                run(config, tmp_path / "run", observers=[CSVLog(every=1)])
            assert raised.value.path == log
            assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
        shutil.rmtree(tmp_path / "run")


def test_a_damaged_log_that_is_moved_away_lets_the_run_go_on(config: RunConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "whole", observers=[CSVLog(every=1)])
    broken_off(config, tmp_path / "run", at=4, observers=[CSVLog(every=1)])
    log = tmp_path / LOG
    log.write_bytes(b"")
    with pytest.raises(DamagedFileError, match="Move it away, and a new one begins here"):
        run(config, tmp_path / "run", observers=[CSVLog(every=1)])
    log.rename(tmp_path / "away.csv")
    run(config, tmp_path / "run", observers=[CSVLog(every=1)], say=lambda text: None)
    assert logged(tmp_path / "run") == [row for row in logged(tmp_path / "whole") if row[0] >= 4]


def test_a_run_without_its_damaged_log_goes_on_and_so_does_one_whose_log_was_left_out(
    config: RunConfig, tmp_path: Path
) -> None:
    run(config, tmp_path / "whole", observers=[CSVLog(every=1)])
    broken_off(config, tmp_path / "run", at=3, observers=[CSVLog(every=1)])
    seen = known(tmp_path / "run")
    broken_off(config, tmp_path / "run", at=5)
    assert known(tmp_path / "run") == seen  # what is left out for a while is not forgotten
    log = tmp_path / LOG
    kept = log.read_bytes()[: seen["log.csv"]["size"]]
    log.write_bytes(flipped(log.read_bytes(), 40))
    with pytest.raises(DamagedFileError):
        run(config, tmp_path / "run", observers=[CSVLog(every=1)])
    log.write_bytes(flipped(log.read_bytes(), 40))
    run(config, tmp_path / "run", observers=[CSVLog(every=1)])
    assert log.read_bytes().startswith(kept)
    steps = [int(row["step"]) for row in csv.DictReader(log.read_text().splitlines())]
    assert sorted(set(steps)) == [1, 2, 4, 5, 6]  # 4: its evaluation, seen by no one
    assert (tmp_path / "run/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


def test_a_log_that_the_checkpoint_does_not_know_is_refused_and_one_that_is_gone_begins_anew(
    config: RunConfig, tmp_path: Path
) -> None:
    broken_off(config, tmp_path / "run", at=3)
    log = tmp_path / LOG
    log.parent.mkdir()
    log.write_text("step,epoch,name,value\n")
    with pytest.raises(ResultsDirectoryError, match="must be of this run, got one that its checkpoint does not know"):
        run(config, tmp_path / "run", observers=[CSVLog(every=1)])
    assert log.read_text() == "step,epoch,name,value\n"
    log.unlink()
    said: list[str] = []
    broken_off(config, tmp_path / "run", at=4, observers=[CSVLog(every=1)])
    log.unlink()
    run(config, tmp_path / "run", observers=[CSVLog(every=1)], say=said.append)
    assert said == [f"{tmp_path / 'run'}: log/log.csv is not there any more: a new one begins here."]
    assert logged(tmp_path / "run")[0][0] >= 4


def test_a_complete_run_holds_its_log_against_its_result(config: RunConfig, tmp_path: Path) -> None:
    first = run(config, tmp_path / "run", observers=[CSVLog(every=1)])
    log = tmp_path / LOG
    content = log.read_bytes()
    assert run(config, tmp_path / "run", observers=[CSVLog(every=1)]) == first
    for at in (0, len(content) // 2, len(content) - 2):
        log.write_bytes(flipped(content, at))
        with pytest.raises(DamagedFileError, match=r"`log\.csv`"):
            run(config, tmp_path / "run", observers=[CSVLog(every=1)])
        assert run(config, tmp_path / "run") == first  # who does not ask for it does not hear of it
    # Where a table is written again, too.
    (tmp_path / "run/metrics.csv").write_bytes(b"")
    with pytest.raises(DamagedFileError, match=r"`log\.csv`"):
        run(config, tmp_path / "run", observers=[CSVLog(every=1)], say=lambda text: None)
    log.unlink()
    assert run(config, tmp_path / "run", observers=[CSVLog(every=1)]) == first
    assert not log.exists()


class Counts(Observer):
    """Has something to remember, and says when it was asked."""

    def __init__(self) -> None:
        self.seen = 0
        self.handed: list[Any] = []

    def step(self, seen: StepSeen) -> None:
        self.seen += 1

    def state_dict(self) -> Mapping[str, Any]:
        return {"seen": self.seen}

    def look_back(self, directory: Path, state: Mapping[str, Any] | None) -> str:
        self.handed.append(state)
        self.seen = 0 if state is None else state["seen"]
        return "counts on"


def test_observers_of_one_class_have_a_state_each(config: RunConfig, tmp_path: Path) -> None:
    first, second = Counts(), Counts()
    second.seen = 10
    said: list[str] = []
    broken_off(config, tmp_path / "run", at=4, observers=[first, second])
    more = [Counts(), Counts(), Counts()]
    run(config, tmp_path / "run", observers=more, say=said.append)
    assert [each.handed for each in more] == [[{"seen": 3}], [{"seen": 13}], [None]]
    assert [each.seen for each in more] == [6, 16, 3]
    assert said == 3 * [f"{tmp_path / 'run'}: counts on."]
    again = [Counts(), Counts(), Counts()]
    run(config, tmp_path / "run", observers=again)
    assert [each.handed for each in again] == [[{"seen": 6}], [{"seen": 16}], [{"seen": 3}]]


def test_a_state_that_is_no_plain_data_names_the_observer(config: RunConfig, tmp_path: Path) -> None:
    class Odd(Observer):
        def state_dict(self) -> Mapping[str, Any]:
            return {"a": object()}

    with pytest.raises(ObserverError, match="observer Odd must not fail, got TypeError at a checkpoint"):
        run(config, tmp_path / "run", observers=[Odd()])


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


@pytest.mark.parametrize("damage", [cut, flipped, longer])
def test_event_files_go_on_or_are_refused(
    damage: Callable[[bytes, int], bytes], config: RunConfig, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra [tensorboard])")
    broken_off(config, tmp_path / "run", at=3, observers=[TensorBoardLog(every=1)])
    broken_off(config, tmp_path / "run", at=5, observers=[TensorBoardLog(every=1)])
    for file in sorted((tmp_path / "run/log/tensorboard").iterdir()):
        content = file.read_bytes()
        file.write_bytes(damage(content, 60))
        with pytest.raises(DamagedFileError, match=f"`{re.escape(file.name)}` in .* must be as it was written"):
            run(config, tmp_path / "run", observers=[TensorBoardLog(every=1)])
        file.write_bytes(content)
    said: list[str] = []
    file.unlink()
    run(config, tmp_path / "run", observers=[TensorBoardLog(every=1)], say=said.append)
    assert said == [f"{tmp_path / 'run'}: log/tensorboard has no {file.name} any more, and goes on without."]


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


@pytest.mark.parametrize("words", [["csv", "tensorboard"], ["csv,tensorboard"]])
def test_a_run_is_written_to_several_logs(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra [tensorboard])")
    monkeypatch.syspath_prepend(HERE)
    out = tmp_path / "runs"
    command = ["run", "many_lines:Noisy", "--epochs", "1", "--out", str(out), "--baselines", "none", "--log", *words]
    assert main(command) == 0
    (log,) = out.rglob("log")
    assert (log / "log.csv").read_text().startswith("step,epoch,name,value\n1,1,step/loss/")
    assert len(list((log / "tensorboard").iterdir())) == 1


def test_a_log_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--out", str(tmp_path / "runs"), "--log", "csv", "paper"]) == 2
    assert "`--log` must be" in (error := capsys.readouterr().err)
    assert "paper" in error
    assert not (tmp_path / "runs").exists()
