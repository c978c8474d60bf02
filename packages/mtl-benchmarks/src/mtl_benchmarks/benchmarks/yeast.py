"""Yeast: fourteen classes of functions of real genes, each a yes or no."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batching.batches import Batches, Part, resident
from mtl_benchmarks.batching.splits import drawn_splits
from mtl_benchmarks.batching.tally import Rows, Tally, tallied
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.benchmarks.ctr_scores import auc
from mtl_benchmarks.benchmarks.yeast_table import N_CLASSES, N_FEATURES, read_yeast, yeast_file
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.hard_sharing import HardSharing
from mtl_benchmarks.models.vector_network import VECTOR_PARTS, vector_network
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Best, Last
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, Problem
from mtl_core.checks import positive_int
from mtl_core.checks import seed as checked_seed

__all__ = ["Genes", "Yeast"]


@dataclass(frozen=True)
class Genes:
    """Some genes.

    Attributes:
        features: ``[n, 103]`` float32, mean 0 and deviation 1 over the genes for training.
        labels: ``[n, 14]`` float32, 0 or 1.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: Tensor | slice) -> Genes:
        """The chosen genes."""
        return Genes(self.features[rows], self.labels[rows])

    def to(self, device: str) -> Genes:
        """The same genes on another device."""
        return Genes(self.features.to(device), self.labels.to(device))


class Yeast(Benchmark):
    """Which of fourteen classes of functions does a gene of yeast belong to? Fourteen binary tasks on one table.

    2,417 real genes with 103 measurements each, from the package ``river`` (extra ``[yeast]``), whose file is read and
    of which nothing is imported. A gene has 4.2 classes on average; the rarest class has 34 genes, the commonest 1,816.
    The loss of a task is the mean cross-entropy; its metric is the area under the ROC curve, which a rare class does
    not make easy.

    Args:
        n_train: genes for training.
        n_test: genes for reporting.
        n_validation: genes for choosing; 0: no such split.
        width: units of each layer.
        data_seed: seed of the split.
        model: the architecture, any of ``mtl_benchmarks.models`` that is made of modules: ``hardsharing``, ``mmoe``,
            ``cgc``, ``ple``, ``dselectk``, ``crossstitch``, ``mtan``.

    Raises:
        InvalidParameterError: an option is out of its range.

    References:
        Elisseeff and Weston, *A kernel method for multi-labelled classification*, NIPS 2001.
    """

    name: ClassVar[str] = "yeast"
    tasks: ClassVar[tuple[str, ...]] = tuple(f"class{k}" for k in range(1, N_CLASSES + 1))
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(f"auc_class{k}", f"class{k}", "%", higher_is_better=True) for k in range(1, N_CLASSES + 1)
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "Class 14 has 34 genes in all: its area rests on a dozen of them in the test set.",
        "The split is drawn and not that of the literature (1,500 and 917 genes in a fixed order).",
    )
    model_arguments: ClassVar[frozenset[str]] = frozenset({"heads"})
    offered_to_model: ClassVar[frozenset[str]] = VECTOR_PARTS

    def __init__(
        self,
        *,
        n_train: int = 1200,
        n_test: int = 917,
        n_validation: int = 300,
        width: int = 64,
        data_seed: int = 0,
        model: Callable[..., nn.Module] = HardSharing,
    ) -> None:
        self.n_train = positive_int("n_train", n_train)
        self.n_test = positive_int("n_test", n_test)
        self.n_validation = positive_int("n_validation", n_validation) if n_validation else 0
        self.width = positive_int("width", width)
        self.data_seed = checked_seed("data_seed", data_seed)
        self.model = model
        self._data: dict[str, Genes] = {}

    @property
    def training(self) -> Training:
        """Ten epochs of Adam with learning rate 1e-3; the best mean area on the validation set is reported.

        Single tasks overfit from the fourth epoch on and all together from the eighth, so that no one length is fair
        to both. Without a validation set the last epoch is reported.
        """
        reported = Best(by="auc_*") if self.n_validation else Last()
        return Training(epochs=10, batch_size=32, optimizer=OptimizerChoice("adam", {"lr": 1e-3}), reported=reported)

    @property
    def splits(self) -> tuple[str, ...]:
        """The test set, and the validation set where there is one."""
        return ("validation", "test") if self.n_validation else ("test",)

    def files(self) -> dict[str, list[Path]]:
        """The package's."""
        try:
            return {"river": [yeast_file()]}
        except (InvalidInputError, MissingExtraError):  # a complete run is read without them
            return {}

    def data(self, split: Literal["train", "validation", "test"]) -> Genes:
        """The genes of a split; the same at every call.

        Raises:
            MissingExtraError: the package is not installed.
            InvalidInputError: its file cannot be read.
            InvalidParameterError: the splits are larger than the data, or one is so small that it lacks a class.
        """
        if not self._data:
            self._draw(read_yeast(yeast_file()))
        return self._data[split]

    def _draw(self, table: Tensor) -> None:
        rows = drawn_splits(
            len(table),
            train=self.n_train,
            validation=self.n_validation,
            test=self.n_test,
            seed=self.data_seed,
            what="genes",
        )
        features, labels = table[:, :N_FEATURES], table[:, N_FEATURES:]
        for split in self.splits:
            # The area under a curve is not defined where all labels are alike.
            with_both = (labels[rows[split]] > 0).any(0) & (labels[rows[split]] == 0).any(0)
            if not bool(with_both.all()):
                raise InvalidParameterError(
                    f"`n_{split}` must be enough for a gene with and one without each class, got {len(rows[split])} "
                    f"genes that are alike in {self.tasks[int(with_both.int().argmin())]}. Take more."
                )
        # Scaled by the genes for training alone: the others' statistics would tell of the test set.
        seen = features[rows["train"]]
        mean, spread = seen.mean(0), seen.std(0, correction=0)
        # A column that is constant in a small training set is left at 0, where dividing would give NaN.
        scaled = (features - mean) / torch.where(spread > 0, spread, 1.0)
        self._data = {
            split: Genes(scaled[chosen].float(), labels[chosen].float())
            for split, chosen in rows.items()
            if len(chosen)
        }

    def build(self) -> nn.Module:
        """A fresh network of the chosen architecture.

        Raises:
            InvalidInputError: it does not declare which parameters are shared.
        """
        return vector_network(self.model, tasks=self.tasks, inputs=N_FEATURES, width=self.width)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean cross-entropy of each class."""
        wanted = tuple(tasks)
        columns = {task: self.tasks.index(task) for task in wanted}

        def entropies(logits: Mapping[str, Tensor], batch: Genes) -> dict[str, Tensor]:
            return {
                task: functional.binary_cross_entropy_with_logits(logits[task][:, 0], batch.labels[:, column])
                for task, column in columns.items()
            }

        def losses(network: nn.Module, batch: Genes) -> dict[str, Tensor] | tuple[dict[str, Tensor], Tensor]:
            if not isinstance(network, HardSharing):
                return entropies(network(batch.features), batch)
            features = network.features(batch.features)
            return entropies({task: network.heads[task](features) for task in wanted}, batch), features

        return Problem(model, losses, shared=model.shared_parameters(), tasks=wanted)  # type: ignore[operator]

    def batches(self, *, batch_size: int, seed: int, device: str) -> Batches[Genes]:
        """Shuffled genes for training, kept on the device."""
        return resident(self.data("train"), batch_size=batch_size, seed=seed, device=device)

    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """The logits of a part of every split: the area under a curve needs all of them side by side."""

        def count(data: Genes, begin: int, end: int) -> dict[str, Tensor | Rows]:
            logits: dict[str, Tensor] = model(data.features[begin:end].to(device))
            return {"logits": Rows(torch.cat([logits[task] for task in self.tasks], dim=1).double())}

        return tallied(model, {split: self.data(split) for split in self.splits}, count, part=part)  # type: ignore[arg-type]

    def metrics_from(self, tally: Tally) -> Evaluation:
        """Area under the curve of every class, over whole splits."""
        found = {}
        for split, row in cast("Mapping[str, Mapping[str, Rows]]", tally).items():
            logits = row["logits"].values
            labels = self.data(split).labels.to(logits.device)  # type: ignore[arg-type]
            found[split] = {m.name: auc(labels[:, k], logits[:, k]) for k, m in enumerate(self.metrics)}
        return found
