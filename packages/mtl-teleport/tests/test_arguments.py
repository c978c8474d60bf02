"""What a teleporting method is given is refused where it is given, with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_core import InvalidInputError, InvalidParameterError, Problem
from mtl_teleport import COST, DominatedConflict, LoRA, RandomTeleport, TeleportReport

Make = Callable[..., tuple[Problem, Any]]


def _generator() -> Iterator[int]:
    yield 0


class Empty:
    def __iter__(self) -> Iterator[int]:
        return iter(())


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"method": 3}, r"`method` must have step\(\).*got int"),
    ({"method": DominatedConflict}, r"`method` must be an instance.*Give DominatedConflict\(\)"),
    ({"trigger": None}, r"`trigger` must be a Trigger or a function.*got NoneType.*DominatedConflict\(\)"),
    ({"trigger": DominatedConflict}, r"`trigger` must be an instance.*Give DominatedConflict\(\)"),
    ({"trigger": True}, "`trigger` must be a Trigger or a function"),
    ({"start_after": 1.5}, "`start_after` must be a whole number"),
    ({"start_after": -1}, "`start_after` must be a whole number"),
    ({"max_per_epoch": 0}, "`max_per_epoch` must be a whole number"),
    ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a whole number"),
    ({"max_drift": 0.0}, "`max_drift` must be positive"),
    ({"mode": "test"}, "`mode` must be one of"),
    ({"htr": "half"}, "`htr` must be one of"),
    ({"own_step": "no"}, "`own_step` must be one of"),
    ({"seed": -1}, "`seed` must be a whole number from 0"),
    ({"seed": 2**32}, "`seed` must be a whole number from 0 to 4294967295, got 4294967296"),
    ({"seed": 1.0}, "`seed` must be a whole number"),
    ({"seed": None}, "`seed` must be a whole number"),
    ({"seed": True}, "`seed` must be a whole number"),
]

ONLY_COST: list[tuple[dict[str, Any], str]] = [
    ({"adapter": None}, r"`adapter` must have attach.*got NoneType.*LoRA\(\)"),
    ({"adapter": "lora"}, r"`adapter` must have attach.*got str.*PeftAdapter\(config\)"),
    ({"adapter": LoRA}, r"`adapter` must be an instance.*Give LoRA\(\)"),
    ({"probe_batches": _generator()}, "iterable again at every teleport, got generator.*list of batches or a loader"),
    ({"probe_batches": iter([1])}, "iterable again at every teleport, got list_iterator"),
    ({"probe_batches": map(abs, [1])}, "iterable again at every teleport, got map"),
    ({"probe_batches": []}, "`probe_batches` must hold at least one batch, got none"),
    ({"probe_batches": 3}, "`probe_batches` must be a collection of batches, got int"),
    ({"probe_batches": torch.zeros(2)}, "`probe_batches` must be a collection of batches, got Tensor"),
    ({"probe_batches": {"x": 1}}, "`probe_batches` must be a collection of batches, got dict"),
    ({"max_probe_batches": 0}, "`max_probe_batches` must be a whole number"),
    ({"reference": "epoch"}, "`reference` must be one of"),
    ({"rounds": 0}, "`rounds` must be a whole number"),
    ({"rounds": 2.0}, "`rounds` must be a whole number"),
    ({"max_steps": 0}, "`max_steps` must be a whole number"),
    ({"lr": 0.0}, "`lr` must be positive"),
    ({"search": "newton"}, "`search` must be one of"),
    ({"sharpness": "max"}, "`sharpness` must be one of"),
    ({"probes": 0}, "`probes` must be a whole number"),
    ({"radius": 0.1}, "`radius` must be None for sharpness='exact'"),
    ({"radius": -1.0, "sharpness": "ascent"}, "`radius` must be positive"),
    ({"probe_norm": "nonsense"}, "`probe_norm` must be one of 'global', 'tensor'"),
    ({"probe_noise": "nonsense"}, "`probe_noise` must be one of 'shared', 'all'"),
    ({"probe_maximum": "nonsense"}, "`probe_maximum` must be one of 'mean', 'task'"),
    ({"probe_gradient": "nonsense"}, "`probe_gradient` must be one of 'both', 'unperturbed'"),
    ({"balance": "nonsense"}, "`balance` must be one of"),
    ({"units": "nonsense"}, "`units` must be one of"),
    ({"drift_weight": -1.0}, "`drift_weight` must not be negative"),
    ({"gain_weight": -1.0}, "`gain_weight` must not be negative"),
    ({"conflict_weight": -1.0}, "`conflict_weight` must not be negative"),
    ({"aim": 0.0}, "`aim` must be positive"),
    ({"backtracks": 2.5}, "`backtracks` must be a whole number"),
    ({"backtracks": -1}, "`backtracks` must be a whole number"),
]

ONLY_RANDOM: list[tuple[dict[str, Any], str]] = [
    ({"length": 0.0}, "`length` must be positive"),
    ({"length": "0.5"}, "`length` must be a number or a sequence"),
    ({"length": []}, "`length` must be a length or a sequence"),
    ({"length": (1.0, "x")}, "`length` must be a number"),
    ({"length": _generator()}, "`length` must be a number"),
]


def _make(kind: str, settings: dict[str, Any]) -> object:
    rest = dict(settings)
    method = rest.pop("method", None)
    if kind == "RandomTeleport":
        return RandomTeleport(method, **{"length": 1.0, **rest})
    return COST(method, **rest)


CASES = [
    *(("COST", *case) for case in (*BOTH, *ONLY_COST)),
    *(("RandomTeleport", *case) for case in (*BOTH, *ONLY_RANDOM)),
]


@pytest.mark.parametrize(("kind", "settings", "says"), CASES, ids=[f"{k}-{next(iter(s))}" for k, s, _ in CASES])
def test_it_is_refused_at_once(kind: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises((InvalidParameterError, InvalidInputError), match=says):
        _make(kind, settings)


@pytest.mark.parametrize("batches", [[1], (1, 2), range(3), torch.utils.data.DataLoader([torch.zeros(1)]), Empty()])
def test_what_can_be_iterated_again_is_taken(batches: Any) -> None:
    assert COST(probe_batches=batches).probe_batches is batches


class TestAFunctionIsATrigger:
    @pytest.mark.parametrize("make", [lambda t: COST(trigger=t, max_per_epoch=None)])
    def test_it_is_asked_and_named(self, conflicting: Make, make: Callable[[Any], Any]) -> None:
        seen: list[tuple[int, ...]] = []

        def always(gramian: Tensor) -> bool:
            seen.append(tuple(gramian.shape))
            return True

        problem, batch = conflicting()
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
        (report,) = mtl_core.step(problem, batch, optimizer, make(always)).events
        assert isinstance(report, TeleportReport)
        assert report.trigger == "always"
        assert seen[0] == (2, 2)

    def test_an_object_with_a_call_has_its_class_as_name(self) -> None:
        class Mine:
            def __call__(self, gramian: Tensor) -> int:
                return 1

        cost = RandomTeleport(length=1.0, trigger=Mine())
        assert cost.trigger.name == "Mine"
        assert cost.trigger(torch.eye(2)) is True

    def test_it_combines(self) -> None:
        cost = COST(trigger=lambda gramian: True)
        assert (cost.trigger & DominatedConflict()).name == "(<lambda> & DominatedConflict)"
