"""A run by every setting of its protocol: what it does, and that it goes on bit for bit wherever it is broken off."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_benchmarks.batching.batches import Batches, Part, part_of
from mtl_benchmarks.batching.randomness import seeded
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.engine.trainer import Trainer
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Best, EarlyStopping, MeanOfLast
from mtl_benchmarks.protocol.schedules import Cosine, Plateau, Span, StepDecay
from mtl_benchmarks.protocol.training import Clip, Training
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import InvalidInputError

HERE = Path(__file__).parent
DIGITS = Choice("digits", {"n_train": 44, "n_test": 20, "n_validation": 20, "width": 2})
ADAM = OptimizerChoice("adam", {"lr": 1e-2})
TELEPORT = Choice("cost", {"trigger": "weak", "max_steps": 2})
# Three epochs of three batches, the last one smaller.


def halve(parameters: Sequence[Tensor]) -> None:
    """A clipping function of one's own."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)


def training(**settings: Any) -> Training:
    defaults: dict[str, Any] = {"batch_size": 16, "epochs": 3, "optimizer": ADAM}
    return Training(**{**defaults, **settings})


def resolve(protocol: Training, method: str = "ls", teleport: Choice | None = None) -> RunConfig:
    return RunConfig.resolve(DIGITS, method, teleport, training=protocol)


class Broken(Exception):
    """Stands for the end of the process."""


def broken_everywhere(config: RunConfig, path: Path) -> None:
    """Begin the run anew after every single step."""
    for at in range(1, 100):

        def progress(now: Progress, at: int = at) -> None:
            if now.done == at:
                raise Broken

        try:
            run(config, path, checkpoint_every=1, progress=progress)
        except Broken:
            continue
        return


def content(path: Path) -> dict[str, Any]:
    """What has to be the same however often a run was broken off: all but the times."""
    checkpoint = RunDirectory.existing(path).read_checkpoint()
    assert checkpoint is not None
    state = checkpoint.state
    recorder = {name: value for name, value in state["recorder"].items() if name not in ("times", "seconds", "events")}
    return {
        "metrics": (path / "metrics.csv").read_bytes(),
        "values": json.loads((path / "result.json").read_text())["values"],
        "model": {name: tensor.tolist() for name, tensor in state["model"].items()},
        "optimizer": repr(state["optimizer"]),
        "scaler": state["scaler"],
        "recorder": repr(recorder),
        "random": repr(state["random"]),
        "step": state["step"],
    }


def column(path: Path, metric: str, split: str = "train") -> list[float]:
    rows = csv.DictReader((path / "metrics.csv").read_text().splitlines())
    return [float(row["value"]) for row in rows if (row["metric"], row["split"]) == (metric, split)]


SETTINGS: dict[str, Training] = {
    "plain": training(),
    "sgd with groups": training(
        optimizer=OptimizerChoice("sgd", {"lr": 0.1, "momentum": 0.9}, {"trunk": {"lr": 0.01, "weight_decay": 1e-3}})
    ),
    "step decay": training(schedule=StepDecay(every=Span(1), gamma=0.5, warm_up=Span(2, "steps"))),
    "cosine": training(schedule=Cosine(warm_up=Span(1))),
    "plateau": training(schedule=Plateau(watched="error_image", patience=0, threshold=0.3, factor=0.5)),
    "clipped": training(clip=Clip(max_norm=0.1, scope="all")),
    "clipped by a function": training(clip=Clip(function=f"{__name__}:halve")),
    "bf16": training(precision="bf16"),
    "fp16": training(precision="fp16"),
    "accumulated": training(accumulate=4),
    "steps": training(epochs=None, steps=8, evaluate_every=Span(2, "steps"), reported=MeanOfLast(2)),
    "every two epochs": training(evaluate_every=Span(2)),
    "early": training(early_stopping=EarlyStopping("error_image", patience=1, min_change=1.0), epochs=9),
    "best": training(reported=Best(by="accuracy_*")),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("method", "teleport"), [("fairgrad", None), ("ls", TELEPORT)], ids=["fairgrad", "cost"])
def test_a_run_broken_after_every_step_ends_the_same(
    tmp_path: Path, name: str, method: str, teleport: Choice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(halve=halve))  # pytest imports files past the system
    config = resolve(SETTINGS[name], method, teleport)
    run(config, tmp_path / "whole")
    broken_everywhere(config, tmp_path / "broken")
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_settings_change_what_is_trained(tmp_path: Path) -> None:
    """What a broken run is compared with above would agree too if a setting had no effect."""
    models = {}
    for name in SETTINGS:
        if name in ("clipped by a function", "best", "every two epochs"):
            continue
        run(resolve(SETTINGS[name]), tmp_path / name)
        models[name] = json.dumps(content(tmp_path / name)["model"])
    assert len(set(models.values())) == len(models)


def test_learning_rates_are_recorded(tmp_path: Path) -> None:
    run(resolve(training(schedule=StepDecay(every=Span(1), gamma=0.5))), tmp_path / "step")
    assert column(tmp_path / "step", "lr") == [0.01, 0.005, 0.0025]
    run(resolve(SETTINGS["sgd with groups"]), tmp_path / "groups")
    assert column(tmp_path / "groups", "lr") == [0.1] * 3
    assert column(tmp_path / "groups", "lr_1") == [0.01] * 3


def test_the_plateau_lowers_the_rate_when_its_metric_says_so(tmp_path: Path) -> None:
    run(resolve(training(schedule=Plateau(watched="error_image", patience=0, threshold=10.0, factor=0.5))), tmp_path)
    assert column(tmp_path, "lr") == [0.01, 0.005, 0.0025]  # nothing but the first is ever that much better


def test_a_run_ends_early_and_says_after_how_many_steps(tmp_path: Path) -> None:
    run(resolve(SETTINGS["early"]), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 6
    assert len(column(tmp_path, "error_image", "test")) == 2


def test_evaluations_stand_where_the_protocol_puts_them(tmp_path: Path) -> None:
    def places(name: str) -> list[tuple[str, str]]:
        run(resolve(SETTINGS[name]), tmp_path / name)
        rows = csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines())
        return [(r["epoch"], r["step"]) for r in rows if (r["metric"], r["split"]) == ("error_image", "test")]

    assert places("steps") == [("1", "2"), ("2", "4"), ("2", "6"), ("3", "8")]
    assert places("every two epochs") == [("2", "6"), ("3", "9")]
    result = run(resolve(SETTINGS["steps"]), tmp_path / "steps")
    last = column(tmp_path / "steps", "error_image", "test")[-2:]
    assert result.values["error_image"] == pytest.approx(sum(last) / 2)


def test_the_best_epoch_is_reported(tmp_path: Path) -> None:
    result = run(resolve(training(reported=Best(by="accuracy_left"), epochs=5)), tmp_path)
    validation = column(tmp_path, "accuracy_left", "validation")
    best = max(k for k, value in enumerate(validation) if value == max(validation))
    assert result.values["accuracy_left"] == column(tmp_path, "accuracy_left", "test")[best]


@pytest.mark.parametrize("method", ["ls", "fairgrad"])
def test_micro_batches_make_the_step_of_the_whole_batch(method: str) -> None:
    """Of equal size, and of unequal size: the last 12 samples in 8 parts."""
    states = []
    for accumulate, size in ((1, 44), (4, 44), (1, 16), (8, 16)):
        config = resolve(training(batch_size=size, accumulate=accumulate, epochs=1), method)
        with seeded(0, threads=1):
            trainer = Trainer(config)
            trainer.model.double()
            trainer.batches._fetch = _in_double(trainer.batches._fetch)  # type: ignore[attr-defined]
            for _ in range(trainer.total_steps):
                trainer.take_step()
        states.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(states[2], states[3], rtol=0, atol=1e-9)
    assert not torch.allclose(states[0], states[2])


def _in_double(fetch: Any) -> Any:
    def double(rows: Tensor, generator: torch.Generator) -> Any:
        data = fetch(rows, generator)
        return type(data)(data.images.double(), data.left, data.right, data.sources)

    return double


def test_unequal_micro_batches_count_by_their_samples() -> None:
    batches = Batches(lambda rows, _: rows.tolist(), 7, batch_size=7, seed=0)
    shares = [part_of(batches, 0, 0, Part(k, 3)) for k in range(3)]
    assert [len(share.batch) for share in shares] == [2, 2, 3]
    assert [share.weight for share in shares] == pytest.approx([6 / 7, 6 / 7, 9 / 7])
    assert [row for share in shares for row in share.batch] == batches.batch(0, 0)
    few = Batches(lambda rows, _: rows.tolist(), 2, batch_size=7, seed=0)
    assert [part_of(few, 0, 0, Part(k, 3)).weight for k in range(3)] == [0.0, 1.5, 1.5]


def test_autocast_computes_losses_in_half_precision_and_gradients_of_the_parameters_in_single() -> None:
    with seeded(0, threads=1):
        trainer = Trainer(resolve(SETTINGS["bf16"], "fairgrad"))
        trainer.take_step()
    gramian = trainer.recorder.state_dict()["gramians"]
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in trainer.model.parameters())
    assert gramian.dtype == torch.float64
    seen = []
    trainer.model.get_submodule("trunk").register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    trainer.problem.losses(trainer.batches.batch(0, 0))
    assert seen == [torch.bfloat16]


def test_an_overflow_under_the_scaler_is_an_event_and_no_end(tmp_path: Path) -> None:
    with seeded(0, threads=1):
        trainer = Trainer(resolve(SETTINGS["fp16"]))
        assert trainer.scaler is not None
        trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**60})
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.take_step()
    assert [event["kind"] for event in trainer.recorder.events] == ["skipped_update"]
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_times_are_kept_apart_from_what_the_seed_determines(tmp_path: Path) -> None:
    run(resolve(training(), "ls", TELEPORT), tmp_path)
    rows = list(csv.DictReader((tmp_path / "times.csv").read_text().splitlines()))
    assert {row["part"] for row in rows} == {"data", "forward", "backward", "teleports", "evaluation"}
    assert [(row["epoch"], row["step"]) for row in rows if row["part"] == "data"] == [
        ("1", "3"),
        ("2", "6"),
        ("3", "9"),
    ]
    total = {part: sum(float(r["seconds"]) for r in rows if r["part"] == part) for part in ("backward", "teleports")}
    assert total["backward"] > 0
    assert total["teleports"] > 0
    assert all(float(row["seconds"]) >= 0 for row in rows)


def given(kind: str) -> RunConfig:
    return RunConfig.resolve(Choice("many_lines:Given", {"gives": kind}), epochs=3)


@pytest.mark.parametrize("kind", ["tensors", "numpy", "arrays", "more"])
def test_numbers_of_any_kind_are_numbers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    plain, other = (run(given(each), tmp_path / each) for each in ("floats", kind))
    assert {type(value) for value in other.values.values()} == {float}
    assert {name: other.values[name] for name in plain.values} == plain.values
    assert set(other.values) - set(plain.values) == ({"beside"} if kind == "more" else set())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "without error_second of 'test'"),
        ("missing in validation", "without error_first of 'validation'"),
        ("no test", "got splits ['validation'], without error_first, error_second, error_third of 'test'"),
        ("none", "got None for 'error_first' of 'validation'"),
        ("texts", "for 'error_first' of 'validation'"),
        ("vectors", "for 'error_first' of 'validation'"),
        ("flat", "for the split 'error_first'"),
        ("nothing", "got None."),
    ],
)
def test_the_first_evaluation_must_hold_what_is_declared(
    kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    steps: list[int] = []
    with pytest.raises(InvalidInputError, match="evaluation of benchmark 'given' must") as raised:
        run(given(kind), tmp_path / "run", progress=lambda now: steps.append(now.done))
    assert said in str(raised.value)
    assert steps == [1, 2]  # not one step beyond the first epoch
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize(("name", "said"), [("Twice", "'error' more than once"), ("Untested", "must have 'test'")])
def test_what_a_benchmark_declares_is_refused_where_it_is_made(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    with pytest.raises(InvalidInputError, match=said):
        RunConfig.resolve(f"many_lines:{name}")
