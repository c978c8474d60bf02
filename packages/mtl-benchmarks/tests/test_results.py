import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtl_benchmarks.storage import files
from mtl_benchmarks.storage.checkpoint import Checkpoint, config_digest
from mtl_benchmarks.storage.environment import Sessions, differences, environment
from mtl_benchmarks.storage.files import make_directory, sealed, unsealed, write_atomically
from mtl_benchmarks.storage.marker import FORMAT, LOCK, MARKER, kind_of
from mtl_benchmarks.storage.results import Collection, RunDirectory
from mtl_benchmarks.storage.tables import table
from mtl_core import DamagedFileError, InvalidInputError, ResultsDirectoryError

CONFIG = {"method": {"name": "ls", "options": {"weights": None}}, "seed": 0}


def begin(path: Path, config: dict[str, object] = CONFIG) -> RunDirectory:
    directory = RunDirectory(path)
    with directory.working(config):
        pass
    return directory


def checkpoint(step: int, config: dict[str, object] = CONFIG, **state: object) -> Checkpoint:
    sessions = Sessions(say=print)
    sessions.begin({"epoch": 0, "step": 0})
    sessions.reached({"epoch": 1, "step": step})
    return Checkpoint("identity", config_digest(config), sessions.listed, state)


def test_layout_of_a_new_run(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["config.json", MARKER, LOCK]
    assert json.loads((tmp_path / "run" / MARKER).read_text()) == {"format": FORMAT, "kind": "run"}
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG
    assert (kind_of(tmp_path / "run"), kind_of(tmp_path / "none")) == ("run", None)


def test_nothing_is_looked_at_or_written_by_naming_a_run(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_the_same_run_may_come_back(tmp_path: Path) -> None:
    begin(tmp_path)
    before = (tmp_path / "config.json").stat().st_mtime_ns
    begin(tmp_path)
    assert (tmp_path / "config.json").stat().st_mtime_ns == before


def test_refuses_a_directory_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for make in (lambda: begin(tmp_path), lambda: Collection(tmp_path)):
        with pytest.raises(ResultsDirectoryError, match=r"must be empty or written by mtl-bench.*thesis\.tex"):
            make()
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_holds_nothing_but_directories_of_ours_is_a_collection(tmp_path: Path) -> None:
    """The runs of a study go to runs/study, and make runs on the way, where the next command wants its own."""
    Collection(tmp_path / "runs" / "study")
    assert kind_of(tmp_path / "runs") == "collection"
    with pytest.raises(ResultsDirectoryError, match="must be a run, got a collection"):
        begin(tmp_path / "runs")
    begin(Collection(tmp_path / "runs").run_path("one"))
    assert sorted(os.listdir(tmp_path / "runs")) == [MARKER, "one", "study"]


def test_one_thing_of_another_among_directories_of_ours_is_refused(tmp_path: Path) -> None:
    Collection(tmp_path / "study")
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ResultsDirectoryError, match=r"must be empty or written by mtl-bench.*thesis"):
        Collection(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["study", "thesis"]


def test_refuses_another_configuration_and_says_where_it_differs(tmp_path: Path) -> None:
    begin(tmp_path)
    other = {"method": {"name": "ls", "options": {"weights": [1.0, 2.0]}}, "seed": 1}
    with pytest.raises(
        ResultsDirectoryError, match=r"method\.options\.weights: None there, \[1\.0, 2\.0\] here; seed: 0 there, 1"
    ):
        begin(tmp_path, other)
    assert RunDirectory.existing(tmp_path).read_config() == CONFIG


def test_a_configuration_that_was_edited_is_told_by_the_checkpoint(tmp_path: Path) -> None:
    begin(tmp_path).checkpoints.write(checkpoint(1))
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "seed": 7}))
    with pytest.raises(ResultsDirectoryError, match=r"config\.json has seed: 7 there, 0 here.*was changed, remove it"):
        begin(tmp_path)
    with pytest.raises(ResultsDirectoryError, match=r"checkpoint\.pt.*of another configuration"):
        RunDirectory.existing(tmp_path).read_checkpoint()
    (tmp_path / "config.json").unlink()
    begin(tmp_path)
    assert RunDirectory.existing(tmp_path).read_config() == CONFIG
    (tmp_path / "config.json").unlink()
    with pytest.raises(ResultsDirectoryError, match=r"checkpoint\.pt.*of another configuration"):
        begin(tmp_path, {**CONFIG, "seed": 7})


def test_refuses_a_file_another_kind_another_format_and_a_broken_marker(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for make in (lambda: Collection(file), lambda: begin(file / "run")):
        with pytest.raises(ResultsDirectoryError, match=r"got the file .*file'\.$"):
            make()
    Collection(tmp_path / "collection")
    with pytest.raises(ResultsDirectoryError, match="must be a run, got a collection"):
        begin(tmp_path / "collection")
    begin(tmp_path / "run")
    with pytest.raises(ResultsDirectoryError, match="must be a collection, got a run"):
        Collection(tmp_path / "run")
    for found in (1, FORMAT + 1):
        (tmp_path / "run" / MARKER).write_text(json.dumps({"format": found, "kind": "run"}))
        with pytest.raises(ResultsDirectoryError, match=f"must have format {FORMAT}, got {found} in {MARKER}"):
            begin(tmp_path / "run")
    for text in ("{", "", '{"format": 2, "kind": "rum"}', "[]"):
        (tmp_path / "run" / MARKER).write_text(text)
        with pytest.raises(DamagedFileError, match=r'mtl-bench\.json.*write {"format": 2, "kind": "run"} into it'):
            begin(tmp_path / "run")


@pytest.mark.parametrize("below", ["", "run"])
def test_a_link_that_leads_nowhere(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for make in (Collection, begin, make_directory):
        with pytest.raises(ResultsDirectoryError, match=r"link', a link to .*gone', which is not there\. Make that"):
            make(tmp_path / "link" / below)
    (tmp_path / "gone").mkdir()
    begin(tmp_path / "link" / "run")
    assert (tmp_path / "gone" / "run" / MARKER).is_file()


def test_a_process_killed_while_it_began_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".mtl-bench-abc").write_text("half a marker")
    begin(tmp_path)
    assert not (tmp_path / ".mtl-bench-abc").exists()
    (tmp_path / "config.json").unlink()  # killed between the marker and the configuration
    begin(tmp_path)
    assert RunDirectory.existing(tmp_path).read_config() == CONFIG


def test_existing_refuses_what_is_no_run(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ResultsDirectoryError, match="must hold a run"):
            RunDirectory.existing(tmp_path)
        Collection(tmp_path)


def test_a_name_is_one_directory(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    assert collection.run_path("toy-[/bold]-../x y").parent == tmp_path
    assert collection.run_path("digits-ls-seed0-1a2b").name == "digits-ls-seed0-1a2b"


def test_write_atomically_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table.csv"
    write_atomically(file, "old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        ResultsDirectoryError,
        match=r"`table\.csv` in '.*' must be writable, got No space left on device \(ENOSPC\)\. Make room and give",
    ):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_what_is_sealed_is_known_again(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    data = {"values": {"a": 0.1 + 0.2, "b": float("inf")}, "list": [1, None]}
    content = sealed(data, file).encode()
    assert unsealed(content, file) == data
    for changed in (content[:-3], b"", b"[]", b"{}", content.replace(b"0.3", b"0.4"), sealed(data, Path("x")).encode()):
        with pytest.raises(DamagedFileError, match=r"`result\.json` in .* must be as it was written"):
            unsealed(changed, file)


def test_tables_keep_every_bit(tmp_path: Path) -> None:
    directory = begin(tmp_path)
    values = [0.1 + 0.2, 1e-300, -1 / 3]
    assert directory.read_trace() == []
    directory.write_table("trace.csv", table(["x1", "x2", "x3"], [values]))
    assert directory.read_trace() == [values]


def test_tables_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    directory = begin(tmp_path)
    for content in (b"x1,x2\n1.0\n", b"x1\none\n", b"x1\n\xff\n"):
        directory.write_table("trace.csv", content)
        with pytest.raises(DamagedFileError, match=r"`trace\.csv` in"):
            directory.read_trace()
    directory.write_table("events.jsonl", b"{}\n{")
    with pytest.raises(DamagedFileError, match=r"`events\.jsonl` in"):
        directory.read_events()


def test_two_cannot_work_on_one_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with (
        directory.working(CONFIG),
        pytest.raises(ResultsDirectoryError, match="another process"),
        directory.working(CONFIG),
    ):
        pass
    begin(tmp_path)


def test_checkpoints_come_back_and_the_one_before_is_kept(tmp_path: Path) -> None:
    directory = begin(tmp_path)
    assert directory.read_checkpoint() is None
    for step in (1, 2, 3):
        directory.checkpoints.write(checkpoint(step, weights=torch.arange(3), nested=[{"a": (1, 2.5)}]))
    found = directory.read_checkpoint()
    assert found is not None
    assert (found.position, found.run) == ({"epoch": 1, "step": 3}, "identity")
    assert found.state["weights"].tolist() == [0, 1, 2]
    assert found.state["nested"] == [{"a": (1, 2.5)}]
    assert torch.load(directory.checkpoints.newest, weights_only=True)["state"]["nested"] == [{"a": (1, 2.5)}]
    directory.checkpoints.newest.unlink()
    before = directory.read_checkpoint()
    assert before is not None
    assert before.position == {"epoch": 1, "step": 2}


def test_a_damaged_checkpoint_names_the_good_one_before_it(tmp_path: Path) -> None:
    directory = begin(tmp_path)
    newest, previous = directory.checkpoints.newest, directory.checkpoints.previous
    directory.checkpoints.write(checkpoint(1))
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.raises(DamagedFileError, match=r"`checkpoint\.pt` .*There is no checkpoint before it\. Move it away"):
        directory.read_checkpoint()
    directory.checkpoints.write(checkpoint(4))
    directory.checkpoints.write(checkpoint(7))
    content = newest.read_bytes()
    newest.write_bytes(content[:100] + bytes([content[100] ^ 4]) + content[101:])
    with pytest.raises(
        DamagedFileError,
        match=r"`checkpoint\.pt` .* as it was written, got content with another digest\. The one before it, "
        r"checkpoint\.previous\.pt, is good \(epoch 1, step 4\): move checkpoint\.pt away and give the same command",
    ):
        directory.read_checkpoint()
    previous.write_bytes(b"")
    with pytest.raises(DamagedFileError, match=r"no better: `checkpoint\.previous\.pt` .*Move both away to begin anew"):
        directory.read_checkpoint()


def test_a_state_that_would_not_come_back_is_refused_before_the_old_one_makes_room(tmp_path: Path) -> None:
    directory = begin(tmp_path)
    directory.checkpoints.write(checkpoint(1), verify=True)
    with pytest.raises(InvalidInputError, match=r"must hold plain data and tensors, got an object of pathlib\.\w+"):
        directory.checkpoints.write(checkpoint(2, where=Path("here")), verify=True)
    found = directory.read_checkpoint()
    assert found is not None
    assert found.position["step"] == 1


def test_versions_that_differ_are_said_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    sessions = Sessions(say=said.append)
    sessions.begin({"epoch": 0, "step": 0})
    sessions.reached({"epoch": 1, "step": 9})
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    monkeypatch.setattr("mtl_core.__version__", "7.7.7")
    again = Sessions(sessions.listed, say=said.append)
    again.begin({"epoch": 1, "step": 9})
    (line,) = said
    assert line.startswith("goes on with torch 9.9.9 after ")
    assert "mtl-core 7.7.7 after " in line
    assert again.notes == said
    assert [session["until"]["step"] for session in json.loads(again.table())] == [9, 9]
    assert sessions.notes == []


def test_threads_and_arguments_are_no_difference() -> None:
    now = environment()
    assert differences(now, {**now, "argv": ["other"], "threads": 99, "cpu_count": 1}) == []
    assert differences(now, {**now, "machine": "abacus"}) == [f"machine abacus after {now['machine']}"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("bin/mtl-bench", ["mtl-bench"]), ("lib/mtl_benchmarks/__main__.py", ["python", "-m", "mtl_benchmarks"])],
)
def test_what_was_typed_can_be_typed_again(path: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [path, "run", "toy"])
    assert environment()["argv"] == [*words, "run", "toy"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_what_the_system_says_is_one_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(ResultsDirectoryError, match=errno.errorcode[number]) as caught:  # noqa: SIM117 - a long line
        with files.on_disk(tmp_path, "readable"):
            raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)
    assert "give the same command again" in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "\udcff\0"])
@pytest.mark.parametrize("look", [files.exists, files.read, files.entries, files.is_directory, files.make_directory])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str, look: Callable[[Path], object]) -> None:
    with pytest.raises(ResultsDirectoryError, match=r"must be a name that a file can have, got .* Choose another"):
        look(tmp_path / name)
