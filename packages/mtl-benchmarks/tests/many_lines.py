"""Benchmarks for tests: as many lines through points as there are tasks, trained in no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn

from mtl_benchmarks import Benchmark, Metric, OptimizerChoice, Training
from mtl_benchmarks.batching.batches import Part, Repeated, Share
from mtl_benchmarks.published import PublishedTable
from mtl_core import Problem


class Lines(nn.Module):
    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(n_tasks))

    def forward(self, rows: Tensor) -> Tensor:
        features = self.trunk(rows).tanh()
        return torch.cat([head(features) for head in self.heads], 1)


class Three(Benchmark):
    """Three lines."""

    name = "three"
    tasks: ClassVar[tuple[str, ...]] = ("first", "second", "third")
    metrics: ClassVar[tuple[Metric, ...]] = tuple(Metric(f"error_{t}", t, "", higher_is_better=False) for t in tasks)

    def __init__(self, *, noise: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.rand(16, 2, generator=generator)
        slopes = torch.randn(2, len(self.tasks), generator=generator)
        self.targets = self.rows @ slopes + noise * torch.randn(16, len(self.tasks), generator=generator)

    @property
    def training(self) -> Training:
        return Training(epochs=2, batch_size=16, optimizer=OptimizerChoice("adam", {"lr": 0.02}))

    def build(self) -> nn.Module:
        return Lines(len(self.tasks))

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        places = [self.tasks.index(task) for task in tasks]

        def losses(model: nn.Module, batch: Any) -> Tensor:
            return (model(self.rows) - self.targets).square().mean(0)[places]

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=tuple(tasks))

    def batches(self, *, batch_size: int, seed: int, device: str) -> Repeated[None]:
        return Repeated(None, 2)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, device: str) -> dict[str, dict[str, float]]:
        errors = (model(self.rows) - self.targets).square().mean(0).sqrt().tolist()
        return {"test": {f"error_{task}": error for task, error in zip(self.tasks, errors, strict=True)}}


class Noisy(Three):
    """Three lines through points that are moved at every look, by the global generator."""

    name = "noisy"

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        def losses(model: nn.Module, batch: Any) -> Tensor:
            moved = self.rows + 0.1 * torch.randn(self.rows.shape)
            return (model(moved) - self.targets).square().mean(0)

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=tuple(tasks))


class Absent(Three):
    """Three lines that have no loss in some of the steps.

    Args:
        steps: their numbers within a run.
    """

    def __init__(self, *, steps: Sequence[int] = ()) -> None:
        super().__init__()
        self.steps = tuple(steps)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        def losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
            found = (model(self.rows) - self.targets).square().mean(0)
            return {} if int(batch) in self.steps else dict(zip(self.tasks, found, strict=True))

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=tuple(tasks))

    def batches(self, *, batch_size: int, seed: int, device: str) -> Any:
        return Numbered()


class Numbered:
    """Batches that are their step's number."""

    def __len__(self) -> int:
        return 2

    def batch(self, epoch: int, index: int) -> Tensor:
        return torch.tensor(2 * epoch + index)

    def part(self, epoch: int, index: int, part: Part) -> Share[Tensor]:
        return Share(self.batch(epoch, index), 1.0)


class Forty(Three):
    """Forty lines."""

    name = "forty"
    tasks = tuple(f"attribute {k:02d}" for k in range(40))
    metrics = tuple(Metric(f"error_{t}", t, "", higher_is_better=False) for t in tasks)


class Streets(Three):
    """Two lines whose errors go by the names of a published table."""

    name = "streets"
    tasks = ("semantic", "depth")
    metrics = (
        Metric("mIoU", "semantic", "%", higher_is_better=True),
        Metric("abs_error", "depth", "", higher_is_better=False),
    )
    published = (PublishedTable("COST", "Table 1", "CityScapes", {"mIoU": "mIoU", "abs_error": "AbsErr"}),)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, device: str) -> dict[str, dict[str, float]]:
        first, second = (model(self.rows) - self.targets).square().mean(0).sqrt().tolist()
        return {"test": {"mIoU": 100 / (1 + first), "abs_error": second}}


class Given(Three):
    """Three lines whose evaluation a test sets.

    Args:
        gives: how its name among ``GIVEN`` is spelt.
    """

    name = "given"

    def __init__(self, *, gives: str = "floats") -> None:
        super().__init__()
        self.gives = gives

    @property
    def splits(self) -> tuple[str, ...]:
        return ("validation", "test")

    def evaluate(self, model: nn.Module, *, device: str) -> Any:
        values = super().evaluate(model, device=device)["test"]
        return GIVEN[self.gives]({"validation": values, "test": dict(values)})


def each(change: Callable[[float], Any]) -> Callable[[Any], Any]:
    return lambda found: {split: {k: change(v) for k, v in row.items()} for split, row in found.items()}


def without(found: Any, split: str, name: str) -> Any:
    return {s: {k: v for k, v in row.items() if (s, k) != (split, name)} for s, row in found.items()}


GIVEN: dict[str, Callable[[Any], Any]] = {
    "floats": lambda found: found,
    "tensors": each(lambda value: torch.tensor(value, dtype=torch.float64)),
    "numpy": each(numpy.float64),
    "arrays": each(numpy.array),
    "more": lambda found: {**found, "test": {**found["test"], "beside": numpy.int64(3)}},
    "missing": lambda found: without(found, "test", "error_second"),
    "missing in validation": lambda found: without(found, "validation", "error_first"),
    "no test": lambda found: {"validation": found["validation"]},
    "none": each(lambda value: None),
    "texts": each(str),
    "vectors": each(lambda value: torch.tensor([value])),
    "flat": lambda found: found["test"],
    "nothing": lambda found: None,
}


class Twice(Three):
    """Three lines with one name for all errors."""

    name = "twice"
    metrics = tuple(Metric("error", t, "", higher_is_better=False) for t in Three.tasks)


class Untested(Three):
    """Three lines and no test set."""

    name = "untested"
    splits = ("validation",)


class Fading(Three):
    """A benchmark whose losses depend on how often they were asked for."""

    name = "fading"

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def problem(self, model: nn.Module, *, tasks: Any) -> Problem:
        def fading(model: nn.Module, batch: Any) -> Tensor:
            self.asked += 1
            return (model(self.rows) - self.targets).square().mean(0) / self.asked

        return Problem(model, fading, shared=model.get_submodule("trunk"), tasks=tuple(tasks))


class FadingOn(Fading):
    """The same with a state."""

    def state_dict(self) -> dict[str, int]:
        return {"asked": self.asked}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.asked = state["asked"]


class Eleven(Three):
    """Eleven lines, with names as long as those of molecules' properties."""

    name = "eleven"
    tasks: ClassVar[tuple[str, ...]] = tuple(f"energy_at_{k}" for k in range(11))
    metrics: ClassVar[tuple[Metric, ...]] = tuple(Metric(f"error_{t}", t, "meV", higher_is_better=False) for t in tasks)
