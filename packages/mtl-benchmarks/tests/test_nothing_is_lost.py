"""The law of a run's directory: killed, damaged, full or read-only, it goes on bit for bit or is refused by name."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import load_result, run
from mtl_benchmarks.storage import files, lock
from mtl_benchmarks.storage.checkpoint import Checkpoint, Checkpoints
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import ResultsDirectoryError

TOY = Choice("toy", {"start": 4, "steps_per_epoch": 2})
CONFIG = RunConfig.resolve(TOY, "ls", Choice("random", {"length": 0.1, "trigger": "weak"}), epochs=2)

WRITING = ("write", "fsync", "replace", "unlink", "makedirs")
OPERATIONS = ("open", "close", "read", "lstat", "listdir", *WRITING)


class Killed(BaseException):
    """Stands for the end of the process: nothing that runs afterwards reaches the disk."""


class Disk:
    """In place of ``os`` in the modules that touch a run's files: sees every operation before it is done.

    Args:
        before: called with the operation's number, its name and its arguments; what it raises comes instead.
        writing: whether only operations that would write are counted.
    """

    def __init__(self, before: Callable[[int, str, tuple[Any, ...]], None], *, writing: bool = False) -> None:
        self.before, self.writing = before, writing
        self.count = 0
        self.open_handles: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def operation(*arguments: Any, **settings: Any) -> Any:
            if not self.writing or name in WRITING or (name == "open" and arguments[1] & (os.O_WRONLY | os.O_RDWR)):
                self.count += 1
                self.before(self.count - 1, name, arguments)
            if name == "fsync":  # takes most of the time, and nothing here loses power
                return None
            found = real(*arguments, **settings)
            if name == "open":
                self.open_handles.add(found)
            if name == "close":
                self.open_handles.discard(*arguments)
            return found

        return operation

    def leave(self) -> None:
        """The process is gone, and with it what it had open."""
        for handle in self.open_handles:
            with suppress(OSError):
                os.close(handle)
        lock._held.clear()


def nothing(number: int, name: str, arguments: tuple[Any, ...]) -> None:
    """Everything is done."""


def kill(at: int) -> Disk:
    """A process that ends before operation ``at``, in a write when half of it is done."""

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == at and name == "write":
            os.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        if number >= at:
            raise Killed

    return Disk(before)


def fail(at: int, error: int) -> Disk:
    """A disk that cannot be written to from operation ``at`` on."""

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number >= at:
            raise OSError(error, os.strerror(error), str(arguments[0]))

    return Disk(before, writing=True)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], Disk]:
    def put(disk: Disk) -> Disk:
        for module in (files, lock):
            monkeypatch.setattr(module, "os", disk)
        return disk

    return put


def train(directory: Path, said: list[str] | None = None) -> dict[str, object]:
    """Go on with the run as the same command does, and give everything that must not depend on what happened to it."""
    run(CONFIG, directory, checkpoint_every=1, say=[].append if said is None else said.append)
    return content(directory)


def content(directory: Path) -> dict[str, object]:
    result = load_result(directory)
    kept = RunDirectory(directory).read_checkpoint()
    assert kept is not None
    return {
        "metrics": (directory / "metrics.csv").read_bytes(),
        "trace": (directory / "trace.csv").read_bytes(),
        "events": _events(result.events),
        "values": result.values,
        "model": [tensor.tolist() for tensor in kept.state["model"].values()],
        "optimizer": repr(kept.state["optimizer"]),
    }


def _events(events: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    train(directory)
    assert load_result(directory).events
    return directory


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("broken") / "run"

    def stop(now: Any) -> None:
        if now.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, directory, checkpoint_every=1, progress=stop)
    assert {"checkpoint.pt", "checkpoint.previous.pt", "metrics.csv"} <= set(os.listdir(directory))
    return directory


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, object]:
    return content(finished)


def test_killed_at_every_operation_it_goes_on_bit_for_bit(
    tmp_path: Path, whole: dict[str, object], on: Callable[[Disk], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves at an operation is what is there before it, or with half of a write: taken in one run."""
    directory, left = tmp_path / "run", tmp_path / "left"
    safe: list[int] = []
    written = -1
    write = Checkpoints.write

    def noted(self: Checkpoints, checkpoint: Checkpoint, *, verify: bool = False) -> str:
        nonlocal written
        seal = write(self, checkpoint, verify=verify)
        written = checkpoint.position["step"]
        return seal

    def before(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        half = len(arguments[1]) // 2 if name == "write" else 0
        if half:
            os.write(arguments[0], bytes(arguments[1])[:half])
        safe.append(written)
        if directory.exists():
            shutil.copytree(directory, left / str(number))
        if half:
            os.lseek(arguments[0], 0, os.SEEK_SET)

    monkeypatch.setattr(Checkpoints, "write", noted)
    on(Disk(before))
    assert train(directory) == whole
    on(Disk(nothing))
    assert len(safe) >= 200
    for number, step in enumerate(safe):
        found = RunDirectory(left / str(number)).checkpoints.read(CONFIG.as_dict())
        assert (-1 if found is None else found.position["step"]) >= step, number
        assert train(left / str(number)) == whole, number
        assert not [name for name in os.listdir(left / str(number)) if name.startswith(files.PART)]


def test_killed_again_and_again_on_the_way_back(
    tmp_path: Path, whole: dict[str, object], on: Callable[[Disk], Disk]
) -> None:
    draw = random.Random(0)
    for case in range(3):
        directory = tmp_path / str(case)
        for _ in range(12):
            disk = on(kill(draw.randrange(60)))
            with suppress(Killed):
                train(directory)
            disk.leave()
        on(Disk(nothing))
        assert train(directory) == whole


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=["full", "read-only", "faulty"])
def test_a_disk_that_fails_is_named_and_afterwards_it_goes_on_bit_for_bit(
    tmp_path: Path, whole: dict[str, object], on: Callable[[Disk], Disk], error: int
) -> None:
    disk = on(Disk(nothing, writing=True))
    train(tmp_path / "count")
    for at in range(0, disk.count, 7):
        directory = tmp_path / "runs" / str(at)
        on(fail(at, error))
        with pytest.raises(ResultsDirectoryError, match=errno.errorcode[error]) as caught:
            train(directory)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "give the same command again" in str(caught.value)
        on(Disk(nothing))
        assert train(directory) == whole, at


def test_a_complete_run_is_read_on_a_disk_that_cannot_be_written(
    finished: Path, whole: dict[str, object], on: Callable[[Disk], Disk]
) -> None:
    on(fail(0, errno.EROFS))
    assert train(finished) == whole


def flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def damage(directory: Path, draw: random.Random) -> list[str]:
    """Damage a file or two, at random; their names."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    kind = draw.choice(["flip", "truncate", "empty", "swap"])
    if kind == "swap":
        one, other = draw.sample(names, 2)
        (directory / one).rename(directory / "passing")
        (directory / other).rename(directory / one)
        (directory / "passing").rename(directory / other)
        return [one, other]
    name = draw.choice([name for name in names if (directory / name).stat().st_size])
    data = (directory / name).read_bytes()
    changed = {"flip": flipped(data, draw), "truncate": data[: draw.randrange(len(data))], "empty": b""}[kind]
    (directory / name).write_bytes(changed)
    return [name]


WAYS_OUT = ("Give the command", "Move ", "move ", "write {", "Choose another", "Put back", "remove it", "Remove it")


def held(act: Callable[[], dict[str, object]], names: list[str], expected: dict[str, object]) -> None:
    """It gives the same, or one line that names a damaged file and says what to do."""
    said = None
    try:
        assert act() == expected, names
    except ResultsDirectoryError as error:
        said = str(error)
    if said is not None:
        assert any(name in said for name in names), (names, said)
        assert "\n" not in said
        assert any(way in said for way in WAYS_OUT), said


@pytest.mark.parametrize("seed", range(100))
def test_damaged_files(seed: int, tmp_path: Path, finished: Path, broken_off: Path, whole: dict[str, object]) -> None:
    draw = random.Random(seed)
    directory = tmp_path / "run"
    shutil.copytree(finished if seed % 2 else broken_off, directory)
    names = damage(directory, draw)

    def compare() -> dict[str, object]:
        result = load_result(directory)
        return {"values": result.values, "events": _events(result.events)}

    if seed % 2:
        held(compare, names, {"values": whole["values"], "events": whole["events"]})
    held(lambda: train(directory), names, whole)
