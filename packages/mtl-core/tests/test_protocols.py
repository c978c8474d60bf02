"""What a method offers, asked by the optional protocols."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import protocols
from mtl_core.protocols import CountsEpochs, Draws, LossWeighting, Remembers, TakesLosses, is_loss_weighting, offers


class OnClass:
    takes_losses = True

    def start_epoch(self, epoch: int) -> None: ...


class OnInstance:
    def __init__(self) -> None:
        self.takes_losses = True
        self.start_epoch = print


class SetToNone:
    takes_losses = None
    start_epoch = None


class Forwards:
    """Answers for whatever it holds."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["held"], name)


class ModuleWith(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.takes_losses = True

    def start_epoch(self, epoch: int) -> None: ...


class ForwardingModule(nn.Module):
    def __init__(self, held: object) -> None:
        super().__init__()
        self.__dict__["held"] = held

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["held"], name)


class Slotted:
    __slots__ = ("takes_losses",)


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


class TotalModule(nn.Module):
    needs = "losses"

    def forward(self, losses: Tensor) -> Tensor:
        return losses.sum()


class OwnsStep(Total):
    def step(self, problem: Any, batch: Any, optimizer: Any, *, options: Any = None) -> Any: ...


def function(jacobian: Tensor) -> Tensor:
    return jacobian.sum(0)


CASES: dict[str, tuple[Any, bool]] = {
    "class attribute": (OnClass(), True),
    "instance attribute": (OnInstance(), True),
    "none": (SetToNone(), False),
    "nothing": (object(), False),
    "function": (function, False),
    "module without": (nn.Linear(1, 1), False),
    "module with": (ModuleWith(), True),
    "forwards to one with": (Forwards(OnClass()), True),
    "forwards to one without": (Forwards(object()), False),
    "module that forwards": (ForwardingModule(OnInstance()), True),
    "module that forwards to nothing": (ForwardingModule(object()), False),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("protocol", [TakesLosses, CountsEpochs])
def test_offers(name: str, protocol: Any) -> None:
    method, expected = CASES[name]
    assert offers(method, protocol) is expected


def test_a_slot_counts_once_it_is_filled() -> None:
    method = Slotted()
    method.takes_losses = True
    assert offers(method, TakesLosses)
    assert not offers(method, CountsEpochs)


def test_all_members_are_asked_for() -> None:
    class Half:
        def state_dict(self) -> dict[str, Any]:
            return {}

    assert not offers(Half(), Remembers)
    assert offers(nn.Linear(1, 1), Remembers)


def test_a_generator_may_be_none_now_and_there_later() -> None:
    class Lazy:
        generator: torch.Generator | None = None

    method = Lazy()
    assert not offers(method, Draws)
    method.generator = torch.Generator()
    assert offers(method, Draws)


PROTOCOLS = [
    getattr(protocols, name)
    for name in protocols.__all__
    if getattr(getattr(protocols, name), "_is_runtime_protocol", False) and name not in ("Aggregator", "LossWeighting")
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_as_isinstance(name: str, protocol: Any) -> None:
    if sys.version_info >= (3, 12) and "forwards" in name:
        pytest.skip("isinstance looks statically from Python 3.12 on, and does not see what __getattr__ forwards")
    method, _ = CASES[name]
    assert offers(method, protocol) == isinstance(method, protocol)


def test_protocols_are_found() -> None:
    assert len(PROTOCOLS) >= 13  # so that the comparison above compares something


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Total(), True),
        (TotalModule(), True),
        (Forwards(Total()), True),
        (OwnsStep(), False),  # a method of its own, whatever it says it needs
        (function, False),
        (OnClass(), False),
        (nn.Linear(1, 1), False),
    ],
)
def test_is_loss_weighting(method: Any, expected: bool) -> None:
    assert is_loss_weighting(method) is expected


def test_needs_must_be_losses() -> None:
    method = Total()
    method.needs = "jacobian"
    assert isinstance(method, LossWeighting)  # structure alone does not tell
    assert not is_loss_weighting(method)
