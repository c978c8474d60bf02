"""Runs whose numbers become none."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.divergence import Watch
from mtl_benchmarks.engine.trainer import Trainer
from mtl_benchmarks.runs.runner import load_result, run
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import NonFiniteStateError, ResultsDirectoryError

MODULE = '''
import math
import torch
import mtl_core
from mtl_core.extension import Wrapper


class Poison(Wrapper):
    """After step `at` there is something in a parameter or in the optimiser's state that is no number."""

    works = True

    def __init__(self, method, *, at: int = 4, into: str = "parameter") -> None:
        super().__init__(method)
        self.at, self.into, self.count = at, into, 0

    def own_state(self):
        return {"count": self.count}

    def load_own_state(self, state):
        self.count = state["count"]

    def step(self, problem, batch, optimizer, *, options=mtl_core.StepOptions()):
        report = mtl_core.step(problem, batch, optimizer, self.method)
        self.count += 1
        if self.count == self.at and self.works:
            parameter = problem.shared[0]
            with torch.no_grad():
                target = parameter if self.into == "parameter" else optimizer.state[parameter]["exp_avg"]
                target[0] = math.inf
        return report
'''


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "poison.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import poison  # type: ignore[import-not-found]

    yield poison.Poison
    sys.modules.pop("poison", None)


def config(at: int, into: str = "parameter") -> RunConfig:
    toy = Choice("toy", {"start": 0, "steps_per_epoch": 2})
    return RunConfig.resolve(toy, "ls", Choice("poison:Poison", {"at": at, "into": into}), epochs=2)


@pytest.mark.parametrize(
    ("at", "every", "into", "place", "what", "safe"),
    [
        (4, None, "parameter", "in epoch 2, after 4 of 4 steps", "parameter `x` NaN or infinite", 2),
        (4, 1, "parameter", "in epoch 2, after 4 of 4 steps", "parameter `x` NaN or infinite", 3),
        (3, 1, "parameter", "in epoch 2, after 3 of 4 steps", "parameter `x` NaN or infinite", 2),
        (3, None, "parameter", "in epoch 2, after 3 of 4 steps", "parameter `x` NaN or infinite", 2),
        (4, None, "optimiser", "in epoch 2, after 4 of 4 steps", "the optimiser's `exp_avg` of parameter `x`", 2),
        (1, 1, "parameter", "in epoch 1, after 1 of 4 steps", "parameter `x` NaN or infinite", None),
    ],
)
def test_it_stops_keeps_its_last_good_checkpoint_and_says_so_again(
    tmp_path: Path, poison: Any, at: int, every: int | None, into: str, place: str, what: str, safe: int | None
) -> None:
    chosen, directory, said = config(at, into), tmp_path / "run", list[str]()
    with pytest.raises(NonFiniteStateError) as caught:
        run(chosen, directory, checkpoint_every=every, say=said.append)
    text = str(caught.value)
    assert f"{place}: {what}" in text
    assert caught.value.step == at
    kept = RunDirectory(directory).read_checkpoint()
    if safe is None:
        assert kept is None
        assert "There is no checkpoint from before" in text
    else:
        assert kept is not None
        assert kept.position["step"] == safe
        assert f"step {safe}, is from before and stays" in text
        assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.state["model"].values())
    assert not (directory / "result.json").exists()
    assert said == []
    with pytest.raises(NonFiniteStateError):
        run(chosen, directory, checkpoint_every=every, say=said.append)
    assert len(said) == 1
    assert f"has stopped before, {place}: {what}" in said[0]
    poison.works = False
    found = run(chosen, directory, checkpoint_every=every, say=said.append)
    assert any("has stopped before" in note for note in found.notes)
    assert load_result(directory).notes == found.notes
    assert not (directory / "stopped.json").exists()
    assert found.values == run(chosen, tmp_path / "whole").values


def test_a_damaged_word_about_it_is_said(tmp_path: Path, poison: Any) -> None:
    with pytest.raises(NonFiniteStateError):
        run(config(4), tmp_path / "run")
    (tmp_path / "run" / "stopped.json").write_text("{")
    poison.works = False
    said: list[str] = []
    run(config(4), tmp_path / "run", say=said.append)
    assert "for a reason that cannot be read: `stopped.json` in" in said[0]


def test_the_command_ends_with_1_and_one_line(tmp_path: Path, poison: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["toy", "--benchmark.start", "0", "--benchmark.steps_per_epoch", "2", "--epochs", "2"]
    out = tmp_path / "runs"
    assert main(["run", *words, "--teleport", "poison:Poison", "--teleport.at", "4", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "must stay finite, stopped in epoch 2, after 4 of 4 steps: parameter `x` NaN or infinite" in error
    assert "Train with a smaller `lr`" in error


def test_a_loss_that_is_none_names_its_task(tmp_path: Path) -> None:
    toy = Choice("toy", {"start": 0, "steps_per_epoch": 2})
    with pytest.raises(NonFiniteStateError, match=r"in epoch 1, after 1 of 4 steps: .*'second'"):
        run(RunConfig.resolve(toy, "ls", epochs=2, lr=1e200), tmp_path / "run")


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float16))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("empty", torch.zeros(0))


def test_what_is_watched() -> None:
    model, method = Masked(), nn.Linear(1, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *method.parameters()])
    for parameter in (*model.parameters(), *method.parameters()):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    watch = Watch(cast(Trainer, SimpleNamespace(model=model, method=method, optimizer=optimizer)))
    model.mean.fill_(6e4)  # type: ignore[union-attr]
    assert watch.found() == []
    with torch.no_grad():
        model.mean[1] = math.nan  # type: ignore[index]
        model.layer.bias[0] = -math.inf
        method.weight.fill_(math.nan)
        optimizer.state[model.layer.weight]["exp_avg_sq"][0, 0] = math.inf
    assert watch.found() == [
        "parameter `layer.bias`",
        "parameter `weight` of Linear",
        "buffer `mean`",
        "the optimiser's `exp_avg_sq` of parameter `layer.weight`",
    ]


def test_a_full_disk_does_not_hide_it(tmp_path: Path, poison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunDirectory, what: Any) -> None:
        raise ResultsDirectoryError("full")

    monkeypatch.setattr(RunDirectory, "write_stopped", full)
    with pytest.raises(NonFiniteStateError, match="This could not be noted: full"):
        run(config(4), tmp_path / "run")
