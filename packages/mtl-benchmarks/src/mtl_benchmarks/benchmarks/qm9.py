"""QM9: eleven properties of real molecules from one message-passing network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batching.batches import Batches
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.grouped_molecules import GroupedMolecules
from mtl_benchmarks.models.mpnn import MPNN
from mtl_benchmarks.molecules import TARGETS, Molecules, collate, load_qm9
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidParameterError, Problem
from mtl_core.checks import one_of, positive_int

__all__ = ["QM9", "MoleculeSample"]

_PROPERTIES: tuple[tuple[str, str, str, float], ...] = (
    ("mu", "mu", "D", 1.0),
    ("alpha", "alpha", "bohr³", 1.0),
    ("homo", "homo", "meV", 1000.0),
    ("lumo", "lumo", "meV", 1000.0),
    ("r2", "r2", "bohr²", 1.0),
    ("zpve", "zpve", "meV", 1000.0),
    ("u0", "u0_atom", "meV", 1000.0),
    ("u", "u298_atom", "meV", 1000.0),
    ("h", "h298_atom", "meV", 1000.0),
    ("g", "g298_atom", "meV", 1000.0),
    ("cv", "cv", "cal/(mol K)", 1.0),
)
"""Task, column of the targets, unit of the reported error, factor into it: the papers' eleven, in their order."""

_PREPARED = 20_000
"""Up to so many molecules, features of pairs are made once and kept: 17 kB each."""

_EVALUATED = 250
"""Molecules per batch of an evaluation."""


@cache
def _loaded(root: str | None) -> Molecules:
    return load_qm9(root)


@dataclass(frozen=True)
class MoleculeSample:
    """Some molecules and what is to be predicted of them.

    Attributes:
        molecules: the graphs.
        targets: ``[b, 11]`` float32, normalised.
    """

    molecules: GroupedMolecules
    targets: Tensor

    def to(self, device: str) -> MoleculeSample:
        """The same on another device."""
        return MoleculeSample(self.molecules.to(device), self.targets.to(device))


class _Split:
    """One part of the data, ready to be made into batches."""

    def __init__(self, molecules: Molecules, targets: Tensor) -> None:
        self._molecules, self.targets = molecules, targets.float()
        self._all = collate(molecules, self.targets) if len(molecules) <= _PREPARED else None

    def __len__(self) -> int:
        return len(self._molecules)

    def sample(self, rows: Tensor) -> MoleculeSample:
        """The molecules ``rows``."""
        targets = self.targets[rows]
        if self._all is None:
            batch = collate(self._molecules.take(rows), targets)
            return MoleculeSample(GroupedMolecules.from_padded(batch.nodes, batch.edges, batch.sizes), targets)
        sizes = self._all.sizes[rows]
        return MoleculeSample(
            GroupedMolecules.from_padded(self._all.nodes[rows], self._all.edges[rows], sizes), targets
        )


class QM9(Benchmark):
    """Eleven properties of small organic molecules, regressed jointly.

    The data are the real QM9: 130,831 molecules, from the package ``qm9pack`` (extra ``[qm9]``), or from PyG's raw
    files under ``root``. Every pair of atoms is an edge with its bond type and distance; the loss of a task is the mean
    squared error of the normalised property, the metric its mean absolute error in the papers' units. Scales differ
    between tasks and several depend on each other, so that gradients are imbalanced and in conflict.

    Defaults are for two CPU cores: a subset, a narrower network, ten epochs. The papers' protocol is
    ``QM9(n_train=110_831, n_validation=10_000, n_test=10_000, width=64, hidden=128, statistics="all")`` with
    ``mtl_benchmarks.protocol.papers.QM9``; the split is that of ``data_seed`` and not the very one of any paper, which
    changes with their seed.

    Args:
        root: folder of PyG's raw files; None: the installed package.
        n_train: molecules for training.
        n_validation: molecules for choosing; 0: no such split.
        n_test: molecules for reporting.
        width: features per atom; 64 in the papers.
        hidden: units of the network that turns a pair's features into a matrix; 128 in the papers.
        statistics: by whose mean and standard deviation properties are normalised: the training molecules'
            (``"train"``) or, as in the released code, all molecules' (``"all"``), those for testing included.
        data_seed: seed of the split.

    References:
        Ramakrishnan et al., *Quantum chemistry structures and properties of 134 kilo molecules*, Scientific Data 2014;
        protocol: Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, section 6.
    """

    name: ClassVar[str] = "qm9"
    tasks: ClassVar[tuple[str, ...]] = tuple(task for task, *_ in _PROPERTIES)
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(f"error_{task}", task, unit, higher_is_better=False) for task, _, unit, _ in _PROPERTIES
    )

    def __init__(
        self,
        *,
        root: str | None = None,
        n_train: int = 3000,
        n_validation: int = 500,
        n_test: int = 1500,
        width: int = 32,
        hidden: int = 32,
        statistics: Literal["train", "all"] = "train",
        data_seed: int = 0,
    ) -> None:
        self.root = None if root is None else str(Path(root).expanduser())
        self.n_train = positive_int("n_train", n_train)
        self.n_validation = positive_int("n_validation", n_validation) if n_validation else 0
        self.n_test = positive_int("n_test", n_test)
        self.width = positive_int("width", width)
        self.hidden = positive_int("hidden", hidden)
        self.statistics = one_of("statistics", statistics, ("train", "all"))
        self.data_seed = data_seed
        self._splits: dict[str, _Split] = {}
        self._scale = torch.ones(len(_PROPERTIES), dtype=torch.float64)

    @property
    def training(self) -> Training:
        """Ten epochs of Adam with learning rate 2e-3."""
        return Training(epochs=10, batch_size=60, optimizer=OptimizerChoice("adam", {"lr": 2e-3}))

    @property
    def splits(self) -> tuple[str, ...]:
        """Validation, if there are molecules for it, and test."""
        return ("validation", "test") if self.n_validation else ("test",)

    def data(self, split: Literal["train", "validation", "test"]) -> _Split:
        """The molecules of a split; the same at every call.

        Raises:
            MissingExtraError: neither a ``root`` nor the package.
            InvalidInputError: the files cannot be read.
            InvalidParameterError: the splits are larger than the data.
        """
        if not self._splits:
            self._draw(_loaded(self.root))
        return self._splits[split]

    def _draw(self, molecules: Molecules) -> None:
        sizes = {"test": self.n_test, "validation": self.n_validation, "train": self.n_train}
        wanted = sum(sizes.values())
        if wanted > len(molecules):
            raise InvalidParameterError(
                f"`n_train` + `n_validation` + `n_test` must be at most {len(molecules)}, the molecules there are, got "
                f"{self.n_train} + {self.n_validation} + {self.n_test} = {wanted}."
            )
        order = torch.randperm(len(molecules), generator=torch.Generator().manual_seed(self.data_seed))
        names = [name for name, _ in TARGETS]
        targets = molecules.targets[:, [names.index(column) for _, column, _, _ in _PROPERTIES]]
        rows = dict(zip(sizes, order.split([*sizes.values(), len(order) - wanted]), strict=False))
        counted = targets if self.statistics == "all" else targets[rows["train"]]
        mean, self._scale = counted.mean(0), counted.std(0)
        if not bool((self._scale > 0).all()):
            raise InvalidParameterError(
                f"`n_train` must be molecules that differ in each property, got {len(counted)} that are alike in "
                f"{self.tasks[int((self._scale > 0).int().argmin())]}. Take more."
            )
        for split, chosen in rows.items():
            self._splits[split] = _Split(molecules.take(chosen), (targets[chosen] - mean) / self._scale)

    def build(self) -> nn.Module:
        """A fresh :class:`~mtl_benchmarks.models.mpnn.MPNN`."""
        return MPNN(self.tasks, width=self.width, hidden=self.hidden)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean squared error of each normalised property; everything but the linear outputs is shared."""
        assert isinstance(model, MPNN)
        wanted = tuple(tasks)
        columns = {task: self.tasks.index(task) for task in wanted}

        def losses(network: nn.Module, batch: MoleculeSample) -> tuple[dict[str, Tensor], Tensor]:
            assert isinstance(network, MPNN)
            features = network.features(batch.molecules)
            return {
                task: functional.mse_loss(network.heads[task](features)[:, 0], batch.targets[:, column])
                for task, column in columns.items()
            }, features

        return Problem(model, losses, shared=model.shared_parameters(), tasks=wanted)

    def batches(self, *, batch_size: int, seed: int, device: str) -> Batches[MoleculeSample]:
        """Shuffled training molecules."""
        data = self.data("train")
        return Batches(
            lambda rows, generator: data.sample(rows).to(device), len(data), batch_size=batch_size, seed=seed
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, device: str) -> Evaluation:
        """Mean absolute error of each property over the whole of each split, in its unit."""
        was_training = model.training
        model.eval()
        found = {}
        for split in self.splits:
            data = self.data(split)  # type: ignore[arg-type]
            total = torch.zeros(len(self.tasks), dtype=torch.float64)
            for rows in torch.arange(len(data)).split(_EVALUATED):
                sample = data.sample(rows).to(device)
                output: dict[str, Tensor] = model(sample.molecules)
                error = torch.stack([output[task] for task in self.tasks], dim=1) - sample.targets
                total += error.abs().double().sum(0).cpu()
            mean = total / len(data) * self._scale * torch.tensor([factor for *_, factor in _PROPERTIES])
            found[split] = {metric.name: value for metric, value in zip(self.metrics, mean.tolist(), strict=True)}
        model.train(was_training)
        return found
