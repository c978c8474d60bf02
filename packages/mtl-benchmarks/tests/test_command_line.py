"""What the words of a command mean, and what becomes of words that mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mtl_benchmarks
from mtl_benchmarks.benchmarks import available
from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line import parse_run
from mtl_benchmarks.commands import COMMANDS, find_command
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.protocol.outcome import Best, EarlyStopping, MeanOfLast
from mtl_benchmarks.protocol.schedules import Cosine, Plateau, Span, StepDecay
from mtl_benchmarks.protocol.training import Clip
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import NonFiniteLossError, SolverError

SMALL = "--benchmark.n_train 64 --benchmark.n_test 40 --benchmark.width 2 --epochs 1 --batch_size 16"
TINY = SMALL.split()


def config_of(words: str) -> RunConfig:
    plan = parse_run(words.split())
    assert plan is not None
    return plan.configs[0]


@pytest.mark.parametrize(
    "words", ["--tasks left right", "--tasks=left,right", "--tasks [left,right]", "--tasks right,left"]
)
def test_tasks_as_words(words: str) -> None:
    assert config_of(f"digits {words} --baselines none").tasks == ("left", "right")


def test_a_subset_of_tasks_trains_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "digits", *TINY, "--tasks", "left", "right", "--baselines", "none"]) == 0
    assert "image" not in capsys.readouterr().out
    assert main(["run", "digits", *TINY, "--tasks", "image", "--baselines", "none"]) == 0
    capsys.readouterr()
    assert main(["compare", "runs", "--figures", "figures"]) == 0
    printed = capsys.readouterr().out
    assert "left" in printed
    assert "image" in printed
    assert main(["run", "digits", *TINY, "--tasks", "left", "middle"]) == 2
    assert "unknown task of benchmark 'digits' 'middle'. Valid: left, right, image." in capsys.readouterr().err


def test_the_protocol_in_words() -> None:
    training = config_of(
        "digits --optimizer SGD --optimizer.momentum 0.9 --lr 0.05 --schedule cosine --schedule.warm_up 20steps "
        "--schedule.final 0.1 --steps 200 --max_norm 2 --clip all --precision bf16 --accumulate 4 --batch_size 32 "
        "--evaluate_every 50steps --reported mean-of-last --reported.count 3"
    ).training
    assert (training.optimizer.name, training.lr, training.optimizer.options["momentum"]) == ("sgd", 0.05, 0.9)
    assert training.schedule == Cosine(warm_up=Span(20, "steps"), final=0.1)
    assert (training.epochs, training.steps, training.batch_size, training.accumulate) == (None, 200, 32, 4)
    assert training.clip == Clip(max_norm=2.0, scope="all")
    assert (training.precision, training.evaluate_every) == ("bf16", Span(50, "steps"))
    assert training.reported == MeanOfLast(count=3)


def test_what_is_not_said_stays_as_the_benchmark_has_it() -> None:
    plain, sgd = config_of("digits").training, config_of("digits --optimizer sgd").training
    assert plain == RunConfig.resolve("digits").training
    assert (sgd.optimizer.name, sgd.lr, sgd.epochs) == ("sgd", plain.lr, plain.epochs)
    assert config_of("digits --optimizer.betas 0.8,0.99").training.optimizer.options["betas"] == [0.8, 0.99]
    assert config_of("digits --optimizer.lr 0.5").training.lr == 0.5
    step = config_of("digits --schedule step --schedule.every 3 --schedule.gamma 0.5").training.schedule
    assert step == StepDecay(every=Span(3, "epochs"), gamma=0.5)
    assert config_of("digits --clip torch:numel").training.clip == Clip(function="torch:numel")


def test_clipping_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_of("digits --max_norm 1").as_dict()), encoding="utf-8")
    assert config_of(f"--config {file}").training.clip == Clip(max_norm=1.0)
    assert config_of(f"--config {file} --max_norm none").training.clip is None


def test_choosing_by_validation(others: Path) -> None:
    words = "parts_of_others:Two --schedule plateau --schedule.watched error_a --schedule.patience 1 --reported best "
    training = config_of(f"{words} --reported.by error_a --early_stopping error_a --early_stopping.patience 4").training
    assert training.schedule == Plateau(watched="error_a", patience=1)
    assert training.reported == Best(by="error_a")
    assert training.early_stopping == EarlyStopping("error_a", patience=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr much", "`--lr` must be a number, got 'much'"),
        ("--lr -1", "`--lr` must be positive"),
        ("--epochs 1.5", "`--epochs` must be a whole number, got '1.5'"),
        ("--epochs", "`--epochs` must be followed by a value, got none: --epochs INTEGER"),
        ("--epochs 2 --steps 3", "`--steps` must stand without --epochs"),
        ("--optimizer lbfgs", "unknown optimizer 'lbfgs'. Valid: adadelta"),
        ("--optimizer sgd --optimizer.beta 1", "unknown option '--optimizer.beta'"),
        ("--optimizer adam --optimizer.betas 2,3", "must be what torch.optim.Adam takes"),
        ("--schedule linear", "unknown schedule 'linear'. Valid: constant, step, cosine, plateau"),
        ("--schedule step --schedule.every soon", "`--schedule.every` must be a length such as 5epochs or 100steps"),
        ("--clip all", "`--clip all` must come with --max_norm"),
        ("--clip nowhere:no", "nowhere"),
        ("--precision half", "`--precision` must be one of float32, tf32, bf16, fp16, got 'half'"),
        ("--accumulate 3", "`--accumulate` must divide `batch_size`"),
        ("--early_stopping error", "`--early_stopping error` must come with --early_stopping.patience"),
        ("--early_stopping.patience 3", "must come with --early_stopping METRIC"),
        ("--reported best --reported.by accuracy_left", "validation"),
        ("--tasks", "`--tasks` must be followed by at least one value"),
        ("--tasks left right image digits", "unknown task of benchmark 'digits' 'digits'"),
        ("--benchmark.reconstruction most", "`--benchmark.reconstruction` must be one of sum, mean, got 'most'"),
        ("--model resnet", "unknown model 'resnet'"),
        ("--model sharedtower", "model 'sharedtower' must take canvas, n_classes, got a constructor with"),
        ("--model torch.nn:Linear", "must take canvas, n_classes, width"),
        ("--model torch:zeros", "must be a subclass of torch.nn.Module"),
        ("--teleport cost --teleport.trigger torch.nn:Linear:a", "options must be like name:option=value"),
        (
            "--teleport cost --teleport.adapter torch.nn:Linear",
            "adapter 'torch.nn:Linear' must be a class with `attach`",
        ),
        ("--method fairgrad:alpha=x", "`alpha` must be a number, got 'x'"),
        ("--method imgrad --method.base 3", "`--method.base` must be one of cagrad, nashmtl, fairgrad, got '3'"),
        ("-x", "unknown option '-x'"),
        ("--", "unknown option '--'"),
        ("--seeds 1e3", "`--seeds` must be a number of seeds"),
        ("--config", "`--config` must be followed by the config.json of a run"),
        ("--config nowhere.json", "`--config` must be a file, got 'nowhere.json': No such file"),
        ("--checkpoint_every 0 --out .", "`--checkpoint_every` must be a whole number of at least 1"),
    ],
)
def test_errors_in_the_words_of_the_option(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "digits", *words.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "digits --method fairgrad --method.alpha 2 --teleport cost --teleport.rank 3 --teleport.trigger majority",
        "digits --tasks left right --optimizer sgd --schedule cosine --reported mean-of-last --clip all --max_norm 1",
        "toy:start=3 --method cagrad --teleport cost",
        "ctr --teleport random --teleport.length 0.1,0.2 --seeds 4,",
        "digits --tasks image --precision bf16 --steps 7 --evaluate_every 3steps",
        "OTHERS",
    ],
)
def test_the_configuration_of_a_run_runs_it_again(words: str, others: Path, tmp_path: Path) -> None:
    config = config_of(ALL if words == "OTHERS" else words)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.as_dict()))
    again = config_of(f"--config {file}")
    assert again == config
    assert (again.name, again.digest(with_seed=True)) == (config.name, config.digest(with_seed=True))
    assert config_of(f"--config {tmp_path}") == config  # the run's directory stands for the file in it


def test_options_override_the_configuration(tmp_path: Path) -> None:
    config = config_of(
        "digits --method fairgrad --method.alpha 2 --teleport cost --teleport.rank 3 --epochs 5 --seeds 7,"
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.as_dict()))
    found = config_of(
        f"--epochs 2 --config {file} --method.ridge 1e-6 --teleport.max_steps 4 --seeds 1, --tasks left right"
    )
    assert found.method.options["alpha"] == 2.0
    assert found.method.options["ridge"] == 1e-6
    assert found.teleport is not None
    assert (found.teleport.options["max_steps"], found.teleport.options["adapter"].options["rank"]) == (4, 3)
    assert (found.training.epochs, found.seed, found.tasks) == (2, 1, ("left", "right"))
    other = config_of(f"--config {file} --method mgda --teleport none")
    assert (other.method, other.teleport) == (RunConfig.resolve("digits", "mgda").method, None)
    assert config_of(f"digits --config {file}") == config
    dense = config_of(f"--config {file} --teleport.adapter dense").teleport
    assert dense is not None
    assert dense.options["adapter"].name == "dense"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a run"),
        ("{", "must hold a run"),
        ("[]", "must be a mapping with the entries benchmark, method, teleport"),
        ("[" * 100_000, "must hold a run"),
        ('{"benchmark": 3}', "`method` must be an entry"),
        ("\x00\xff", "must hold a run"),
        ("method", "`method` must be an entry"),
        ("unknown", "unknown benchmark 'digitz'"),
    ],
)
def test_a_damaged_configuration_is_named(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = config_of("digits").as_dict()
    if content == "method":
        content = json.dumps({key: value for key, value in data.items() if key != "method"})
    if content == "unknown":
        content = json.dumps({**data, "benchmark": {"name": "digitz", "options": {}}})
    file = tmp_path / "config.json"
    file.write_text(content, encoding="latin-1")
    assert main(["run", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_another_benchmark_than_that_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_of("digits").as_dict()))
    assert main(["run", "toy", "--config", str(file)]) == 2
    assert "got 'toy' and a run of 'digits'" in capsys.readouterr().err


PARTS = '''
"""Parts that no package knows."""

from pathlib import Path

import torch
from torch import nn

import mtl_core
from mtl_benchmarks import Benchmark, Metric, Training
from mtl_benchmarks.batching.batches import Batches
from mtl_teleport import LoRA, Trigger


class Wide(nn.Module):
    """A network of one's own.

    Args:
        depth: layers of the trunk.
    """

    def __init__(self, *, n_in: int, depth: int = 1) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(n_in, 4), *[nn.Linear(4, 4) for _ in range(depth - 1)])
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)


class Two(Benchmark):
    """Two lines."""

    name = "two"
    tasks = ("a", "b")
    metrics = (Metric("error_a", "a", "", False), Metric("error_b", "b", "", False))
    model_arguments = frozenset({"n_in"})
    splits = ("validation", "test")

    def __init__(self, *, root: "Path | None" = None, model=Wide) -> None:
        self.model, self.root = model, root
        self.rows = torch.linspace(-1.0, 1.0, 8).unsqueeze(1)

    @property
    def training(self):
        return Training(epochs=1, batch_size=4)

    def build(self):
        return self.model(n_in=1)

    def losses(self, model, rows):
        z = model.trunk(rows)
        return {"a": (model.a(z) - rows).square().mean(), "b": (model.b(z) + rows).square().mean()}

    def problem(self, model, *, tasks):
        return mtl_core.Problem(
            model, lambda m, rows: {t: self.losses(m, rows)[t] for t in tasks}, shared=model.trunk, tasks=tasks
        )

    def batches(self, *, batch_size, seed, device):
        return Batches(lambda rows, _: self.rows[rows], len(self.rows), batch_size=batch_size, seed=seed)

    def evaluate(self, model, *, device):
        found = {f"error_{t}": float(v.detach()) for t, v in self.losses(model, self.rows).items()}
        return {"validation": found, "test": found}


class Even:
    """Weights of one.

    Args:
        by: what they are multiplied by.
    """

    def __init__(self, *, by: float = 1.0) -> None:
        self.by = by

    def weights(self, gramian):
        return self.by * torch.ones(len(gramian), dtype=gramian.dtype)


class Twice(LoRA):
    """Two low-rank terms."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__(rank)


class Always(Trigger):
    """Every step."""

    def __call__(self, gramian):
        return True
'''


@pytest.fixture
def others(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("others")
    (folder / "parts_of_others.py").write_text(PARTS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "parts_of_others", raising=False)
    return folder


MINE = "parts_of_others"
ALL = (
    f"{MINE}:Two --method {MINE}:Even --method.by 2 --model {MINE}:Wide --model.depth 3 --teleport cost "
    f"--teleport.adapter {MINE}:Twice --teleport.rank 1 --teleport.trigger {MINE}:Always --teleport.max_steps 1 "
    "--teleport.aim none --epochs 1"
)


def test_a_run_of_nothing_but_parts_of_others(others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *ALL.split(), "--out", str(tmp_path / "runs")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = json.loads(Path(line.removeprefix("run: "), "config.json").read_text())
    assert found["benchmark"]["options"]["model"] == {"name": f"{MINE}:Wide", "options": {"depth": 3}}
    assert found["teleport"]["options"]["adapter"] == {"name": f"{MINE}:Twice", "options": {"rank": 1}}
    checkpoint = RunDirectory.existing(line.removeprefix("run: ")).read_checkpoint()
    assert checkpoint is not None
    assert "trunk.2.weight" in checkpoint.state["model"]  # three layers


def test_studies_and_ablations_of_others(others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{MINE}:Two --model.depth 2 --tasks a b --seeds 1 --epochs 1 --optimizer sgd --out {tmp_path}/study"
    teleports = f"none cost:adapter={MINE}:Twice,trigger={MINE}:Always,max_steps=1,adapter.rank=1"
    assert (
        main(["study", *words.split(), "--methods", f"{MINE}:Even:by=2", "ls", "--teleports", *teleports.split()]) == 0
    )
    printed = capsys.readouterr().out
    assert f"{MINE}:Even (by 2.0)" in printed
    assert f"with cost (adapter {MINE}:Twice" in printed
    files = list((tmp_path / "study").glob("*/config.json"))
    configs = [RunConfig.from_dict(json.loads(file.read_text())) for file in files]
    assert {config.training.optimizer.name for config in configs} == {"sgd"}
    assert {config.benchmark.options["model"].options["depth"] for config in configs} == {2}
    assert any(c.teleport and c.teleport.options["adapter"] == Choice(f"{MINE}:Twice", {"rank": 1}) for c in configs)
    words = f"{MINE}:Two --method {MINE}:Even --method.by 3 --parts sharpness --seeds 1 --epochs 1 --out {tmp_path}/abl"
    assert main(["ablate", *words.split()]) == 0
    assert "sharpness ascent" in capsys.readouterr().out


def test_names_from_entry_points(
    others: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import EntryPoint

    points = [
        EntryPoint("Wide-Net", f"{MINE}:Wide", "mtl.models"),
        EntryPoint("twice", f"{MINE}:Twice", "mtl.adapters"),
        EntryPoint("each_step", f"{MINE}:Always", "mtl.triggers"),
        EntryPoint("two", f"{MINE}:Two", "mtl.benchmarks"),
    ]
    monkeypatch.setattr("mtl_core.plugins.entry_points", lambda group: [p for p in points if p.group == group])
    config = config_of("two --model wide_net --teleport cost --teleport.adapter twice --teleport.trigger each_step")
    assert config.benchmark.options["model"].name == "widenet"
    assert config.teleport is not None
    assert [config.teleport.options[part].name for part in ("adapter", "trigger")] == ["twice", "eachstep"]
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(line in listed for line in ("A network of one's own", "Two low-rank terms", "Every step", "Two lines"))
    for name, line in {
        "wide-net": "--model.depth INTEGER (1)\n      layers of the trunk.",
        "twice": "--teleport.adapter.rank INTEGER (2)",
        "each_step": "trigger each_step: Every step.",
        f"{MINE}:Wide": "--model.n_in INTEGER (required)",
        f"{MINE}:Twice": "--teleport.adapter.rank",
        f"{MINE}:Even": "--method.by NUMBER (1.0)\n      what they are multiplied by.",
        "two": "--model NAME (",
    }.items():
        assert main(["describe", name]) == 0
        assert line in capsys.readouterr().out


def test_a_path_stays_one(others: Path, tmp_path: Path) -> None:
    from mtl_benchmarks.configuration.making import make_benchmark

    config = config_of(f"{MINE}:Two --benchmark.root {tmp_path}")
    assert config.benchmark.options["root"] == str(tmp_path)
    assert vars(make_benchmark(config.benchmark))["root"] == tmp_path


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_is_three_screens_with_examples_first(
    name: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["run", name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 75
    assert max(map(len, lines)) <= 130
    assert lines.index("examples:") < next(k for k, line in enumerate(lines) if line.strip().startswith("--"))
    assert "exit codes: 0 done, 1 failed computation, 2 bad input, 130 Ctrl-C, 143 SIGTERM" in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: mtl-bench {name}")
    assert "exit codes" in printed
    assert find_command(name).summary.split(";")[0][:20] in printed or name in ("run", "study", "ablate")


def test_examples_of_the_help_are_commands_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  mtl-bench run digits")]
    assert len(lines) >= 4
    for line in lines:
        assert parse_run(line.partition("#")[0].split()[2:]) is not None


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"mtl-benchmarks {mtl_benchmarks.__version__} (")
    assert torch.__version__ in printed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SolverError("no", residual=1.0, iterations=3), 1),
        (NonFiniteLossError("the loss\nof left is nan"), 1),
        (ZeroDivisionError("in a method\nof one's own"), 1),
        (PermissionError(13, "Permission denied", "/somewhere"), 2),
        (OSError(28, "No space left on device"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr("mtl_benchmarks.session.execute", fails)
    assert main(["run", "digits", *TINY]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("mtl-bench: ")
    assert len(printed.splitlines()) == 1


def test_the_traceback_of_a_foreign_error_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError("mine")

    monkeypatch.setattr("mtl_benchmarks.session.execute", fails)
    assert main(["run", "digits", *TINY]) == 1
    line = capsys.readouterr().err
    assert "test_command_line.py:" in line
    assert "MTL_BENCH_TRACEBACK=1" in line
    monkeypatch.setenv("MTL_BENCH_TRACEBACK", "1")
    assert main(["run", "digits", *TINY]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


WORDS = [
    *COMMANDS,
    *("digits", "toy", "ctr", "nothing", "digits:shift=2", "digits:shift", "mine:Class", "os:path", ":", "a:b:c"),
    *(
        "--help",
        "-h",
        "--version",
        "--",
        "-",
        "--=",
        "=",
        "",
        " ",
        "\n",
        "é",
        "\x00",
        "--method.",
        "--.",
        "-1",
        "[",
        "]",
    ),
    *("--method", "--method=fairgrad", "--method.alpha", "--method.alpha=2", "--method.c=", "--methods", "--teleports"),
    *("--teleport", "--teleport=cost", "--teleport.rank", "--teleport.adapter", "--teleport.adapter=dense"),
    *("--teleport.trigger=majority", "--teleport.like", "--model", "--model=overlaycnn", "--model.width=3"),
    *("--tasks", "--tasks=left", "left", "right", "--seeds", "--seeds=2", "--seeds=0", "--epochs", "--epochs=1"),
    *("--optimizer", "--optimizer=sgd", "--optimizer.momentum=0.9", "--schedule=step", "--schedule.every=x"),
    *("--clip=all", "--max_norm=none", "--precision=bf16", "--early_stopping=x", "--reported=best", "--steps=3"),
    *("--benchmark.n_train=20", "--benchmark.shift=-3", "--benchmark.start=0", "--root", "--figures", "--parts"),
    *("--out", "--config", "--config=/dev/null", "--config=.", "--device=cuda", "--threads=0", "--heads=none"),
    *("fairgrad", "cost", "random", "none", "null", "true", "0", "1", "1e400", "nan", "inf", "9" * 30, "bash", "fish"),
    *("--baselines=none", "--processes=0", "--checkpoint_every=0", "--format=html", "--batch_size=9999999999999"),
]


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    head=st.lists(st.sampled_from(WORDS), max_size=3).flatmap(
        lambda tail: st.tuples(st.sampled_from([*COMMANDS, *WORDS]), st.sampled_from(WORDS), st.just(tail))
    ),
    tail=st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=4),
)
@example(head=("run", "digits", ["--teleport=cost"]), tail=["--teleport.like", "runs"])
@example(head=("study", "toy", ["--methods"]), tail=["famo:bound=[1"])
@example(head=("describe", "os:path", []), tail=[])
def test_any_words_end_in_an_exit_code_and_one_line(
    head: tuple[str, str, list[str]],
    tail: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def stops(*arguments: object, **settings: object) -> None:
        raise SolverError("not in this test", residual=0.0, iterations=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mtl_benchmarks.session.execute", stops)
    monkeypatch.setattr("mtl_benchmarks.studies.study.train_or_stop", stops)
    monkeypatch.setattr("mtl_benchmarks.studies.ablation.train_or_stop", stops)
    capsys.readouterr()
    code = main([head[0], head[1], *head[2], *tail])
    captured = capsys.readouterr()
    assert code in (0, 1, 2)
    assert len(captured.err.splitlines()) == (code != 0)
    assert code != 1 or "not in this test" in captured.err
    for foreign in (
        "Traceback",
        "argparse",
        "invalid choice",
        "unrecognized",
        "expected one argument",
        "usage: pytest",
    ):
        assert foreign not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["-m mtl_benchmarks", "-c import_main"])
def test_the_package_is_the_command(way: str, tmp_path: Path) -> None:
    call = (
        way.split() if way.startswith("-m") else ["-c", "from mtl_benchmarks.cli import main; raise SystemExit(main())"]
    )
    found = subprocess.run(
        [sys.executable, *call, "describe", "digitz"],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("mtl-bench: unknown name 'digitz'. Did you mean 'digits'?")
