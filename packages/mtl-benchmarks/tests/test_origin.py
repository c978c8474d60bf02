"""Code and data that are no part of a configuration: recorded with a run, and said where they have changed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.origin import origin
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.storage import contents as contents_module
from mtl_benchmarks.storage.contents import contents
from mtl_benchmarks.storage.environment import differences
from mtl_benchmarks.storage.results import RunDirectory

MODULE = """
from pathlib import Path
import torch
from torch import nn
from many_lines import Three
from mtl_benchmarks import models
import mtl_teleport

class Mine(Three):
    name = "mine"
    def __init__(self, *, root: str | None = None, table: str = "", folder: Path = None, word: str = "deep"):
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


def test_a_module_that_one_of_two_processes_had_not_imported_yet_is_no_change() -> None:
    before = {"code": {"mine": "1", "lazy": "2"}, "data": {"root": "3"}, "packages": {"torch": "1"}}
    now = {"code": {"mine": "1", "other": "2"}, "data": {}, "packages": {"torch": "1", "numpy": "2"}}
    assert differences(before, now) == ["numpy 2 after None"]
    changed = differences(before, {**before, "code": {"mine": "5"}, "data": {"root": "4"}})
    assert changed == ["code of mine 5 after 1", "files of `root` 4 after 3"]


def test_of_this_package_there_are_versions_alone(tmp_path: Path) -> None:
    config = RunConfig.resolve(Choice("toy", {"start": 0, "steps_per_epoch": 2}), "mgda", "cost", epochs=1)
    assert origin(config) == {"code": {}, "data": {}}


@pytest.mark.parametrize(
    "line", ["import helper_here", "from helper_here import SIDE", "from helper_here import width"]
)
def test_code_that_a_module_of_ones_own_uses_counts(line: str, module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "helper_here", raising=False)
    helper = module.with_name("helper_here.py")
    text = "import json\n\nSIDE = 2\n\ndef width():\n    return json.dumps(3)\n"
    helper.write_text(text)
    module.write_text(f"{line}\n{MODULE}")
    config = USES["method"]()
    before = origin(config)["code"]
    # And neither what it has of the standard library, nor that of installed packages.
    assert set(before) == {"written_here", "helper_here", "many_lines"}
    helper.write_text(text.replace("3", "4"))
    after = origin(config)["code"]
    assert {name for name in before if before[name] != after[name]} == {"helper_here"}


CHANGES: dict[str, Callable[[Path], object]] = {
    "another": lambda root: (root / "deep" / "more.txt").write_text("c"),
    "longer": lambda root: (root / "deep" / "some.txt").write_text("abcd"),
    "of the same length": lambda root: (root / "deep" / "some.txt").write_text("abd"),
    "fewer": lambda root: (root / "table.csv").unlink(),
    "renamed": lambda root: (root / "table.csv").rename(root / "tables.csv"),
    "swapped": lambda root: swap(root / "deep" / "some.txt", root / "table.csv"),
    "behind a link": lambda root: (root / "linked" / "far.txt").write_text("d"),
}


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "some.txt").write_text("abc")
    (root / "table.csv").write_text("1,2")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.txt").write_text("c")
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "round").symlink_to(root, target_is_directory=True)
    return root


@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_data_are_said(change: str, module: Path, root: Path, tmp_path: Path) -> None:
    config = RunConfig.resolve(Choice("written_here:Mine", {"root": str(root)}), epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "broken off", checkpoint_every=1, progress=stop)
    whole = run(config, tmp_path / "run")
    (session,) = RunDirectory(tmp_path / "run").read_sessions()
    before = origin(config)["data"]
    assert session["environment"]["data"] == before
    assert list(before) == ["root"]
    said: list[str] = []
    for file in root.rglob("*"):  # a copy of the same data is the same
        os.utime(file, ns=(1, 1))
    assert run(config, tmp_path / "run", say=said.append) == whole
    assert said == []
    CHANGES[change](root)
    changed = f"files of `root` {origin(config)['data']['root']} after {before['root']}"
    assert run(config, tmp_path / "run", say=said.append) == whole
    assert f"{tmp_path / 'run'}: is complete and is not trained again with {changed}" in said[0]
    assert changed in run(config, tmp_path / "broken off", say=said.append).notes[0]
    assert len(said) == 2
    shutil.rmtree(root)
    run(config, tmp_path / "run", say=said.append)
    assert len(said) == 2  # no data are needed for reading


def test_a_benchmark_declares_its_files(module: Path, root: Path) -> None:
    found = "{'root': [ROOT / 'deep'], 'names': [ROOT / 'table.csv']}"
    declared = MODULE.replace("class Equal", f"    def files(self):\n        return {found}\n\nclass Equal")
    module.write_text(f"{declared}\nfrom pathlib import Path\nROOT = Path({str(root)!r})\n")
    config = RunConfig.resolve(Choice("written_here:Mine", {"root": str(root)}), epochs=1)
    before = origin(config)["data"]
    assert list(before) == ["root", "names"]
    (root / "not read.txt").write_text("x")
    assert origin(config)["data"] == before
    (root / "table.csv").write_text("2,1")
    after = origin(config)["data"]
    assert (after["root"], after["names"] == before["names"]) == (before["root"], False)


def test_options_name_data_by_their_name_their_type_or_what_lies_there(
    module: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    given = {"root": ".", "table": "table.csv", "folder": "deep"}
    config = RunConfig.resolve(Choice("written_here:Mine", given), epochs=1)
    # A word is none, though there is a folder of that name.
    assert list(origin(config)["data"]) == ["root", "table", "folder"]


def test_of_large_files_the_ends_count_and_of_many_files_some(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "_MOST_BYTES", 64)
    monkeypatch.setattr(contents_module, "_MOST_FILES", 4)
    monkeypatch.setattr(contents_module, "_digest", contents_module._digest.__wrapped__)
    for k in range(8):
        (root / f"{k}.bin").write_bytes(bytes(range(100)))
    shutil.rmtree(root / "deep")
    (root / "linked").unlink()
    (root / "round").unlink()
    (root / "table.csv").unlink()
    before = contents([root])

    def changes(name: str, place: int) -> bool:
        content = bytearray(range(100))
        content[place] += 100
        (root / name).write_bytes(content)
        found = contents([root]) != before
        (root / name).write_bytes(bytes(range(100)))
        assert contents([root]) == before
        return found

    # 16 bytes of each of four files: 8 from the beginning and 8 from the end.
    assert [k for k in range(100) if changes("0.bin", k)] == [*range(8), *range(92, 100)]
    assert [changes(f"{k}.bin", 0) for k in range(8)] == [True, False] * 4
