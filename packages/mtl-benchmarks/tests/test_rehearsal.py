"""What a run would be refused for is said before the first run of its command begins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.rehearsal import rehearse
from mtl_core import InvalidInputError, InvalidParameterError

OTHERS = """
import torch
from sample_benchmarks import Lines
from mtl_benchmarks import Metric


class Cases(Lines):
    "Two cases, of which the second leaves a batch of two samples."

    name = "cases"

    def __init__(self, *, n_train: int = 0) -> None:
        super().__init__(n_train=n_train or 24)
        self.chosen = n_train

    def cases(self):
        return (self,) if self.chosen else (Cases(n_train=24), Cases(n_train=26))

    def case_options(self):
        return {"n_train": self.chosen} if self.chosen else {}


class NoPairs:
    "A method that does not know what to do with the task ridge."

    def __call__(self, gradients):
        return gradients.mean()

    def weights(self, gramian):
        from mtl_core import InvalidInputError

        if len(gramian) != 2:
            raise InvalidInputError("`tasks` must be two, got " + str(len(gramian)) + ".")
        return torch.ones(2) / 2
"""

LINES = "sample_benchmarks:Lines"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("others", None)


def run(method: str, benchmark: str, *words: str) -> list[str]:
    return ["run", benchmark, "--method", method, "--epochs", "1", *words]


def study(method: str, benchmark: str, *words: str) -> list[str]:
    return ["study", benchmark, "--methods", "ls", method, "--seeds", "2", "--epochs", "1", *words]


def ablate(method: str, benchmark: str, *words: str) -> list[str]:
    parts = ["--parts", "sharpness"]
    return ["ablate", benchmark, "--method", method, "--seeds", "2", "--epochs", "1", *parts, *words]


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "a batch too small": ("sdmgrad", ["--batch_size", "2"], "`batch_size` must be at least 3"),
    "the last batch too small": ("modo", ["--batch_size", "10"], "by which the last batch of an epoch has 2."),
    "micro-batches": ("sdmgrad", ["--batch_size", "8", "--accumulate", "2"], "must be at least 3 and `accumulate` 1"),
    "tasks that the method does not take": ("others:NoPairs", [], "`tasks` must be two, got 3."),
}


@pytest.mark.parametrize("command", [run, study, ablate])
@pytest.mark.parametrize("kind", REFUSED)
def test_nothing_begins_where_a_run_would_be_refused(
    command: Callable[..., list[str]], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, words, said = REFUSED[kind]
    assert main([*command(method, LINES, *words), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert said.replace("`batch_size`", "`--batch_size`") in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


def test_a_teleport_that_the_model_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trigger that fires in no step of the run: only who asks the adapter knows."""
    cost = "cost:adapter.targets=[nothing*],start_after=1"
    assert main([*study("ls", LINES), "--teleports", cost, "--out", str(tmp_path / "runs")]) == 2
    assert "`targets` pattern 'nothing*' must match a shared parameter" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("command", [study, ablate])
def test_all_cases_are_looked_at_before_the_first_is_trained(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command("sdmgrad", "others:Cases"), "--out", str(tmp_path / "runs")]) == 2
    assert "by which the last batch of an epoch has 2." in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_runs_in_python(tmp_path: Path) -> None:
    good, bad = (RunConfig.resolve(LINES, method, batch_size=10, epochs=1) for method in ("mgda", "sdmgrad"))
    with pytest.raises(InvalidParameterError, match=r"last batch of an epoch has 2\..* of the run 'sdmgrad'; no run"):
        run_all([good, bad], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(InvalidParameterError, match="`ranks` must be the number of processes"):
        run_all([good, RunConfig.resolve(LINES, "ls", ranks=2, epochs=1)], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_complete_runs_and_numbers_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.resolve(LINES, "ls", batch_size=9, epochs=1)
    run_all([config], tmp_path / "runs")
    taken: list[Any] = []
    monkeypatch.setattr("mtl_benchmarks.runs.rehearsal._take_first_step", lambda *each: taken.append(each))
    monkeypatch.setattr("mtl_benchmarks.runs.rehearsal._rehearsed", set)
    rehearse([config], tmp_path / "runs")
    assert taken == []
    rehearse([config], tmp_path / "elsewhere")
    assert len(taken) == 1


def test_what_numbers_bring_about_is_for_the_run_to_tell(tmp_path: Path) -> None:
    config = RunConfig.resolve(Choice("many_lines:Absent", {"steps": [0]}), "ls", epochs=1)
    rehearse([config], tmp_path)  # the first step has no loss


def test_a_rehearsal_leaves_no_trace(tmp_path: Path) -> None:
    """Whether or not a run was rehearsed, its numbers are the same."""
    import torch

    from mtl_benchmarks.runs.runner import run as one

    config = RunConfig.resolve(LINES, "fairgrad", Choice("cost", {"trigger": "weak", "max_steps": 2}), epochs=1)
    before = torch.get_rng_state()
    rehearse([config], tmp_path / "rehearsed")
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "rehearsed").exists()
    assert one(config, tmp_path / "a").values == run_all([config], tmp_path / "b")[0].values


def test_errors_of_others_say_of_which_run(tmp_path: Path) -> None:
    configs = [RunConfig.resolve(LINES, method, epochs=1) for method in ("ls", "others:NoPairs")]
    with pytest.raises(InvalidInputError, match=r"got 3\. This is of the run 'others:NoPairs'; no run was begun\.$"):
        run_all(configs, tmp_path / "runs")
