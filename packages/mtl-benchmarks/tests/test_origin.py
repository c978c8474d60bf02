"""Code and data that are no part of a configuration: recorded with a run, and said where they have changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.origin import origin
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.storage.results import RunDirectory

MODULE = """
import torch
from torch import nn
from many_lines import Three
from mtl_benchmarks import models
import mtl_teleport

class Mine(Three):
    name = "mine"
    def __init__(self, *, root: str | None = None):
        super().__init__()

class Equal:
    def weights(self, gramian):
        return torch.ones(len(gramian), dtype=gramian.dtype)

class Still(mtl_teleport.RandomTeleport):
    def __init__(self, *, method):
        super().__init__(method, length=0.1)

class Often(mtl_teleport.Always):
    pass

def clipping(parameters):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "written_here", raising=False)
    file = tmp_path / "written_here.py"
    file.write_text(MODULE)
    return file


USES: dict[str, Callable[[], RunConfig]] = {
    "benchmark": lambda: RunConfig.resolve("written_here:Mine", epochs=1),
    "method": lambda: RunConfig.resolve("many_lines:Three", "written_here:Equal", epochs=1),
    "teleport": lambda: RunConfig.resolve("many_lines:Three", "ls", "written_here:Still", epochs=1),
    "trigger": lambda: RunConfig.resolve(
        "many_lines:Three", "ls", Choice("cost", {"trigger": "written_here:Often"}), epochs=1
    ),
    "clipping": lambda: RunConfig.resolve(
        "many_lines:Three",
        training=RunConfig.resolve("many_lines:Three", epochs=1).training.from_dict(
            {"batch_size": 16, "epochs": 1, "clip": {"function": "written_here:clipping"}}
        ),
    ),
}


def stop(now: Any) -> None:
    if now.done == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("use", list(USES))
def test_changed_code_is_said_of_a_run_that_goes_on_and_of_one_that_is_complete(
    use: str, module: Path, tmp_path: Path
) -> None:
    config = USES[use]()
    before = origin(config)["code"]["written_here"]
    said: list[str] = []
    directory = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, directory, checkpoint_every=1, progress=stop, say=said.append)
    assert said == []
    module.write_text(MODULE + "\n# another word\n")
    after = origin(config)["code"]["written_here"]
    change = f"code of written_here {after} after {before}"
    found = run(config, directory, say=said.append)
    assert said == [
        f"{directory}: goes on with {change}: the numbers may differ from those of a run that was not broken off."
    ]
    assert change in found.notes[0]
    assert run(config, directory, say=said.append) == found
    assert len(said) == 1  # that code is now the recorded one
    module.write_text(MODULE)
    assert run(config, directory, say=said.append) == found
    assert (
        f"{directory}: is complete and is not trained again with code of written_here {before} after {after}" in said[1]
    )


def test_of_this_package_there_are_versions_alone(tmp_path: Path) -> None:
    config = RunConfig.resolve(Choice("toy", {"start": 0, "steps_per_epoch": 2}), "mgda", "cost", epochs=1)
    assert origin(config) == {"code": {}, "data": {}}


CHANGES: dict[str, Callable[[Path], object]] = {
    "another": lambda root: (root / "deep" / "more.txt").write_text("c"),
    "longer": lambda root: (root / "deep" / "some.txt").write_text("abcd"),
    "of the same length": lambda root: os.utime(root / "deep" / "some.txt", ns=(1, 1)),
    "fewer": lambda root: (root / "table.csv").unlink(),
    "renamed": lambda root: (root / "table.csv").rename(root / "tables.csv"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_data_are_said(change: str, module: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "some.txt").write_text("abc")
    (root / "table.csv").write_text("1,2")
    config = RunConfig.resolve(Choice("written_here:Mine", {"root": str(root)}), epochs=1)
    whole = run(config, tmp_path / "run")
    (session,) = RunDirectory(tmp_path / "run").read_sessions()
    assert session["environment"]["data"] == origin(config)["data"]
    said: list[str] = []
    assert run(config, tmp_path / "run", say=said.append) == whole
    assert said == []
    CHANGES[change](root)
    assert run(config, tmp_path / "run", say=said.append) == whole
    (line,) = said
    assert "is complete and is not trained again with files of `root` " in line
    for file in sorted(root.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    root.rmdir()
    run(config, tmp_path / "run", say=said.append)
    assert len(said) == 1  # no data are needed for reading
