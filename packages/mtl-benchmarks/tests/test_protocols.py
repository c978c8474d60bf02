"""The papers' protocols beside what the papers and their released code say, in their words and numbers."""

import json
from typing import Any

import pytest

from mtl_benchmarks.protocol.papers import PROTOCOLS, celeba, cityscapes, mt10, nyuv2, qm9
from mtl_benchmarks.protocol.schedules import Place
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidParameterError

DENSE = (
    "Adam lr 1e-4 (no weight decay), StepLR step 100 gamma 0.5, 200 epochs, mean of the test metric over the last 10"
)
REGRESSION = (
    "Adam lr 1e-3, batch 120, 300 epochs; ReduceLROnPlateau(min, factor 0.7, patience 5, min_lr 1e-5) stepped every "
    "epoch on the VALIDATION Delta-m"
)
SPEC: dict[str, tuple[Training, str, dict[str, Any]]] = {
    "NYUv2, Nash lineage": (
        nyuv2(),
        f"{DENSE}, batch 2; max_norm 1.0 on shared params",
        {
            "batch_size": 2,
            "epochs": 200,
            "optimizer.name": "adam",
            "optimizer.options.lr": 1e-4,
            "optimizer.options.weight_decay": 0,
            "schedule.kind": "step",
            "schedule.every": {"count": 100, "unit": "epochs"},
            "schedule.gamma": 0.5,
            "clip": {"max_norm": 1.0, "scope": "shared", "function": None},
            "reported": {"kind": "mean-of-last", "count": 10},
        },
    ),
    "NYUv2, CAGrad family": (nyuv2(family="cagrad"), f"{DENSE}, batch 2; no clipping", {"batch_size": 2, "clip": None}),
    "CityScapes, Nash lineage": (
        cityscapes(),
        f"{DENSE}, batch 8; max_norm 1.0 on shared params",
        {
            "batch_size": 8,
            "epochs": 200,
            "optimizer.name": "adam",
            "optimizer.options.lr": 1e-4,
            "schedule.every": {"count": 100, "unit": "epochs"},
            "schedule.gamma": 0.5,
            "clip.max_norm": 1.0,
            "reported": {"kind": "mean-of-last", "count": 10},
        },
    ),
    "CityScapes, CAGrad family": (
        cityscapes(family="cagrad"),
        f"{DENSE}, batch 8; no clipping",
        {"batch_size": 8, "clip": None},
    ),
    "CelebA": (
        celeba(),
        "Adam lr 3e-4, no scheduler, 15 epochs, batch 256; best epoch = highest mean val F1, test F1 of it reported",
        {
            "batch_size": 256,
            "epochs": 15,
            "optimizer.name": "adam",
            "optimizer.options.lr": 3e-4,
            "schedule": {"kind": "constant", "warm_up": None},
            "reported.kind": "best",
            "reported.by": "f1_*",
        },
    ),
    "QM9": (
        qm9(),
        f"{REGRESSION}; test at the epoch with the lowest validation Delta-m (ties: later)",
        {
            "batch_size": 120,
            "epochs": 300,
            "optimizer.name": "adam",
            "optimizer.options.lr": 1e-3,
            "schedule.kind": "plateau",
            "schedule.watched": "delta_m",
            "schedule.factor": 0.7,
            "schedule.patience": 5,
            "schedule.min_lr": 1e-5,
            "schedule.threshold": 1e-4,
            "evaluate_every": {"count": 1, "unit": "epochs"},
            "reported": {"kind": "best", "by": "delta_m", "ties": "later"},
        },
    ),
    "MT10": (
        mt10(),
        "batch 1280, Adam lr 3e-4 betas (0.9, 0.999), 2M steps per env, evaluation every 30,000, best mean success",
        {
            "batch_size": 1280,
            "epochs": None,
            "steps": 2_000_000,
            "optimizer.name": "adam",
            "optimizer.options.lr": 3e-4,
            "optimizer.options.betas": [0.9, 0.999],
            "clip": None,
            "evaluate_every": {"count": 30_000, "unit": "steps"},
            "reported.by": "success_*",
        },
    ),
}


def look_up(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data[key]
    return data


@pytest.mark.parametrize("name", SPEC)
def test_protocol_beside_its_source(name: str) -> None:
    training, words, expected = SPEC[name]
    print(f"{name}\n  source: {words}\n  here:   {training.in_words()}")
    resolved = training.altered().as_dict()
    assert {path: look_up(resolved, path) for path in expected} == expected


@pytest.mark.parametrize("name", SPEC)
def test_what_no_source_mentions_is_off(name: str) -> None:
    training = SPEC[name][0]
    off = (
        training.precision,
        training.accumulate,
        training.early_stopping,
        training.sharding,
        training.optimizer.groups,
    )
    assert off == ("float32", 1, None, "none", {})


@pytest.mark.parametrize("name", PROTOCOLS)
def test_round_trip(name: str) -> None:
    training = PROTOCOLS[name]().altered()
    assert Training.from_dict(json.loads(json.dumps(training.as_dict()))) == training


def test_learning_rates_of_nyuv2_over_its_398_batches() -> None:
    def rate(epoch: int) -> float:
        return nyuv2().schedule.rate(1e-4, Place(epoch * 398, 200 * 398, 398))

    assert (rate(0), rate(99), rate(100), rate(199)) == (1e-4, 1e-4, 5e-5, 5e-5)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="`family` must"):
        nyuv2(family="mtan")  # type: ignore[arg-type]
