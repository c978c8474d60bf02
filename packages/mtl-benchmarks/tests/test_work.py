"""Going on with runs, finishing and mending them, and telling them apart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_benchmarks.cli import main
from mtl_benchmarks.comparison import compare, find_runs
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.metrics import Baseline
from mtl_benchmarks.runs.baselines import own_baselines
from mtl_benchmarks.runs.runner import RunResult, load_result, run
from mtl_benchmarks.session import open_console
from mtl_benchmarks.storage.files import sealed, unsealed
from mtl_benchmarks.storage.results import Collection, RunDirectory
from mtl_core import DamagedFileError, InvalidInputError, ResultsDirectoryError

TOY = Choice("toy", {"start": 4, "steps_per_epoch": 2})
CONFIG = RunConfig.resolve(TOY, "ls", epochs=2)


def break_off(config: RunConfig, directory: Path, at: int) -> None:
    def stop(now: Any) -> None:
        if now.done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, directory, checkpoint_every=1, progress=stop)


def test_other_versions_are_said_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(CONFIG, tmp_path / "run", 2)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    said: list[str] = []
    found = run(CONFIG, tmp_path / "run", say=said.append)
    assert len(said) == 1
    assert f"{tmp_path / 'run'}: goes on with torch 9.9.9 after " in said[0]
    assert found.notes == tuple(line.removeprefix(f"{tmp_path / 'run'}: ").removesuffix(".") for line in said)
    sessions = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [(each["from"]["step"], each["until"]["step"]) for each in sessions] == [(0, 1), (1, 4)]
    assert [each["environment"]["packages"]["torch"] for each in sessions][1] == "9.9.9"
    assert run(CONFIG, tmp_path / "run") == found


def test_without_a_listener_it_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(CONFIG, tmp_path / "run", 2)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    heard: list[str] = []
    monkeypatch.setattr("warnings.warn", lambda text, **_: heard.append(text))
    run(CONFIG, tmp_path / "run")
    assert "torch 9.9.9 after" in heard[0]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    other = RunConfig.resolve(TOY, "ls", epochs=2, lr=0.1)
    for name, config in (("one", CONFIG), ("other", other)):
        break_off(config, tmp_path / name, 3)
    shutil.copy(tmp_path / "other" / "checkpoint.pt", tmp_path / "one" / "checkpoint.pt")
    with pytest.raises(ResultsDirectoryError, match=r"`checkpoint\.pt` in .* got one of another configuration"):
        run(CONFIG, tmp_path / "one")
    for name, config in (("one", CONFIG), ("other", other)):
        shutil.rmtree(tmp_path / name)
        run(config, tmp_path / name)
    shutil.copy(tmp_path / "other" / "checkpoint.pt", tmp_path / "one" / "checkpoint.pt")
    with pytest.raises(ResultsDirectoryError, match=r"`checkpoint\.pt` in .* must be that of the end of this run"):
        load_result(tmp_path / "one")
    (tmp_path / "one" / "checkpoint.pt").unlink()  # it may be thrown away when the run is complete
    load_result(tmp_path / "one")


def test_a_state_of_other_objects_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(CONFIG, tmp_path / "run", 3)

    def fails(self: object, state: object) -> None:
        raise KeyError("momentum")

    monkeypatch.setattr("mtl_benchmarks.engine.trainer.Trainer.load_state_dict", fails)
    with pytest.raises(ResultsDirectoryError, match=r"\(KeyError: 'momentum'\)\. It was written with torch 2\."):
        run(CONFIG, tmp_path / "run")


def test_a_lost_checkpoint_is_said(tmp_path: Path) -> None:
    whole = run(CONFIG, tmp_path / "whole")
    break_off(CONFIG, tmp_path / "run", 3)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / "run" / name).unlink()
    said: list[str] = []
    assert run(CONFIG, tmp_path / "run", say=said.append).values == whole.values
    assert said == [f"{tmp_path / 'run'}: there are tables but no checkpoint any more, so that it begins anew."]


def test_a_copy_is_no_second_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collection = Collection(tmp_path / "runs")
    seeds = [run(RunConfig.resolve(TOY, "ls", epochs=1, seed=k), collection.path / str(k)) for k in (0, 1)]
    shutil.copytree(collection.path / "0", collection.path / "copy")
    runs, _ = find_runs([collection.path])
    assert len(runs) == 3
    assert [result.identity for result in runs].count(seeds[0].identity) == 2
    ((group,),) = (comparison.groups for comparison in compare(runs))
    assert [result.config.seed for result in group.runs] == [0, 1]
    assert main(["compare", str(collection.path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("counts once") == 1
    assert "copy in runs is a copy of 0 and counts once." in printed


def test_a_copy_with_another_seed_written_into_it_is_refused(tmp_path: Path) -> None:
    run(CONFIG, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**settings, "seed": 5}))
    with pytest.raises(ResultsDirectoryError, match=r"`config\.json` and `result\.json` in .* must belong together"):
        load_result(tmp_path / "run")


def stub(config: RunConfig, directory: str, **values: float) -> RunResult:
    return RunResult(config, Path(directory), values, (), 1.0)


def test_copies_of_baselines_count_once() -> None:
    config = RunConfig.resolve("digits", "ls")
    singles = []
    for task, metric in (("left", "accuracy_left"), ("right", "accuracy_right"), ("image", "error_image")):
        for seed in (0, 1):
            single = RunConfig.resolve("digits", "ls", seed=seed).single_task(task)
            singles.append(stub(single, f"{task}{seed}", **{metric: 10.0 * (seed + 1)}))

    def values(found: tuple[Baseline, ...]) -> list[float]:
        return [baseline.value for baseline in found]

    assert values(own_baselines(config, singles)) == [15.0] * 3
    assert values(own_baselines(config, [*singles, *singles[1::2]])) == [15.0] * 3


def test_the_command_on_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    words = ["run", "toy", "--benchmark.start", "4", "--benchmark.steps_per_epoch", "2", "--epochs", "1"]
    words += ["--out", str(out)]
    assert main(words) == 0
    (directory,) = (path for path in out.iterdir() if path.is_dir())
    for name in ("events.jsonl", "result.json", "config.json", "mtl-bench.json"):
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(before[: len(before) // 2] + b"#")
        capsys.readouterr()
        assert main(["compare", str(out)]) == 2
        error = capsys.readouterr().err
        assert f"`{name}` in" in error
        assert error.count("\n") == 1
        (directory / name).write_bytes(before)
    (directory / "mtl-bench.json").unlink()
    assert main(["compare", str(out)]) == 2
    assert "without mtl-bench.json" in capsys.readouterr().err
    (tmp_path / "link").symlink_to("nowhere")
    assert main([*words[:-1], str(tmp_path / "link")]) == 2
    assert "a link to 'nowhere', which is not there" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mtl-bench.json").write_text('{"format": 1, "kind": "run"}')
    assert main(["compare", str(tmp_path / "old")]) == 2
    assert "must have format 2, got 1" in capsys.readouterr().err


def test_figures_that_cannot_be_written_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(CONFIG, Collection(tmp_path / "runs").run_path("one"))
    (tmp_path / "file").write_text("")
    assert main(["compare", str(tmp_path / "runs"), "--figures", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`--figures` must be writable, got" in error
    assert "must be a directory, got the file" in error


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = open_console()
    console.print("a [/bold] and :smile: in [red]names[/red]")
    assert capsys.readouterr().out == "a [/bold] and :smile: in [red]names[/red]\n"


def test_a_configuration_of_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(CONFIG, tmp_path / "run")

    def fails(cls: object, data: object) -> RunConfig:
        raise TypeError("unexpected keyword argument 'speed'")

    monkeypatch.setattr(RunConfig, "from_dict", classmethod(fails))
    with pytest.raises(InvalidInputError, match=r"`config\.json` in .* of this version of mtl-benchmarks, got"):
        load_result(tmp_path / "run")


def test_a_result_of_one_run_is_none_of_another(tmp_path: Path) -> None:
    toy = Choice("toy", {"start": 0, "steps_per_epoch": 2})
    one, other = (RunConfig.resolve(toy, "ls", epochs=1, seed=seed) for seed in (0, 1))
    run(one, tmp_path / "one")
    run(other, tmp_path / "other")
    os.replace(tmp_path / "other" / "result.json", tmp_path / "one" / "result.json")
    for act in (lambda: load_result(tmp_path / "one"), lambda: run(one, tmp_path / "one")):
        with pytest.raises(ResultsDirectoryError, match=r"`config\.json` and `result\.json` in .* together"):
            act()


def test_tables_are_rebuilt_only_where_the_checkpoint_gives_those_that_the_result_knows(tmp_path: Path) -> None:
    config = CONFIG
    directory = tmp_path / "run"
    whole = run(config, directory, checkpoint_every=1)
    for name in ("metrics.csv", "events.jsonl", "trace.csv", "environment.json"):
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(before + b"\n")
        with pytest.raises(DamagedFileError, match=rf"`{name}` .* another digest than result\.json has of it\. Give"):
            load_result(directory)
        said: list[str] = []
        assert run(config, directory, say=said.append) == whole
        assert said == [f"{directory}: {name} was damaged and is written again."]
        assert (directory / name).read_bytes() == before
    (directory / "metrics.csv").unlink()
    (directory / "checkpoint.pt").rename(directory / "elsewhere")
    with pytest.raises(DamagedFileError, match=r"`metrics\.csv` .* got no file\. There is no checkpoint"):
        run(config, directory)
    (directory / "result.json").rename(directory / "away")
    said = []
    assert run(config, directory, say=said.append).values == whole.values
    assert "goes on from checkpoint.previous.pt, there being no newer checkpoint" in said[0]


def test_a_damaged_result_is_written_again_from_the_checkpoint_or_refused_without_one(tmp_path: Path) -> None:
    config = RunConfig.resolve(Choice("toy", {"start": 4, "steps_per_epoch": 2}), "ls", epochs=1)
    directory = tmp_path / "run"
    whole = run(config, directory)
    before = (directory / "result.json").read_bytes()
    (directory / "result.json").write_text(json.dumps({"values": {}}))
    with pytest.raises(DamagedFileError, match=r"`result\.json`"):
        load_result(directory)
    said: list[str] = []
    assert run(config, directory, say=said.append) == whole
    assert said == [f"{directory}: result.json is damaged and is written again from the checkpoint."]
    assert (directory / "result.json").read_bytes() == before
    (directory / "result.json").write_text("")
    (directory / "checkpoint.pt").unlink()
    with pytest.raises(DamagedFileError, match=r"`result\.json` .*Move result\.json away"):
        run(config, directory)
    assert (directory / "metrics.csv").exists()


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"null"])
@pytest.mark.parametrize("also", [(), ("checkpoint.pt", "checkpoint.previous.pt")])
def test_the_advice_about_a_damaged_configuration_of_a_complete_run_is_true(
    content: bytes, also: tuple[str, ...], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    whole = run(CONFIG, directory)
    before = {file.name: file.read_bytes() for file in directory.iterdir() if file.name not in also}
    for name in also:
        (directory / name).unlink()
    (directory / "config.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"Remove it and give the command of this run again"):
        run(CONFIG, directory)
    (directory / "config.json").unlink()
    steps: list[int] = []
    assert run(CONFIG, directory, progress=lambda now: steps.append(now.done)) == whole
    assert steps == []
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    (directory / "config.json").unlink()
    other = RunConfig.resolve(TOY, "ls", epochs=2, seed=1)
    with pytest.raises(ResultsDirectoryError, match="configuration"):
        run(other, directory)
    assert not (directory / "config.json").exists()


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("seed", False, "seed: False there, 0 here"),
        ("seed", 0.0, "seed: 0.0 there, 0 here"),
        ("seed", "0", "seed: '0' there, 0 here"),
        ("teleport", {}, "teleport: {} there, None here"),
        ("tasks", ["L1"], "tasks: ['L1'] there"),
        ("more", {}, "more: {} there, None here"),
        ("training", {}, "training: {} there"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_an_entry_of_a_configuration_that_was_changed_is_named(
    entry: str, value: Any, said: str, complete: bool, tmp_path: Path
) -> None:
    def stop(now: Any) -> None:
        if now.done == 3 and not complete:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run(CONFIG, tmp_path / "run", progress=stop)
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), entry: value}))
    with pytest.raises(ResultsDirectoryError) as raised:
        run(CONFIG, tmp_path / "run")
    assert said in str(raised.value)
    assert "if config.json was changed, remove it" in str(raised.value)
    file.unlink()
    assert run(CONFIG, tmp_path / "run").notes == ()


ABSENT = object()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *((entry, ABSENT) for entry in ("run", "config", "values", "seconds", "checkpoint", "notes", "tables")),
        *((entry, None) for entry in ("run", "config", "values", "seconds", "notes", "tables")),
        ("values", []),
        ("values", {"loss_first": "1.0"}),
        ("values", {"loss_first": 10**400}),
        ("values", {"loss_first": True}),
        ("seconds", "3"),
        ("notes", "all is well"),
        ("notes", [1]),
        ("tables", {"events.jsonl": 1}),
        ("checkpoint", 1),
    ],
)
@pytest.mark.parametrize("command", ["compare", "report", "run"])
def test_a_result_with_a_right_digest_and_other_entries_is_refused(
    entry: str, value: Any, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Collection(tmp_path / "runs")
    path = runs.run_path(CONFIG.name)
    run(CONFIG, path)
    file = path / "result.json"
    result = unsealed(file.read_bytes(), file)
    result.pop(entry)
    file.write_text(sealed(result if value is ABSENT else {**result, entry: value}, file))
    before = {each: each.read_bytes() for each in path.iterdir()}
    words = {
        "compare": ["compare", str(tmp_path / "runs")],
        "report": ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")],
        "run": ["run", "--config", str(path), "--out", str(tmp_path / "runs"), "--baselines", "none"],
    }
    capsys.readouterr()
    assert main(words[command]) == 2
    error = capsys.readouterr().err
    assert f"as `{entry}`, got " in error
    assert error.count("\n") == 1
    assert {each: each.read_bytes() for each in path.iterdir()} == before
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["mtl-bench.json", "result.json", "config.json", "environment.json", "events.jsonl"])
@pytest.mark.parametrize("command", ["compare", "run"])
def test_entries_within_entries_without_end_are_a_damaged_file(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that was broken off, too, where no digest tells that a table is another."""
    runs = Collection(tmp_path / "runs")
    path = runs.run_path(CONFIG.name)
    run(CONFIG, path)
    config = path / "config.json"
    if command == "run":
        config = tmp_path / "config.json"
        config.write_bytes((path / "config.json").read_bytes())
    (path / name).write_bytes(b"[" * 100_000)
    words = {
        "compare": ["compare", str(tmp_path / "runs")],
        "run": ["run", "--config", str(config), "--out", str(tmp_path / "runs"), "--baselines", "none"],
    }
    capsys.readouterr()
    code = main(words[command])
    error = capsys.readouterr().err
    # A run mends from its checkpoint what it can.
    mended = command == "run" and name in ("result.json", "environment.json", "events.jsonl")
    assert code == (0 if mended else 2), error
    assert "RecursionError" not in error
    if not mended:
        assert name in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("read", [lambda f: f.read_sessions(), lambda f: f.read_events()], ids=["sessions", "events"])
def test_tables_of_a_run_that_goes_on_may_be_no_json(read: Any, tmp_path: Path) -> None:
    run(CONFIG, tmp_path / "run")
    for name in ("environment.json", "events.jsonl"):
        (tmp_path / "run" / name).write_bytes(b"[" * 100_000)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read(RunDirectory(tmp_path / "run"))
