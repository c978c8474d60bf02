"""A benchmark of the tests, small and in float64, importable as a user's own: ``sample_benchmarks:Lines``."""

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy
import torch
from torch import Tensor, nn

from mtl_benchmarks import Benchmark, Metric, OptimizerChoice, Training
from mtl_benchmarks.batching.batches import Batches, BatchSource, Part
from mtl_benchmarks.batching.loading import LoadedBatches
from mtl_benchmarks.batching.tally import Tally
from mtl_benchmarks.benchmark import Evaluation
from mtl_core import InvalidInputError, Problem

TASKS = ("left", "right", "ridge")


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs [n, 4] and targets [n, 3], of which two pull against each other."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = x.sum(1)
    return x, torch.stack([z.sin(), -2.0 * z.sin() + 0.3, z.square() / 4], 1)


class Points(torch.utils.data.Dataset[Any]):
    """Samples one by one; each draws from every global generator if asked to."""

    def __init__(self, n: int, *, draws: bool, seconds: float = 0.0) -> None:
        self.x, self.y = points(n, 0)
        self.draws = draws
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        x = self.x[k]
        if self.seconds:
            time.sleep(self.seconds)
        if self.draws:
            drawn = random.random() + numpy.random.rand() + float(torch.rand(()))  # noqa: NPY002 - as data sets do
            x = x + 0.01 * drawn
        return x, self.y[k]


def jitter(sample: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An augmentation."""
    x, y = sample
    return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype), y


class Lines(Benchmark):
    """Three regressions on one small trunk.

    Args:
        n_train: samples for training.
        n_test: samples for testing.
        loaded: whether samples are read one by one.
        norm: whether the trunk has batch normalisation.
        dropout: in the trunk.
        seconds: that reading a sample takes.
        fault: what goes wrong on the last process, and where: ``"data"``, ``"loss"``, ``"evaluation"`` or ``"killed"``.
    """

    name: ClassVar[str] = "lines"
    tasks: ClassVar[tuple[str, ...]] = TASKS
    metrics: ClassVar[tuple[Metric, ...]] = tuple(Metric(f"error_{t}", t, "", higher_is_better=False) for t in TASKS)

    def __init__(
        self,
        *,
        n_train: int = 22,
        n_test: int = 17,
        loaded: bool = False,
        norm: bool = False,
        dropout: float = 0.0,
        seconds: float = 0.0,
        fault: str = "",
    ) -> None:
        self.n_train, self.n_test = n_train, n_test
        self.loaded, self.norm, self.dropout, self.seconds = loaded, norm, dropout, seconds
        self.fault = fault if int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1 else ""
        self.calls = 0

    @property
    def training(self) -> Training:
        """Three epochs of batches of 8; the last one has 6 samples."""
        return Training(epochs=3, batch_size=8, optimizer=OptimizerChoice("adam", {"lr": 0.05}))

    @property
    def splits(self) -> tuple[str, ...]:
        """A validation set too."""
        return ("validation", "test")

    def build(self) -> nn.Module:
        """In float64."""
        layers: list[nn.Module] = [nn.Linear(4, 6), nn.Tanh(), nn.Dropout(self.dropout)]
        if self.norm:
            layers.insert(1, nn.BatchNorm1d(6))
        return nn.ModuleDict({"trunk": nn.Sequential(*layers), **{t: nn.Linear(6, 1) for t in TASKS}}).double()

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean squared errors, each with a constant so that none is zero."""

        def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            if self.fault:  # not otherwise: what changes in the steps would be in no checkpoint
                self.calls += 1
            if self.fault == "loss" and self.calls == 4:
                raise InvalidInputError("the fourth loss must fail, got it.")
            if self.fault == "killed" and self.calls == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            x, y = batch
            z = model.get_submodule("trunk")(x)
            return {t: 0.1 + (model.get_submodule(t)(z)[:, 0] - y[:, TASKS.index(t)]).square().mean() for t in tasks}

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=tasks)

    def batches(self, *, batch_size: int, seed: int, device: str) -> BatchSource[Any]:
        """In memory, or read one by one."""
        if self.loaded:
            data = Points(self.n_train, draws=True, seconds=self.seconds)
            return LoadedBatches(data, batch_size=batch_size, seed=seed, device=device, augment=jitter)
        x, y = points(self.n_train, 0)

        def fetch(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            if self.fault == "data":
                raise InvalidInputError("the data must fail, got it.")
            return x[rows], y[rows]

        return Batches(fetch, self.n_train, batch_size=batch_size, seed=seed)

    @torch.no_grad()
    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """Sums of squared errors."""
        if self.fault == "evaluation":
            raise InvalidInputError("the evaluation must fail, got it.")
        model.eval()
        found = {}
        for split, seed in (("validation", 1), ("test", 2)):
            x, y = points(self.n_test, seed)
            begin, end = part.bounds(len(x))
            z = model.get_submodule("trunk")(x[begin:end])
            squared = {
                t: (model.get_submodule(t)(z)[:, 0] - y[begin:end, k]).square().sum() for k, t in enumerate(TASKS)
            }
            found[split] = {**squared, "n": torch.tensor(float(end - begin), dtype=torch.float64)}
        model.train()
        return found  # type: ignore[return-value]

    def metrics_from(self, tally: Tally) -> Evaluation:
        """Root mean squared errors."""
        rows = cast("Mapping[str, Mapping[str, Tensor]]", tally)
        return {s: {f"error_{t}": float((row[t] / row["n"]).sqrt()) for t in TASKS} for s, row in rows.items()}
