"""Benchmarks, methods and teleports of others, wherever a name is taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line import parse_choice, parse_run
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import TELEPORTS, resolve_method, resolve_teleport
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import load_result, run
from mtl_core import InvalidInputError, UnknownNameError

MODULE = '''
"""A benchmark, a method and a teleport that no package knows."""

import torch
from torch import nn

import mtl_core
from mtl_benchmarks import Benchmark, Metric, OptimizerChoice, Training
from mtl_benchmarks.batching.batches import Batches
from mtl_core.extension import Wrapper, gramian_of


class InverseNorm:
    """Weights of one over the norm, to a power."""

    def __init__(self, *, power: float = 1.0) -> None:
        self.power = power

    def weights(self, gramian):
        return gramian.diagonal().clamp(min=1e-12) ** (-0.5 * self.power)


class Halves(Benchmark):
    """Two lines through the same points."""

    name = "halves"
    tasks = ("left", "right")
    metrics = (Metric("error_left", "left", "", False), Metric("error_right", "right", "", False))

    def __init__(self, *, n_train: int = 12) -> None:
        self.rows = torch.linspace(-1.0, 1.0, n_train).unsqueeze(1)

    @property
    def training(self):
        return Training(epochs=2, batch_size=4, optimizer=OptimizerChoice("adam", {"lr": 0.1}))

    def build(self):
        return nn.ModuleDict({"trunk": nn.Linear(1, 3), "left": nn.Linear(3, 1), "right": nn.Linear(3, 1)})

    def losses(self, model, rows):
        z = model["trunk"](rows)
        return {"left": (model["left"](z) - rows).square().mean(), "right": (model["right"](z) + rows).square().mean()}

    def problem(self, model, *, tasks):
        return mtl_core.Problem(
            model, lambda m, rows: {t: self.losses(m, rows)[t] for t in tasks}, shared=model["trunk"], tasks=tasks
        )

    def batches(self, *, batch_size, seed, device):
        return Batches(lambda rows, _: self.rows[rows], len(self.rows), batch_size=batch_size, seed=seed)

    def evaluate(self, model, *, device):
        return {"test": {f"error_{t}": float(v.detach()) for t, v in self.losses(model, self.rows).items()}}


class Nudge(Wrapper):
    """Moves the shared parameters by a constant before every step."""

    def __init__(self, method, *, by: float = 0.01) -> None:
        super().__init__(method)
        self.by = by

    def step(self, problem, batch, optimizer, *, options=mtl_core.StepOptions()):
        with torch.no_grad():
            for parameter in problem.shared:
                parameter.add_(self.by)
        return mtl_core.step(problem, batch, optimizer, self.method)


class Nothing:
    """Has nothing that a step could use."""


def function(method):
    return method
'''


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "others.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("others", None)


@pytest.fixture
def installed(others: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if a package brought them under names of its own."""
    points = [
        EntryPoint("Inverse-Norm", "others:InverseNorm", "mtl.methods"),
        EntryPoint("halves", "others:Halves", "mtl.benchmarks"),
        EntryPoint("nudge", "others:Nudge", "mtl.teleports"),
    ]
    monkeypatch.setattr("mtl_core.plugins.entry_points", lambda group: [p for p in points if p.group == group])
    return others


def test_a_run_of_three_classes_by_their_modules(others: Path) -> None:
    config = RunConfig.resolve(
        "others:Halves", Choice("others:InverseNorm", {"power": 0.5}), Choice("others:Nudge", {"by": 0.02})
    )
    assert (config.benchmark.options, config.method.options) == ({"n_train": 12}, {"power": 0.5})
    assert RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert ":" not in config.name
    result = run(config, others / "run")
    assert set(result.values) == {"error_left", "error_right"}
    assert load_result(others / "run").config == config
    unmoved = run(RunConfig.resolve("others:Halves", config.method), others / "unmoved")
    assert unmoved.values != result.values


@pytest.mark.parametrize("spelling", ["inversenorm", "Inverse-Norm", "inverse_norm"])
def test_entry_points_are_names_like_any_other(installed: Path, spelling: str) -> None:
    config = RunConfig.resolve("halves", spelling, "nudge")
    assert (config.benchmark.name, config.method.name) == ("halves", "inversenorm")
    assert config.teleport == Choice("nudge", {"by": 0.01})
    assert config.name.startswith("halves-inversenorm-nudge-seed0-")
    assert set(available()) > {"ctr", "digits", "halves", "qm9", "toy"}
    assert available() == sorted(available())
    assert TELEPORTS.names() == ["cost", "random", "memory", "nudge"]
    with pytest.raises(UnknownNameError, match="Did you mean 'halves'"):
        benchmark_class("halve")


def test_one_class_has_one_name(others: Path) -> None:
    for spelling in ("mgda", "MGDA", "mtl_aggregators.mgda:MGDA", "mtl_aggregators:MGDA"):
        assert resolve_method(Choice(spelling)).name == "mgda"
    for spelling in ("cost", "COST", "mtl_teleport:COST"):
        assert resolve_teleport(Choice(spelling), Choice("digits")).name == "cost"
    assert RunConfig.resolve("mtl_benchmarks:Digits").name == RunConfig.resolve("digits").name


def test_options_on_the_command_line_come_from_the_signatures(others: Path) -> None:
    words = "others:Halves --benchmark.n_train 8 --method others:InverseNorm --method.power 2 --teleport others:Nudge"
    plan = parse_run([*words.split(), "--teleport.by=0.5"])
    assert plan is not None
    config = plan.configs[0]
    assert config.benchmark == Choice("others:Halves", {"n_train": 8})
    assert config.method == Choice("others:InverseNorm", {"power": 2.0})
    assert config.teleport == Choice("others:Nudge", {"by": 0.5})
    with pytest.raises(UnknownNameError, match=r"Did you mean '--method\.power'"):
        parse_run(["digits", "--method", "others:InverseNorm", "--method.powr", "2"])


def test_choices_of_studies(others: Path) -> None:
    assert parse_choice("method", "others:InverseNorm") == Choice("others:InverseNorm")
    assert parse_choice("method", "others:InverseNorm:power=1") == Choice("others:InverseNorm", {"power": 1.0})
    assert parse_choice("benchmark", "digits:shift=2") == Choice("digits", {"shift": 2})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("others:Nothing --seeds 1", "benchmark 'others:Nothing' must be a subclass of mtl_benchmarks.Benchmark"),
        ("digits --method others:Nothing", "method 'others:Nothing' must have `step`, `weights` or be callable"),
        ("digits --method others:function", "method 'others:function' must be a class"),
        ("digits --method others:InverseNrm", "Did you mean 'InverseNorm'"),
        ("digits --method absent:Mine", "must name a module that can be imported"),
        ("digits --teleport others:Nothing", "teleport 'others:Nothing' must be a class whose constructor takes"),
        ("digits --teleport others:function", "teleport 'others:function' must be a class whose constructor takes"),
    ],
)
def test_what_does_not_fit_is_refused(
    others: Path, words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(others)
    assert main(["run", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in others.iterdir()} <= {"others.py", "__pycache__"}


def test_list_and_describe(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    for line in ("Weights of one over the norm", "Two lines through", "Moves the shared parameters"):
        assert line in listed
    for name, line in {
        "others:Halves": "--benchmark.n_train INTEGER (12)",
        "halves": "error_left, of left, lower is better",
        "others:InverseNorm": "power: float = 1.0",
        "inverse-norm": "facts: none declared",
        "others:Nudge": "--teleport.by NUMBER (0.01)",
        "nudge": "teleport nudge: Moves",
    }.items():
        assert main(["describe", name]) == 0
        assert line in capsys.readouterr().out


def test_a_broken_package_hides_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    point = EntryPoint("broken", "no_such_module:Method", "mtl.teleports")
    monkeypatch.setattr("mtl_core.plugins.entry_points", lambda group: [point] if group == point.group else [])
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "must be importable" in listed
    assert "fairgrad" in listed
    with pytest.raises(InvalidInputError, match="no_such_module"):
        resolve_teleport(Choice("broken"), Choice("digits"))


@pytest.mark.parametrize("way", ["module in the current directory", "module on PYTHONPATH"])
def test_the_command_in_a_process_of_its_own(tmp_path: Path, way: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "others.py").write_text(MODULE)
    settings = dict(os.environ)
    if "PYTHONPATH" in way:
        settings["PYTHONPATH"] = os.pathsep.join([str(here), *filter(None, [settings.get("PYTHONPATH")])])
    # As the console script does, which does not put the current directory on the path.
    script = tmp_path / "mtl-bench"
    script.write_text("from mtl_benchmarks.cli import main\nif __name__ == '__main__':\n    raise SystemExit(main())\n")
    words = "others:Halves --method others:InverseNorm --method.power 0.5 --teleport others:Nudge --out"
    found = subprocess.run(
        [sys.executable, str(script), "run", *words.split(), str(tmp_path / "runs")],
        cwd=here if "current" in way else tmp_path,
        env=settings,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "others:InverseNorm + others:Nudge" in found.stdout
    lines = [line.removeprefix("run: ") for line in found.stdout.splitlines() if line.startswith("run: ")]
    assert len(lines) == 3  # two single tasks and the method
    assert all(Path(line, "result.json").is_file() for line in lines)


def test_studies_in_several_processes(
    others: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(others)
    words = "others:Halves --methods ls others:InverseNorm:power=0.5 --seeds 2 --processes 2 --out runs"
    assert main(["study", *words.split()]) == 0
    assert "others:InverseNorm (power 0.5)" in capsys.readouterr().out
