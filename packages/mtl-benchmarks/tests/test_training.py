import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import Digits
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.configuration.selection import Selection
from mtl_benchmarks.metrics import Baseline
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Best, EarlyStopping, Last, MeanOfLast
from mtl_benchmarks.protocol.schedules import Constant, Cosine, Plateau, Span, StepDecay
from mtl_benchmarks.protocol.training import Clip, Training
from mtl_core import InvalidInputError, InvalidParameterError, UnknownNameError

spans = st.builds(Span, st.integers(1, 50), st.sampled_from(["epochs", "steps"]))
trainings = st.builds(
    Training,
    batch_size=st.sampled_from([4, 8, 120]),
    epochs=st.integers(1, 300),
    optimizer=st.sampled_from(
        [
            OptimizerChoice("adam", {"lr": 1e-3}),
            OptimizerChoice("sgd", {"lr": 0.1, "momentum": 0.9}, {"trunk": {"weight_decay": 1e-4}}),
        ]
    ),
    schedule=st.one_of(
        st.builds(Constant, st.none() | spans),
        st.builds(StepDecay, every=spans, gamma=st.floats(0.1, 1.0)),
        st.builds(Cosine, final=st.floats(0, 1), warm_up=st.none() | spans),
        st.builds(Plateau, watched=st.just("delta_m"), factor=st.floats(0.1, 0.9), patience=st.integers(0, 9)),
    ),
    clip=st.none()
    | st.builds(Clip, max_norm=st.floats(0.1, 9), scope=st.sampled_from(["shared", "all"]))
    | st.just(Clip(function="torch.nn.utils:clip_grad_value_")),
    precision=st.sampled_from(["float32", "tf32", "bf16", "fp16"]),
    accumulate=st.sampled_from([1, 2, 4]),
    evaluate_every=spans,
    early_stopping=st.none() | st.builds(EarlyStopping, st.just("delta_m"), st.integers(1, 9)),
    reported=st.one_of(st.just(Last()), st.builds(MeanOfLast, st.integers(1, 20)), st.builds(Best, by=st.just("f1_*"))),
)


@given(trainings)
def test_round_trip_through_json(training: Training) -> None:
    assert Training.from_dict(json.loads(json.dumps(training.as_dict()))) == training
    resolved = training.altered()
    assert Training.from_dict(json.loads(json.dumps(resolved.as_dict()))) == resolved
    assert resolved.altered() == resolved


def test_short_overrides() -> None:
    training = Training(batch_size=8, epochs=3, optimizer=OptimizerChoice("sgd", {"lr": 0.1, "momentum": 0.9}))
    changed = training.altered(steps=7, lr=0.2, batch_size=4, precision="bf16", max_norm=2.0)
    assert (changed.epochs, changed.steps, changed.batch_size, changed.precision) == (None, 7, 4, "bf16")
    assert (changed.lr, changed.optimizer.options["momentum"], changed.clip) == (0.2, 0.9, Clip(max_norm=2.0))
    assert changed.altered(epochs=2).steps is None
    other = training.altered(optimizer="adamw").optimizer
    assert (other.name, other.options["lr"], other.options["weight_decay"]) == ("adamw", 0.1, 0.01)
    assert training.altered(optimizer=OptimizerChoice("adam", {"eps": 1.0})).optimizer.options["eps"] == 1.0


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"batch_size": 0, "epochs": 1}, "batch_size"),
        ({"batch_size": 1}, "training"),
        ({"batch_size": 1, "epochs": 1, "steps": 1}, "training"),
        ({"batch_size": 1, "epochs": 0}, "epochs"),
        ({"batch_size": 1, "steps": 0}, "steps"),
        ({"batch_size": 4, "epochs": 1, "accumulate": 3}, "accumulate"),
        ({"batch_size": 4, "epochs": 1, "accumulate": 2, "sharding": "fsdp"}, "accumulate"),
        ({"batch_size": 4, "epochs": 1, "precision": "fp8"}, "precision"),
        ({"batch_size": 4, "epochs": 1, "sharding": "ddp"}, "sharding"),
        ({"batch_size": 4, "epochs": 1, "optimizer": "adam"}, "optimizer"),
        ({"batch_size": 4, "epochs": 1, "schedule": None}, "schedule"),
        ({"batch_size": 4, "epochs": 1, "clip": 1.0}, "clip"),
        ({"batch_size": 4, "epochs": 1, "evaluate_every": 2}, "evaluate_every"),
    ],
)
def test_refuses(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{name}` must"):
        Training(**settings)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Clip(), "clip"),
        (lambda: Clip(max_norm=1.0, function="a:b"), "clip"),
        (lambda: Clip(max_norm=-1.0), "max_norm"),
        (lambda: Clip(max_norm=1.0, scope="heads"), "scope"),  # type: ignore[arg-type]
        (lambda: Clip(function="clip"), "function"),
        (lambda: EarlyStopping("", 1), "metric"),
        (lambda: EarlyStopping("x", 0), "patience"),
        (lambda: EarlyStopping("x", 1, -1.0), "min_change"),
        (lambda: MeanOfLast(0), "count"),
        (lambda: Best(by=""), "by"),
        (lambda: Best(ties="first"), "ties"),  # type: ignore[arg-type]
    ],
)
def test_parts_refuse(make: Any, name: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{name}` must"):
        make()


def test_a_function_that_clips_must_be_importable() -> None:
    with pytest.raises(InvalidInputError, match="no_such_module"):
        RunConfig.resolve("digits", training=Training(batch_size=1, epochs=1, clip=Clip(function="no_such_module:f")))


def test_what_clips_must_be_callable() -> None:
    with pytest.raises(UnknownNameError, match="unknown function in math 'pi'"):
        Clip(function="math:pi").for_step()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.booleans())
def test_which_evaluations_stand_for_a_run(values: list[int], higher: bool) -> None:
    numbers = [float(value) for value in values]
    assert numbers[Last().chosen(numbers, higher_is_better=higher)] == numbers[-1:]
    assert numbers[MeanOfLast(3).chosen(numbers, higher_is_better=higher)] == numbers[-3:]
    best = max(numbers) if higher else min(numbers)
    later = Best(by="x").chosen(numbers, higher_is_better=higher)
    earlier = Best(by="x", ties="earlier").chosen(numbers, higher_is_better=higher)
    assert numbers[later] == numbers[earlier] == [best]
    assert best not in numbers[later.stop :]
    assert best not in numbers[: earlier.start]


def test_what_is_no_number_is_never_best() -> None:
    assert Best(by="x").chosen([math.nan, 2.0, math.nan], higher_is_better=True).start == 1


def test_early_stopping_counts_evaluations_without_a_new_best() -> None:
    rule = EarlyStopping("x", patience=2, min_change=0.5)
    ends = [rule.is_over([1.0, 1.4, 1.6, 1.0, 2.0][:k], higher_is_better=True) for k in range(1, 6)]
    assert ends == [False, False, False, False, True]  # 1.6 is a new best, 1.0 and 2.0 are not


def digits(**options: Any) -> Digits:
    return Digits(n_train=20, n_test=20, n_validation=20, **options)


class WithBaselines(Digits):
    @property
    def baselines(self) -> tuple[Baseline, ...]:
        values = {"accuracy_left": 80.0, "accuracy_right": 80.0, "error_image": 0.5}
        return tuple(Baseline(metric, values[metric.name], "by hand") for metric in self.metrics)


def protocol(**settings: Any) -> Training:
    return Training(batch_size=4, epochs=3, **settings)


def row(left: float, right: float, error: float) -> dict[str, float]:
    return {"accuracy_left": left, "accuracy_right": right, "error_image": error}


HISTORY = [
    {"validation": row(80, 60, 0.5), "test": row(1, 1, 1)},
    {"validation": row(60, 90, 0.7), "test": row(2, 2, 2)},
    {"validation": row(75, 75, 0.7), "test": row(3, 3, 3)},
]


@pytest.mark.parametrize(
    ("by", "tasks", "epoch"),
    [
        ("accuracy_left", ("left", "right", "image"), 1),
        ("accuracy_right", ("left", "right", "image"), 2),
        ("accuracy_*", ("left", "right", "image"), 3),  # 70, 75 and again 75: the later one
        ("accuracy_*", ("left",), 1),
        ("error_image", ("left", "right", "image"), 1),
        ("delta_m", ("left", "right", "image"), 1),
        ("delta_m", ("right",), 2),
    ],
)
def test_the_epoch_that_validation_chooses(by: str, tasks: tuple[str, ...], epoch: int) -> None:
    benchmark = WithBaselines(n_train=20, n_test=20, n_validation=20)
    chosen = Selection(benchmark, tasks, protocol(reported=Best(by=by)))
    assert chosen.reported(HISTORY) == HISTORY[epoch - 1]["test"]


def test_an_evaluation_without_a_number_is_never_the_best_by_delta() -> None:
    benchmark = WithBaselines(n_train=20, n_test=20, n_validation=20)
    stopping = EarlyStopping("delta_m", 1)
    chosen = Selection(benchmark, ("left", "right", "image"), protocol(reported=Best(), early_stopping=stopping))
    history = [HISTORY[1], {"validation": row(90, 90, math.nan), "test": row(9, 9, 9)}]
    assert chosen.reported(history) == HISTORY[1]["test"]
    assert [chosen.is_over(history[:k]) for k in (1, 2)] == [False, True]


def test_means_and_last() -> None:
    assert Selection(digits(), ("left",), protocol()).reported(HISTORY) == row(3, 3, 3)
    assert Selection(digits(), ("left",), protocol(reported=MeanOfLast(2))).reported(HISTORY) == row(2.5, 2.5, 2.5)


def test_schedule_and_early_stopping_look_at_validation() -> None:
    training = protocol(
        schedule=Plateau(watched="error_image", patience=0), early_stopping=EarlyStopping("accuracy_left", 2)
    )
    chosen = Selection(digits(), ("left", "right", "image"), training)
    assert [chosen.reductions(HISTORY[:k]) for k in (1, 2, 3)] == [0, 1, 2]
    assert [chosen.is_over(HISTORY[:k]) for k in (1, 2, 3)] == [False, False, True]


@pytest.mark.parametrize(
    ("benchmark", "tasks", "metric", "error", "words"),
    [
        (Digits(n_train=20, n_test=20), ("left",), "accuracy_left", InvalidParameterError, "no validation split"),
        (digits(), ("left",), "delta_m", InvalidParameterError, "brings no baselines"),
        (digits(), ("left",), "accuracy_lift", UnknownNameError, "accuracy_left"),
        (digits(), ("left",), "accuracy_right", UnknownNameError, "accuracy_left"),
        (digits(), ("left", "image"), "*", InvalidParameterError, "one direction"),
    ],
)
def test_what_cannot_be_watched(
    benchmark: Benchmark, tasks: tuple[str, ...], metric: str, error: type[Exception], words: str
) -> None:
    for training in (
        protocol(reported=Best(by=metric)),
        protocol(schedule=Plateau(watched=metric)),
        protocol(early_stopping=EarlyStopping(metric, 1)),
    ):
        with pytest.raises(error, match=words):
            Selection(benchmark, tasks, training)


def test_a_configuration_knows_what_its_benchmark_can_be_watched_by() -> None:
    training = protocol(reported=Best(by="accuracy_left"))
    with pytest.raises(InvalidParameterError, match="no validation split"):
        RunConfig.resolve("digits", training=training)
    assert RunConfig.resolve(Choice("digits", {"n_validation": 10}), training=training).training.reported == Best(
        by="accuracy_left"
    )
    with pytest.raises(InvalidParameterError, match="`precision` must"):
        RunConfig.resolve("digits", precision="tf32")
