import json
import math
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line.config_file import read_config
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Best, EarlyStopping
from mtl_benchmarks.protocol.schedules import Constant, Cosine, Plateau, StepDecay
from mtl_benchmarks.protocol.training import Clip, Training
from mtl_core import InvalidParameterError, UnknownNameError


def test_defaults_are_filled_in() -> None:
    config = RunConfig.resolve("digits", "fairgrad", "cost")
    assert config.benchmark.options["shift"] == 4
    assert config.method.options["alpha"] == 1.0
    assert config.teleport is not None
    assert config.teleport.options["adapter"].name == "lora"
    assert config.teleport.options["adapter"].options["rank"] == 5
    assert config.tasks == ("left", "right", "image")
    assert config.training.epochs == 8
    assert config.training.optimizer.options["lr"] == 3e-3
    assert config.training.optimizer.options["betas"] == [0.9, 0.999]


def test_a_benchmark_may_have_its_own_teleport_defaults() -> None:
    toy = RunConfig.resolve("toy", "ls", "cost")
    assert toy.teleport is not None
    assert toy.teleport.options["adapter"].name == "dense"
    chosen = RunConfig.resolve("toy", "ls", Choice("cost", {"adapter": Choice("lora", {"rank": 2})}))
    assert chosen.teleport is not None
    assert chosen.teleport.options["adapter"].options["rank"] == 2


def test_round_trip_through_json() -> None:
    for config in (
        RunConfig.resolve("digits", Choice("fairgrad", {"alpha": 2.0}), "cost", seed=3, max_norm=1.0),
        RunConfig.resolve(Choice("toy", {"start": 2}), "ls", Choice("random", {"length": [0.1, 0.2]})),
    ):
        assert RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_names_differ_with_every_option() -> None:
    configs = [
        RunConfig.resolve("digits", "fairgrad"),
        RunConfig.resolve("digits", Choice("fairgrad", {"alpha": 2.0})),
        RunConfig.resolve("digits", "fairgrad", "cost"),
        RunConfig.resolve("digits", "fairgrad", epochs=9),
        RunConfig.resolve(Choice("digits", {"width": 4}), "fairgrad"),
        RunConfig.resolve("digits", "fairgrad", seed=1),
    ]
    assert len({config.name for config in configs}) == len(configs)
    assert configs[2].name.startswith("digits-fairgrad-cost-seed0-")
    assert configs[0].digest(with_seed=False) == configs[-1].digest(with_seed=False)


def test_single_task() -> None:
    config = RunConfig.resolve("digits", "fairgrad", "cost", seed=2, epochs=4)
    single = config.single_task("image")
    assert (single.label, single.teleport, single.seed, single.training.epochs) == ("single image", None, 2, 4)
    assert single == RunConfig.resolve("digits", "nashmtl", seed=2, epochs=4).single_task("image")


def test_method_names_are_normalised() -> None:
    assert RunConfig.resolve("digits", "Fair-Grad") == RunConfig.resolve("digits", "fairgrad")


@pytest.mark.parametrize(
    ("arguments", "settings", "valid"),
    [
        (("digit",), {}, "ctr, digits, "),
        (("digits", "fairgard"), {}, "fairgrad"),
        (("digits", "ls", "jump"), {}, "cost, memory, none, random"),
        (("digits", Choice("fairgrad", {"alpa": 1.0})), {}, "alpha"),
        ((Choice("digits", {"widht": 1}),), {}, "width"),
        (("digits", "ls", Choice("cost", {"adapter": "lara"})), {}, "dense, loha, lokr, lora, oft"),
        (("digits", "ls", Choice("cost", {"adapter": Choice("lora", {"rang": 1})})), {}, "rank"),
        (("digits",), {"tasks": ["middle"]}, "left, right, image"),
    ],
)
def test_unknown_names_list_the_valid_ones(arguments: tuple, settings: dict, valid: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UnknownNameError, match=rf"unknown .*Valid: .*{valid}"):
        RunConfig.resolve(*arguments, **settings)


@pytest.mark.parametrize(
    ("arguments", "settings", "name"),
    [
        (("digits", Choice("fairgrad", {"alpha": -1.0})), {}, "alpha"),
        ((Choice("digits", {"width": 0}),), {}, "width"),
        (("digits", "ls", "random"), {}, "length"),
        (("digits", "ls", Choice("random", {"length": 0.0})), {}, "length"),
        (("digits", "ls", Choice("cost", {"adapter": Choice("lora", {"rank": 0})})), {}, "rank"),
        (("digits",), {"epochs": 0}, "epochs"),
        (("digits",), {"batch_size": 0}, "batch_size"),
        (("digits",), {"lr": 0.0}, "lr"),
        (("digits",), {"seed": -1}, "seed"),
        (("digits",), {"seed": 2**32}, "seed"),
        (("digits",), {"seed": True}, "seed"),
        (("digits",), {"tasks": "left"}, "tasks"),
        (("digits",), {"ranks": 0}, "ranks"),
        (("digits",), {"tasks": []}, "tasks"),
        (("digits",), {"heads": "none"}, "heads"),
        (("digits",), {"max_norm": 0.0}, "max_norm"),
        (("digits",), {"threads": 0}, "threads"),
        (("digits",), {"device": "gpu"}, "device"),
    ],
)
def test_values_out_of_range_are_named(arguments: tuple, settings: dict, name: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidParameterError, match=f"`{name}` must"):
        RunConfig.resolve(*arguments, **settings)


NUMBERS = [
    (Clip, {}, "max_norm"),
    (StepDecay, {}, "gamma"),
    (Cosine, {}, "final"),
    (Plateau, {}, "min_lr"),
    (Plateau, {}, "threshold"),
    (EarlyStopping, {"metric": "error", "patience": 2}, "min_change"),
]


@pytest.mark.parametrize(("cls", "others", "name"), NUMBERS, ids=[f"{cls.__name__}.{name}" for cls, _, name in NUMBERS])
def test_a_number_of_the_protocol_is_one_however_it_was_written(cls: Any, others: dict[str, Any], name: str) -> None:
    one, other = (cls.from_dict({**others, name: value}) for value in (1, 1.0))
    assert json.dumps(one.as_dict()) == json.dumps(other.as_dict())
    for value in ("1", True, [1.0]):
        with pytest.raises(InvalidParameterError, match=f"`{name}` must be"):
            cls.from_dict({**others, name: value})


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (StepDecay, {"every": 3}),
        (Constant, {"warm_up": "5"}),
        (Clip, {"function": 3}),
        (Best, {"by": ["a"]}),
        (Training, {"batch_size": 2, "epochs": 1, "schedule": "cosine"}),
        (Training, {"batch_size": 2, "epochs": 1, "sharding": None}),
    ],
)
def test_other_types_of_the_protocol_are_refused(cls: Any, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{list(given)[-1]}` must"):
        cls(**given)


@pytest.mark.parametrize(
    ("method", "option"), [("ls", "weights"), ("upgrad", "preference"), ("stch", "reference"), ("famo", "bound")]
)
@pytest.mark.parametrize("wrong", ["1", True, ["1", 2.0, 3.0], [True, False, True], [[1.0]], {"left": 1.0}])
def test_numbers_beside_which_tensors_may_stand_are_numbers(method: str, option: str, wrong: Any) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{option}` must be .*a number.*, got"):
        RunConfig.resolve("digits", Choice(method, {option: wrong}))
    one, other = (
        RunConfig.resolve("digits", Choice(method, {option: given})) for given in ([1, 2, 3], [1.0, 2.0, 3.0])
    )
    assert one.name == other.name


@pytest.mark.parametrize(("wrong", "said"), [("0.5", "a number"), (True, "a number"), ([0.5], "a number")])
def test_options_of_another_type_are_refused(wrong: Any, said: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"`c` must be {said}, got"):
        RunConfig.resolve("toy", Choice("cagrad", {"c": wrong}))
    with pytest.raises(InvalidParameterError, match="`start` must be"):
        RunConfig.resolve(Choice("toy", {"start": 0.5}))


def test_one_protocol_is_one_run() -> None:
    plain = RunConfig.resolve("digits")
    for given in (0, 0.0):
        adam = OptimizerChoice("adam", {**plain.training.optimizer.options, "weight_decay": given})
        assert RunConfig.resolve("digits", optimizer=adam).name == plain.name
    assert len({RunConfig.resolve("digits", max_norm=norm).name for norm in (1, 1.0)}) == 1


def changed(**entries: Any) -> dict[str, Any]:
    return {**RunConfig.resolve("digits", "cagrad", "cost").as_dict(), **entries}


def within(name: str, **entries: Any) -> dict[str, Any]:
    data = changed()
    return {**data, name: {**data[name], **entries}}


def optimized(**entries: Any) -> dict[str, Any]:
    return within("training", optimizer={"name": "adam", **entries})


def part(name: str, option: str, value: Any) -> dict[str, Any]:
    data = changed()
    return within(name, options={**data[name]["options"], option: value})


PLAIN = ["digits", 3, None, True, [], {}]
WRONG: list[tuple[Any, str]] = [
    *((value, "must be a mapping with the entries benchmark, method, ") for value in PLAIN if value != {}),
    ({}, "`benchmark` must be an entry"),
    (changed(foo=1), "unknown entry 'foo'"),
    *(({k: v for k, v in changed().items() if k != name}, f"`{name}`") for name in ("seed", "training", "method")),
    *((changed(tasks=value), "`tasks`") for value in ("abc", None, [], [1], 3)),
    *((changed(ranks=value), "`ranks`") for value in (0, "1", None, 1.5)),
    *((changed(threads=value), "`threads`") for value in (0, "1", None)),
    *((changed(seed=value), "`seed`") for value in (-1, 2**32, "1", 1.0, None)),
    *((changed(device=value), "`device`") for value in (0, None)),
    (changed(heads="all"), "`heads`"),
    *((changed(**{name: value}), f"`{name}`") for name in ("benchmark", "method") for value in PLAIN),
    *((changed(teleport=value), "`teleport`") for value in ("cost", 3, [])),
    *((within(name, options=value), f"`{name}`") for name in ("benchmark", "method") for value in ("a", None, 3)),
    *((changed(training=value), "training: ") for value in PLAIN),
    (within("training", batch_size="2"), "training: `batch_size`"),
    (within("training", speed=2), "training: unknown entry 'speed'"),
    *((within("training", optimizer=value), "training.optimizer: it must be a map") for value in ("adam", [], 3)),
    *((within("training", optimizer={"name": value}), "optimizer") for value in (["adam"], None, "adamm")),
    *((within("training", schedule=value), "`schedule`") for value in ("step", {}, None)),
    (within("training", clip="all"), "training.clip: "),
    (within("training", early_stopping={"metric": "error"}), "training.early_stopping: `patience`"),
    *((optimized(options={"lr": value}), "`lr` ") for value in ("1", True, -1, math.nan, math.inf, [1], None)),
    *((optimized(options={"betas": value}), "`options`") for value in ([], [0.9], [2.0, 0.9])),
    *((optimized(options={"betas": value}), "`betas`") for value in ("0.9", [True, 0.9], ["a", "b"], 1)),
    *((optimized(groups={"*": value}), "training.optimizer: `groups['*']`") for value in (None, 3, "lr", [])),
    *((part("benchmark", "model", value), "`model` must be") for value in (None, True, 3, [], {"name": "overlaycnn"})),
    *((part("teleport", "adapter", value), "`adapter` must be") for value in (None, True, 0.5, [[1]], {"a": 1})),
    *((part("benchmark", "data_seed", value), "data_seed` must be") for value in (False, "0", 0.5, None, [0])),
    *((part("benchmark", "class_balance", value), "class_balance` must be") for value in (True, "1", None, {})),
    *((part("teleport", "conflict_weight", value), "conflict_weight` must be") for value in (False, "0", None)),
    (part("method", "c", {"name": "x", "options": {}}), "must be a number, got {'name': 'x', 'options': {}}"),
    (part("method", "c", 10**400), "c` must be a number, got 1000"),
    (part("benchmark", "class_balance", 10**400), "class_balance` must be a number, got 1000"),
    (part("teleport", "conflict_weight", 10**400), "conflict_weight` must be a number, got 1000"),
    *((optimized(options={name: 10**400}), f"`{name}` ") for name in ("lr", "eps", "weight_decay")),
    (optimized(options={"betas": [10**400, 0.9]}), "`betas` "),
    *((changed(threads=value), "`threads` must be at most 4096") for value in (2**31, 10**400)),
    (changed(ranks=2), "`ranks` must be the number of processes, got 2 with 1"),
    (within("training", early_stopping={"metric": "none", "patience": 1}), "none"),
]


@pytest.mark.parametrize(("data", "named"), WRONG, ids=[f"{named}{k}" for k, (_, named) in enumerate(WRONG)])
def test_a_file_that_is_no_configuration_is_refused_in_words_of_its_own(
    data: Any, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(data))
    assert main(["run", "--config", str(file), "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mtl-bench: `--config` ")
    assert named in said
    for foreign in ("Error", "__init__", "argument", "object is not", "indices", "unhashable", "Choice", "Tensor"):
        assert foreign not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1, column 1, is no JSON"),
        (b'{\n "seed": 0,\n 1}', "line 3, column 2, is no JSON"),
        (b'{"seed": 0', "line 1, column 11, is no JSON"),
        (b"\xff", "byte 0 is no text in UTF-8"),
        (b"[" * 100_000, "entries within entries without end"),
        (b'{"seed": %s}' % (b"1" * 5000), "Exceeds the limit (4300 digits)"),
        (b'{"seed": 0, "seed": 1}', "`seed` must be one entry"),
        (b'{"training": {"epochs": 1, "batch_size": 2, "epochs": 3}}', "`epochs` must be one entry"),
    ],
)
def test_a_file_that_is_no_json_is_refused_at_its_place(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert main(["run", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mtl-bench: `--config` ")
    assert said in error


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed()), encoding="utf-8-sig")
    assert read_config(file) == RunConfig.resolve("digits", "cagrad", "cost")


def test_an_error_about_a_word_that_was_typed_does_not_blame_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed()))
    assert main(["run", "--config", str(file), "--epochs", "no"]) == 2
    assert capsys.readouterr().err.startswith("mtl-bench: `--epochs` must be")
