import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line import parse_run, parse_seeds, request
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.protocol.training import Clip
from mtl_core import InvalidInputError, InvalidParameterError

TINY = [
    "--benchmark.n_train",
    "64",
    "--benchmark.n_test",
    "40",
    "--benchmark.width",
    "2",
    "--epochs",
    "2",
    "--batch_size",
    "16",
]


def run_tiny(out: Path, *more: str) -> int:
    return main(["run", "digits", *TINY, "--out", str(out), *more])


def test_options_reach_the_objects() -> None:
    plan = parse_run(
        [
            "digits",
            "--method",
            "fairgrad",
            "--method.alpha",
            "2",
            "--teleport=cost",
            "--teleport.rank",
            "3",
            "--teleport.max_steps=4",
            "--teleport.trigger",
            "majority",
            "--teleport.trigger.fraction",
            "0.75",
            "--benchmark.shift",
            "2",
            "--seeds",
            "2",
            "--max_norm",
            "1",
            "--out",
            "there",
        ]
    )
    assert plan is not None
    first, second = plan.configs
    assert (first.seed, second.seed, first.training.clip) == (0, 1, Clip(max_norm=1.0))
    assert (first.method.name, first.method.options["alpha"]) == ("fairgrad", 2.0)
    assert first.teleport is not None
    assert first.teleport.options["max_steps"] == 4
    assert first.teleport.options["adapter"].options["rank"] == 3
    assert first.teleport.options["trigger"].options["fraction"] == 0.75
    assert first.benchmark.options["shift"] == 2
    assert (plan.out, plan.baselines) == (Path("there"), True)


def test_the_command_and_python_mean_the_same() -> None:
    for benchmark in ("digits", "toy"):
        for teleport, settings in (("cost", {}), ("random", {"length": 0.25})):
            words = [f"--teleport.{name}={value}" for name, value in settings.items()]
            plan = parse_run([benchmark, "--teleport", teleport, *words])
            assert plan is not None
            option = Choice(benchmark, {} if benchmark == "digits" else {"start": 0})
            assert plan.configs[0] == RunConfig.resolve(option, "ls", Choice(teleport, settings))


def test_toy_stands_for_all_its_starts() -> None:
    plan = parse_run(["toy", "--method", "cagrad", "--teleport", "cost", "--seeds", "0,3"])
    assert plan is not None
    assert [(c.benchmark.options["start"], c.seed) for c in plan.configs] == [(s, k) for s in range(6) for k in (0, 3)]
    assert {c.teleport.options["adapter"].name for c in plan.configs if c.teleport} == {"dense"}


def test_seeds() -> None:
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("4, 1,4") == (4, 1)
    assert parse_seeds("[7]") == (7,)
    for text in ("0", "x", "", "-1", "1.5"):
        with pytest.raises(InvalidParameterError, match="`--seeds` must"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "usage: mtl-bench"),
        ("trane", "unknown command 'trane'. Valid: list, describe, run, compare"),
        ("list more", "without further words"),
        ("describe", "followed by a name"),
        ("describe fairgard", "Did you mean 'fairgrad'?"),
        ("run", "must name a benchmark, got none. Valid: "),
        ("run digits toy", "must name one benchmark"),
        ("run digit", "unknown benchmark 'digit'. Did you mean 'digits'? Valid: "),
        ("run digits --method fairgard", "unknown method 'fairgard'. Did you mean 'fairgrad'?"),
        ("run digits --method", "`--method` must be followed by a name"),
        ("run digits --teleport jump", "unknown teleport 'jump'. Valid: cost, memory, none, random"),
        ("run digits --teleport cost --teleport.adapter lara", "unknown adapter 'lara'"),
        (
            "run digits --teleport random --teleport.length 1 --teleport.adapter lora",
            "`--teleport.adapter` must belong to teleport 'random'",
        ),
        ("run digits --teleport random", "teleport.length"),
        ("run digits --teleport.trigger weak", "must come with --teleport"),
        ("run digits --epoch 3", "unknown option '--epoch'. Did you mean '--epochs'?"),
        (
            "run digits --method fairgrad --method.alpa 3",
            "unknown option '--method.alpa'. Did you mean '--method.alpha'?",
        ),
        ("run digits --method fairgrad --method.alpha much", "`--method.alpha`"),
        ("run digits --method fairgrad --method.alpha -1", "`--method.alpha` must be positive"),
        ("run digits --benchmark.shift 9", "`--benchmark.shift` must lie in [0, 8]"),
        ("run digits --seeds none", "`--seeds` must"),
        ("run digits --device gpu", "`--device` must"),
        ("run digits --baselines some", "`--baselines`"),
        ("compare", "`compare` must be used as mtl-bench compare RUNS… [options], got no word."),
        ("compare nowhere", "'nowhere'"),
        ("compare a --colour red", "unknown option '--colour'. Valid: --figures"),
    ],
)
def test_bad_input_is_explained_and_exits_with_2(
    words: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert expected in captured.out + captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run_tiny(tmp_path) == 2
    assert "must be empty or written by mtl-bench" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_list_and_describe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("digits", "toy", "fairgrad", "cost", "random", "dense", "majority"))
    for name, expected in (
        ("digits", "accuracy_left [%], of left, higher is better"),
        ("fairgrad", "Ban and Ji"),
        ("cost", "--teleport.adapter NAME (lora)"),
        ("lora", "--teleport.adapter.rank INTEGER (5)"),
    ):
        assert main(["describe", name]) == 0
        assert expected in capsys.readouterr().out


def test_help_lists_the_options_of_the_chosen_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--method", "fairgrad", "--teleport", "cost", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(
        flag in out
        for flag in ("--method.alpha", "--teleport.max_steps", "--teleport.adapter.rank", "--benchmark.shift")
    )
    assert main(["--help"]) == 0


def test_run_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert run_tiny(out, "--method", "fairgrad", "--seeds", "2") == 0
    printed = capsys.readouterr().out
    paths = [line.removeprefix("run: ") for line in printed.splitlines() if line.startswith("run: ")]
    assert len(paths) == 8  # two seeds of three single tasks and of the method
    assert all(Path(path, "result.json").is_file() for path in paths)
    teleports = ["--teleport", "cost", "--teleport.trigger", "any-mean", "--teleport.max_steps", "2"]
    assert run_tiny(out, "--method", "fairgrad", "--seeds", "2", "--log", "csv", *teleports) == 0
    logged = [path.parents[1].name for path in out.glob("*/log/log.csv")]
    assert len(logged) == 2  # a complete run, such as a baseline, is only read
    assert all("cost" in name for name in logged)
    printed = capsys.readouterr().out
    assert "fairgrad + cost" in printed
    # The multi-task runs alone: their baselines are found beside them.
    multi = [str(path) for path in out.glob("digits-fairgrad*")]
    assert main(["compare", *multi, "--figures", str(tmp_path / "figures")]) == 0
    printed = capsys.readouterr().out
    assert "single left" not in printed
    assert "Δm" in printed
    assert "teleports" in printed
    kinds = ("cosine-map", "cosines", "learning", "norms", "tasks", "teleports", "time", "weights")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [f"digits-{kind}.png" for kind in kinds]


def test_parse_refuses_before_anything_is_written() -> None:
    with pytest.raises(InvalidInputError):
        parse_run(["digits", "--epochs", "two"])


ONE_AFTER_THE_OTHER = """
import json, sys
from mtl_benchmarks.cli import main

for words in json.loads(sys.argv[1]):
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="strict")  # as in a process of its own
    if code := main(words):
        sys.exit(code)
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_in_another_encoding_loses_signs_and_no_run(encoding: str, tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    commands = [["run", "toy", "--steps", "3", "--out", out], ["compare", out], ["list"]]
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, b"UnicodeEncodeError" in done.stderr) == (0, False), done.stderr
    said = done.stdout.decode(encoding)
    assert said.count("distance") >= 12, said  # a table for each of six starts, by run and by compare
    assert "fairgrad" in said, said


EARLY = {
    "run digits --tasks nosuch": "unknown task of benchmark 'digits' 'nosuch'. Valid: left, right, image.",
    "run digits --method nosuch": "unknown method 'nosuch'. Valid: ",
    "run digits --teleport nosuch": "unknown teleport 'nosuch'. Valid: ",
    "run digits --teleport cost --teleport.trigger nosuch": "unknown trigger 'nosuch'. Valid: ",
    "run digits --model nosuch": "unknown model 'nosuch'. Valid: ",
    "study digits --methods ls nosuch": "unknown method 'nosuch'. Valid: ",
    "study digits --teleports cost nosuch": "unknown teleport 'nosuch'. Valid: ",
    "study digits --teleports cost:adapter=nosuch": "unknown adapter 'nosuch'. Valid: ",
    "study digits --tasks left nosuch": "unknown task of benchmark 'digits' 'nosuch'. Valid: ",
    "ablate digits --parts terms nosuch": "unknown part of a teleport 'nosuch'. Valid: terms, ",
    "ablate digits --method nosuch": "unknown method 'nosuch'. Valid: ",
    "figure cost-3 --methods nosuch": "unknown method 'nosuch'. Valid: ",
    "figure cost-3 --teleport nosuch": "unknown teleport 'nosuch'. Valid: ",
    "figure cost-5a --many nosuch": "unknown benchmark 'nosuch'. Valid: ",
    "figure cost-3 --tasks nosuch": "unknown task of benchmark 'digits' 'nosuch'. Valid: ",
}


@pytest.mark.parametrize("words", EARLY)
def test_an_unknown_name_is_refused_before_a_benchmark_is_made(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make one may mean to look at thousands of files."""

    def make(choice: Choice) -> None:
        raise AssertionError(f"{choice.name} was made")

    monkeypatch.setattr(request, "make_benchmark", make)
    assert main(words.split()) == 2
    shown = capsys.readouterr().err
    assert EARLY[words] in shown
    assert "was made" not in shown
    assert "Did you mean" not in shown
