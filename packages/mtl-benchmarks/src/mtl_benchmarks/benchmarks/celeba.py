"""CelebA: forty attributes of faces from one convolutional network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.loading import LoadedBatches
from mtl_benchmarks.batching.tally import Rows, Tally, tallied
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.data_files import DataSource, refuse_missing
from mtl_benchmarks.faces.folder import (
    ATTRIBUTES,
    COUNTS,
    LABELS,
    PARTITION,
    PICTURES,
    FaceFolder,
    Faces,
    FaceSplit,
    missing_files,
)
from mtl_benchmarks.faces.source import OfficialCelebA
from mtl_benchmarks.metrics import Baseline, Metric
from mtl_benchmarks.models.cnn9 import CNN9
from mtl_benchmarks.protocol import papers
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Best
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.published import PublishedTable
from mtl_core import InvalidParameterError, Problem
from mtl_core.checks import positive_int

__all__ = ["CelebA", "f1_score"]

_KEPT = 20_000
"""Up to so many pictures a split is read once and kept: 12 kB each."""

_EVALUATED = 256
_FULL, _NARROW = 64, 8

_SINGLE_TASK = (
    0.6736886, 0.68121034, 0.81524944, 0.5760289, 0.7205613, 0.8555076, 0.38203922, 0.58225113, 0.787647, 0.8321292,
    0.5029583, 0.68694085, 0.6781237, 0.5240381, 0.5161666, 0.95694304, 0.6968786, 0.67976356, 0.8808315, 0.8582131,
    0.97034, 0.93267566, 0.5057539, 0.40307626, 0.9703734, 0.48644206, 0.60786104, 0.5261031, 0.56907415, 0.59815097,
    0.6858371, 0.924108, 0.5424991, 0.7406311, 0.71019936, 0.87365365, 0.9305602, 0.33704284, 0.7647628, 0.91907,
)  # fmt: skip
"""F1 of models of one attribute each, in the order of the attributes: FAMO's author, issue 2 of its repository."""


def f1_score(hits: Tensor, false_alarms: Tensor, misses: Tensor) -> Tensor:
    r"""F1 from counts: the harmonic mean of :math:`p = h/(h + f)` and :math:`r = h/(h + m)`.

    Args:
        hits: counts of any shape.
        false_alarms: likewise.
        misses: likewise.

    Returns:
        of that shape, in [0, 1]; 0 where there are no hits. As released, 1e-8 is added to every denominator.

    Example:
        >>> f1_score(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(3.0)).item()
        0.6000000...
    """
    precision, recall = hits / (hits + false_alarms + 1e-8), hits / (hits + misses + 1e-8)
    return 2 * precision * recall / (precision + recall + 1e-8)


class CelebA(Benchmark):
    """Forty attributes of a face, each a yes or no, from one picture of 64 × 64.

    **No faces come with this package, real or made up**: whoever has the official files gets the papers' protocol, and
    ``mtl-bench data celeba`` says where they come from. An attribute's loss is the binary cross-entropy, its metric F1
    at threshold 0.5 over the whole split; the test values of the epoch with the best mean F1 on the validation
    pictures are reported.

    On the official pictures the defaults are the papers' protocol: the nine-layer network, 15 epochs in batches of 256.
    On any other number of pictures, such as the first thousand, they are for two CPU cores: an eighth of the width, 5
    epochs in batches of 32. Models of one attribute each are forty more runs: ``--baselines none`` does without.

    Args:
        root: folder of the data set, with ``Img``, ``Anno`` and ``Eval``.
        n_train: pictures from the beginning of the training split; None: all of it.
        n_validation: likewise.
        n_test: likewise.
        width: channels of the first convolution; None: 64 on the official pictures, 8 elsewhere.

    Note:
        Pictures are made smaller bilinearly. Whether the released loader does so is not known.

    References:
        Liu et al., *Deep Learning Face Attributes in the Wild*, ICCV 2015; protocol: Liu et al., *FAMO: Fast Adaptive
        Multitask Optimization*, NeurIPS 2023.
    """

    name: ClassVar[str] = "celeba"
    tasks: ClassVar[tuple[str, ...]] = ATTRIBUTES
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(f"f1_{task}", task, "%", higher_is_better=True) for task in ATTRIBUTES
    )
    # With forty tasks some task nearly always points against the mean: the papers ask for half of them.
    teleport_options: ClassVar[Mapping[str, Any]] = {"trigger": Choice("majority", {"fraction": 0.5})}

    def __init__(
        self,
        *,
        root: str | Path,
        n_train: int | None = None,
        n_validation: int | None = None,
        n_test: int | None = None,
        width: int | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.limits: dict[FaceSplit, int | None] = {"train": n_train, "validation": n_validation, "test": n_test}
        for split, limit in self.limits.items():
            if limit is not None:
                positive_int(f"n_{split}", limit)
        self.width = None if width is None else positive_int("width", width)
        self._folders: dict[FaceSplit, _Kept] = {}

    @property
    def is_official(self) -> bool:
        """Whether the run is on all official pictures, or there are none to see."""
        if any(limit is not None for limit in self.limits.values()):
            return False
        try:
            # Lines are counted instead of read: this is asked many times, and before any file has been checked.
            with (self.root / PARTITION).open("rb") as file:
                return sum(1 for _ in file) == sum(COUNTS.values())
        except OSError:
            # Nothing to see: whoever asks for the protocol before the files are there gets that of the papers.
            return True

    @property
    def splits(self) -> tuple[str, ...]:
        """Validation, by which the epoch is chosen, and test."""
        return ("validation", "test")

    @property
    def training(self) -> Training:
        """The papers' protocol on the official pictures; elsewhere 5 epochs of Adam, 3e-4, in batches of 32."""
        if self.is_official:
            return papers.celeba()
        return Training(
            epochs=5, batch_size=32, optimizer=OptimizerChoice("adam", {"lr": 3e-4}), reported=Best(by="f1_*")
        )

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """The single-task values that the papers compare with, on the official pictures."""
        source = "FAMO's author, issue 2 of its repository"
        values = zip(self.metrics, _SINGLE_TASK, strict=True)
        return tuple(Baseline(m, 100 * value, source) for m, value in values) if self.is_official else ()

    @property
    def published(self) -> tuple[PublishedTable, ...]:
        """The papers' table, on the official pictures; it has no values of single attributes."""
        said = (
            "Known of this table: IMTL-G's Δm of 0.84 is better than COST's 0.93; values of attributes are not printed."
        )
        return (PublishedTable("COST", "Table 3", "CelebA", {}, (said,)),) if self.is_official else ()

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the papers' single-task values are, or that these are not the official pictures."""
        if not self.is_official:
            return ("These are not all of CelebA's pictures: the numbers compare with no table of a paper.",)
        trap = "The papers' single-task script never leaves training mode: its batch normalisation tests on batches."
        return (trap, "The papers' pictures may have been made smaller by another filter.")

    def files(self) -> dict[str, list[Path]]:
        """The pictures, and each text file by itself, which is then looked at whole."""
        texts = {f"root/{name}": [self.root / name] for name in (LABELS, PARTITION)}
        return {"root": [self.root / PICTURES], **texts}

    def prepare(self, say: Callable[[str], None]) -> None:
        """Refuse a folder that lacks the pictures or one of the text files.

        Raises:
            InvalidInputError: one of them is not there.
        """
        self._refuse_missing()

    def _refuse_missing(self) -> None:
        refuse_missing("CelebA", self.root, missing_files(self.root), self.data_sources())

    def data(self, split: FaceSplit) -> _Kept:
        """The pictures of a split.

        Raises:
            InvalidInputError: something is wrong with the files, or there are fewer pictures than asked for.
        """
        if split not in self._folders:
            self._refuse_missing()
            self._folders[split] = _Kept(FaceFolder(self.root, split, limit=self.limits[split]))
        return self._folders[split]

    def build(self) -> nn.Module:
        """A fresh :class:`~mtl_benchmarks.models.CNN9`; looks at all files first."""
        for split in self.limits:
            self.data(split)
        width = self.width if self.width is not None else _FULL if self.is_official else _NARROW
        return CNN9(self.tasks, width=width)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Binary cross-entropy of each attribute; everything but the linear outputs is shared."""
        assert isinstance(model, CNN9)
        wanted = tuple(tasks)
        columns = {task: self.tasks.index(task) for task in wanted}

        def losses(network: nn.Module, batch: Faces) -> tuple[dict[str, Tensor], Tensor]:
            assert isinstance(network, CNN9)
            features = network.features(batch.pixels())
            return {
                task: functional.binary_cross_entropy_with_logits(
                    network.heads[task](features)[:, 0], batch.labels[:, column]
                )
                for task, column in columns.items()
            }, features

        return Problem(model, losses, shared=model.shared_parameters(), tasks=wanted)

    def batches(self, *, batch_size: int, seed: int, device: str) -> LoadedBatches:
        """Shuffled training pictures.

        Raises:
            InvalidParameterError: the last batch would be a single picture, which batch normalisation cannot train on.
        """
        data = self.data("train")
        # Any number modulo 1 is 0, so that batches of one have to be asked about separately.
        if len(data) % batch_size == 1 or batch_size == 1:
            raise InvalidParameterError(
                f"`batch_size` must leave no batch of one picture, which batch normalisation cannot train on, got "
                f"{batch_size} for {len(data)} pictures."
            )
        return LoadedBatches(data, batch_size=batch_size, seed=seed, device=device, collate=Faces.stack)

    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """Hits, false alarms and misses of each attribute over a part of each split."""

        def count(data: _Kept, begin: int, end: int) -> dict[str, Tensor | Rows]:
            counts = torch.zeros(3, len(self.tasks), dtype=torch.float64)
            for first in range(begin, end, _EVALUATED):
                faces = Faces.stack([data[k] for k in range(first, min(first + _EVALUATED, end))]).to(device)
                outputs: dict[str, Tensor] = model(faces.pixels())
                # A logit above 0 is a probability above the threshold, 0.5.
                yes = torch.stack([outputs[task] for task in self.tasks], dim=1) > 0
                there = faces.labels > 0
                for row, cases in enumerate((yes & there, yes & ~there, ~yes & there)):
                    counts[row] += cases.double().sum(0).cpu()
            return {"counts": counts}

        return tallied(model, {split: self.data(split) for split in ("validation", "test")}, count, part=part)

    def metrics_from(self, tally: Tally) -> Evaluation:
        """F1 of each attribute over whole splits, in percent."""
        rows: dict[str, dict[str, float]] = {}
        for split, row in tally.items():
            counts = row["counts"]
            assert isinstance(counts, Tensor)
            values = (100 * f1_score(*counts)).tolist()
            rows[split] = {metric.name: value for metric, value in zip(self.metrics, values, strict=True)}
        return rows

    @staticmethod
    def data_sources() -> Mapping[str, type[DataSource]]:
        """The official files."""
        return {"celeba": OfficialCelebA}


class _Kept:
    """A split; a small one is kept in memory once it is read."""

    def __init__(self, folder: FaceFolder) -> None:
        self._folder = folder
        self._read: dict[int, Faces] | None = {} if len(folder) <= _KEPT else None

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> Faces:
        if self._read is None:
            return self._folder[index]
        if index not in self._read:
            self._read[index] = self._folder[index]
        return self._read[index]
