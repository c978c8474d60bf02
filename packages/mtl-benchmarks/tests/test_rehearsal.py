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


class Keeps(Lines):
    "Keeps the network that it has built."

    name = "keeps"

    def __init__(self, *, n_train: int = 2000) -> None:
        super().__init__(n_train=n_train)
        self.built = None

    def build(self):
        if self.built is None:
            self.built = super().build()
        return self.built


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

EVALUATED = """
from collections import Counter
from many_lines import Three
from sample_benchmarks import Lines

CALLS = Counter()


class Parts(Lines):
    "An evaluation in parts whose metrics do what `how` says."

    name = "parts"

    def __init__(self, *, how: str = "well") -> None:
        super().__init__()
        self.how = how

    def metrics_from(self, tally):
        CALLS["parts"] += 1
        n = int(tally["test"]["n"])
        if self.how == "key":
            tally["test"]["area"]
        if self.how == "two" and n < 2:
            raise IndexError("a metric of two samples")
        if self.how == "constant" and CALLS["parts"] < 3:
            raise ValueError("only one class is predicted")
        found = {split: dict(row) for split, row in super().metrics_from(tally).items()}
        if self.how == "missing":
            del found["test"]["error_ridge"]
        return found


class Whole(Three):
    "An evaluation in one go."

    name = "whole"

    def __init__(self, *, how: str = "well") -> None:
        super().__init__()
        self.how = how

    def evaluate(self, model, *, device):
        CALLS["whole"] += 1
        if self.how == "name":
            model.get_submodule("head")
        if self.how == "text":
            return {"test": {name: "good" for name in super().evaluate(model, device=device)["test"]}}
        if self.how == "zero" and CALLS["whole"] < 2:
            1 / 0
        return super().evaluate(model, device=device)
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "others.py").write_text(OTHERS)
    (tmp_path / "evaluated.py").write_text(EVALUATED)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("others", "evaluated"):
        sys.modules.pop(name, None)


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


def test_a_benchmark_that_keeps_its_network_keeps_a_real_one(tmp_path: Path) -> None:
    """Networks are built without their values first, to see how large they are."""
    config = RunConfig.resolve("others:Keeps", "ls", epochs=1)
    (result,) = run_all([config], tmp_path / "runs")
    assert not result.has_diverged


def test_errors_of_others_say_of_which_run(tmp_path: Path) -> None:
    configs = [RunConfig.resolve(LINES, method, epochs=1) for method in ("ls", "others:NoPairs")]
    with pytest.raises(InvalidInputError, match=r"got 3\. This is of the run 'others:NoPairs'; no run was begun\.$"):
        run_all(configs, tmp_path / "runs")


@pytest.mark.parametrize(
    ("benchmark", "how", "said", "code"),
    [
        ("Parts", "key", "KeyError: 'area'", 1),
        ("Parts", "missing", "must hold every metric that it declares", 2),
        ("Whole", "name", "AttributeError: Lines has no attribute `head`", 1),
        ("Whole", "text", "must be a mapping from splits to metrics to numbers, got 'good'", 2),
    ],
)
@pytest.mark.parametrize("command", [run, study])
def test_an_evaluation_that_cannot_be_done_is_known_before_the_first_epoch(
    command: Callable[..., list[str]],
    benchmark: str,
    how: str,
    said: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command("fairgrad", f"evaluated:{benchmark}", "--benchmark.how", how)
    assert main([*words, "--out", str(tmp_path / "runs")]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(("benchmark", "how"), [("Parts", "two"), ("Parts", "constant"), ("Whole", "zero")])
def test_what_one_sample_or_an_untrained_model_brings_about_refuses_no_run(
    benchmark: str, how: str, tmp_path: Path
) -> None:
    config = RunConfig.resolve(Choice(f"evaluated:{benchmark}", {"how": how}), "ls", epochs=1)
    (found,) = run_all([config], tmp_path / "runs")
    assert all(value > 0 for value in found.values.values())


def test_one_look_at_the_evaluation_of_a_benchmark(tmp_path: Path) -> None:
    """Whatever methods its runs are of; in one go also whatever tasks they have."""
    import evaluated  # type: ignore[import-not-found]

    for name, looks in (("Parts", 2), ("Whole", 1)):
        tasks = RunConfig.resolve(f"evaluated:{name}", "ls").tasks
        configs = [RunConfig.resolve(f"evaluated:{name}", method) for method in ("ls", "mgda", "fairgrad")]
        configs += [RunConfig.resolve(f"evaluated:{name}", "ls", tasks=tasks[:2])]
        rehearse(configs, tmp_path)
        assert evaluated.CALLS[name.lower()] == looks


def test_evaluations_of_this_package_in_one_go_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts in Meta-World take longer than an epoch."""
    from mtl_benchmarks.benchmarks.toy import Toy

    monkeypatch.setattr(Toy, "evaluate", lambda *_, **__: pytest.fail("evaluated"))
    rehearse([RunConfig.resolve(Choice("toy", {"start": 0}), "mgda")], tmp_path)
