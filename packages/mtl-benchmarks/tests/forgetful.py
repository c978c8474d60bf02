"""Methods, wrappers, triggers and benchmarks that remember something, with a state and without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import Problem, StepOptions
from mtl_core.extension import Wrapper


def varied(gramian: Tensor, calls: int) -> Tensor:
    """Weights that no other number of calls has."""
    return torch.ones(len(gramian), dtype=gramian.dtype) * (1 + calls % 5)


class Counts:
    """Remembers, and has no state."""

    def __init__(self) -> None:
        self.calls = 0
        self.tuning = {"power": 1.0}

    def weights(self, gramian: Tensor) -> Tensor:
        self.calls += 1
        return varied(gramian, self.calls)


class Says(Counts):
    """Remembers, and says what."""

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.calls = state["calls"]


class Within(Counts):
    """Remembers in an object within, and what it keeps from its first call on is the same ever after."""

    def __init__(self) -> None:
        self.list: list[int] = []
        self.large = torch.zeros(2**20 + 1)
        self.ones: Tensor | None = None

    def weights(self, gramian: Tensor) -> Tensor:
        self.list.append(1)
        self.large += 1
        self.ones = torch.ones(3) if self.ones is None else self.ones
        return varied(gramian, len(self.list))


class Module(nn.Module):
    """Remembers beside what a module saves by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("saved", torch.zeros(()))
        self.register_buffer("unsaved", torch.zeros(()), persistent=False)
        self.calls = 0

    def weights(self, gramian: Tensor) -> Tensor:
        self.saved += 1
        self.unsaved += 1
        self.calls += 1
        return varied(gramian, self.calls)


class SaysAll(Module):
    """Remembers beside what a module saves by itself, and says what."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class Draws:
    """Draws, and has no state but its generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.rand(len(gramian), dtype=gramian.dtype, generator=self.generator)


class Elsewhere(Draws):
    """Draws from a generator that nobody would look for."""

    def __init__(self, generator: torch.Generator) -> None:
        self.source = generator

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.rand(len(gramian), dtype=gramian.dtype, generator=self.source)


class Plain:
    """Remembers nothing."""

    power = 1.0

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=gramian.dtype)


class Shakes(Wrapper):
    """Draws in a wrapper."""

    def __init__(self, method: Any, *, generator: torch.Generator | None = None) -> None:
        super().__init__(method)
        self.source = generator

    def step(self, problem: Problem, batch: Any, optimizer: Any, *, options: StepOptions = StepOptions()) -> Any:
        with torch.no_grad():
            for parameter in problem.shared:
                parameter += 0.01 * torch.randn(parameter.shape, generator=self.source)
        return mtl_core.step(problem, batch, optimizer, self.method)


class ShakesOn(Shakes):
    """Draws in a wrapper, and says where it is."""

    def own_state(self) -> dict[str, Any]:
        return {"source": self.source.get_state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.source.set_state(state["source"])


class EverySecond:
    """A trigger that counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, gramian: Tensor) -> bool:
        self.calls += 1
        return self.calls % 3 == 1
