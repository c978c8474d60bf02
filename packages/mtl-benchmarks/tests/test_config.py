import json

import pytest

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
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
