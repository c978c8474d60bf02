"""What NYUv2 and CityScapes have in common: folders of pictures, a SegNet, masked losses and metrics per pixel."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.loading import LoadedBatches
from mtl_benchmarks.batching.tally import Rows, Tally, tallied
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.data_files import DataSource, refuse_missing
from mtl_benchmarks.metrics import Baseline
from mtl_benchmarks.models.declaration import MultiTaskModel
from mtl_benchmarks.models.segnet import STRIDE, DenseOutput, SegNet, SegNetSplit
from mtl_benchmarks.models.segnet_cross_stitch import SegNetCrossStitch
from mtl_benchmarks.models.segnet_mtan import SegNetMTAN
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Last
from mtl_benchmarks.protocol.papers import Family
from mtl_benchmarks.protocol.schedules import Cosine
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.published import PublishedTable, printed_baselines
from mtl_benchmarks.scenes.augmentation import augmented
from mtl_benchmarks.scenes.folders import Split, is_official, missing_files
from mtl_benchmarks.scenes.layout import SceneLayout, Scenes
from mtl_benchmarks.scenes.losses import scene_losses
from mtl_benchmarks.scenes.pictures import Pictures
from mtl_benchmarks.scenes.scores import Averaging, SceneScores, values_from
from mtl_core import InvalidInputError, InvalidParameterError, Problem
from mtl_core.checks import one_of, positive

__all__ = ["DensePrediction"]

_SPLITS: tuple[Split, Split] = ("train", "val")
_SMALL = 1 / 4
_EVALUATED = 8
"""Pictures per batch of an evaluation."""

_ATTENTION: Mapping[Family, Literal["shared", "task"]] = {"nash": "shared", "cagrad": "task"}


class DensePrediction(Benchmark):
    """Pictures in the folders of a data set, and one dense prediction per task.

    Args:
        root: folder of the data set.
        model: the network, from ``outputs`` and ``width``.
        width: factor on its channels; None: 1 on the official pictures, 1/4 elsewhere.
        family: whose released protocol is followed.
        augment: whether training pictures are cropped and flipped at random.
        metrics: how metrics are taken over the test set.
    """

    layout: ClassVar[SceneLayout]
    outputs: ClassVar[Mapping[str, DenseOutput]]
    tables: ClassVar[tuple[PublishedTable, ...]]
    model_arguments: ClassVar[frozenset[str]] = frozenset({"outputs", "width"})
    # The papers' layers: every 3 × 3 convolution that all tasks share, and neither attention networks nor heads.
    teleport_options: ClassVar[Mapping[str, Any]] = {"adapter": Choice("lora", {"rank": 5, "targets": ["*_block*"]})}

    def __init__(
        self,
        *,
        root: str | Path,
        model: Callable[..., nn.Module] = SegNetMTAN,
        width: float | None = None,
        family: Family = "nash",
        augment: bool = True,
        metrics: Averaging = "pixel",
    ) -> None:
        self.root = Path(root).expanduser()
        self.width = None if width is None else positive("width", width)
        self.family = one_of("family", family, ("nash", "cagrad"))
        self.augment = augment
        self.averaging = one_of("metrics", metrics, ("pixel", "released"))
        self.model = model
        self._check_roles(model)
        self._folders: dict[Split, Pictures] = {}

    def _check_roles(self, model: Callable[..., nn.Module]) -> None:
        cls, options = (model.func, model.keywords) if isinstance(model, functools.partial) else (model, {})
        if cls is SegNetMTAN:
            attention = options.get("attention", "shared")
            if attention != _ATTENTION[self.family]:
                raise InvalidParameterError(
                    f"`model.attention` must be {_ATTENTION[self.family]!r} where `family` is {self.family!r}, got "
                    f"{attention!r}. The released code of the family 'nash' calls all but the heads shared, that of "
                    "'cagrad' the attention networks the tasks' own. To mix them, set the clipping by --max-norm."
                )

    @property
    def is_official(self) -> bool:
        """Whether the pictures have the official size and number, or there are none to see."""
        return is_official(self.root, self.layout)

    @abstractmethod
    def papers_training(self) -> Training:
        """The papers' protocol."""

    @staticmethod
    @abstractmethod
    def data_sources() -> Mapping[str, type[DataSource]]:
        """The official files, and generated ones."""

    def files(self) -> dict[str, list[Path]]:
        """The folders of both splits that are read."""
        return {"root": [self.root / split / name for split in _SPLITS for name in self.layout.folders]}

    def prepare(self, say: Callable[[str], None]) -> None:
        """Refuse a folder that lacks something: folders of both splits, the first few files of those that are there.

        Raises:
            InvalidInputError: there is such.
        """
        self._refuse_missing()

    def _refuse_missing(self) -> None:
        missing = [path for split in _SPLITS for path in missing_files(self.root, split, self.layout)]
        names = [path.relative_to(self.root).as_posix() for path in missing]
        refuse_missing(self.layout.name, self.root, names, self.data_sources())

    @property
    def training(self) -> Training:
        """The papers' protocol on the official pictures; elsewhere one for two CPU cores.

        That one: 10 epochs of Adam in batches of 4, the learning rate falling from 1e-3 to zero along half a cosine,
        clipped as the papers do, and the last epoch. At a constant rate so short a training swings from epoch to epoch,
        depth by more than a factor of two, and a mean over epochs does not mend that.
        """
        papers = self.papers_training()
        if self.is_official:
            return papers
        return Training(
            epochs=10,
            batch_size=4,
            optimizer=OptimizerChoice("adam", {"lr": 1e-3}),
            schedule=Cosine(),
            clip=papers.clip,
            reported=Last(),
        )

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """The single-task values that the papers print, on the official pictures."""
        return printed_baselines(self.layout.name) if self.is_official else ()

    @property
    def published(self) -> tuple[PublishedTable, ...]:
        """The papers' tables, on the official pictures."""
        return self.tables if self.is_official else ()

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the released code does otherwise, or that these are not the official pictures."""
        if not self.is_official:
            here = f"The pictures in {self.root} are not the official ones in size or number"
            return (f"{here}: these numbers compare with no table of a paper.",)
        how = {
            "pixel": "Depth and normals are averaged over all pixels of the test set. The papers' numbers are plain "
            "means over batches, and a median a mean of medians; `metrics=released` does the same.",
            "released": "Depth and normals are plain means over batches of the test set, as in the released code.",
        }
        return (
            how[self.averaging],
            "There is no validation set: what is reported is the mean over the last ten epochs on the test set.",
        )

    def data(self, split: Split) -> Pictures:
        """The pictures of a split; the first call looks through all files.

        Raises:
            InvalidInputError: something is wrong with them; all of it is named.
        """
        if split not in self._folders:
            self._refuse_missing()
            self._folders[split] = Pictures(self.root, split, self.layout)
        return self._folders[split]

    def build(self) -> nn.Module:
        """A fresh network.

        Raises:
            InvalidInputError: it does not declare its shared parameters, or lacks a task; or the pictures have sides
                that it cannot halve as often as it has to.
        """
        # All files are looked through before the first step: a file that cannot be read is found now and not hours
        # later.
        for split in _SPLITS:
            self.data(split)
        width = self.width if self.width is not None else 1.0 if self.is_official else _SMALL
        model = self.model(outputs=self.outputs, width=width)
        if not isinstance(model, MultiTaskModel) or set(model.tasks) != set(self.tasks):
            raise InvalidInputError(
                f"`model` must declare its parameters and the tasks {', '.join(self.tasks)}, got "
                f"{type(model).__name__}. See mtl_benchmarks.models.MultiTaskModel."
            )
        if isinstance(model, SegNet | SegNetCrossStitch):
            self._check_sizes()
        return model

    def _check_sizes(self) -> None:
        for split in _SPLITS:
            height, width = self.data(split).size
            if height % STRIDE or width % STRIDE:
                raise InvalidInputError(
                    f"`root` must hold pictures whose sides a SegNet can halve five times, divisible by {STRIDE}, got "
                    f"{height} × {width} in {self.root / split}. Cut or pad all maps alike, or take a `model` of your "
                    "own."
                )

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """The papers' masked losses; a task without a valid pixel in the batch is absent from it."""
        assert isinstance(model, MultiTaskModel)
        wanted = tuple(tasks)

        def losses(network: nn.Module, batch: Scenes) -> tuple[dict[str, Tensor | None], Any]:
            outputs, features = _predicted(network, batch.images, wanted)
            return scene_losses(outputs, batch), features

        return Problem(model, losses, shared=model.shared_parameters(), tasks=wanted)

    def batches(self, *, batch_size: int, seed: int, device: str) -> LoadedBatches:
        """Shuffled training pictures, each augmented by draws of its own.

        Processes and micro-batches divide a batch by pictures, and their losses are means over the valid pixels of a
        part, so that the mean over parts is not quite that over the pixels of the batch.
        """
        return LoadedBatches(
            self.data("train"),
            batch_size=batch_size,
            seed=seed,
            device=device,
            augment=_augmented if self.augment else None,
            collate=Scenes.stack,
        )

    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """Confusion matrix, errors and angles over a part of the batches of the test set."""
        pictures = self.data("val")
        # Over pixels it does not matter how they are cut into batches.
        # The released averages are means over batches, hence depend on their size: those of the papers' protocol.
        size = self.papers_training().batch_size if self.averaging == "released" else _EVALUATED
        batches = [range(k, min(k + size, len(pictures))) for k in range(0, len(pictures), size)]

        def count(batches: Sequence[range], begin: int, end: int) -> Mapping[str, Tensor | Rows]:
            scores = SceneScores(self.layout, metrics=self.averaging)
            for rows in batches[begin:end]:
                scenes = Scenes.stack([pictures[row] for row in rows]).to(device)
                scores.update(_predicted(model, scenes.images, self.tasks)[0], scenes)
            return scores.sums()

        return tallied(model, {"test": batches}, count, part=part)

    def metrics_from(self, tally: Tally) -> Evaluation:
        """The papers' metrics over the test set."""
        return {split: values_from(row, self.layout) for split, row in tally.items()}


def _augmented(scenes: Scenes, generator: torch.Generator) -> Scenes:
    return augmented(scenes, generator=generator)


def _predicted(network: nn.Module, images: Tensor, tasks: Sequence[str]) -> tuple[dict[str, Tensor], Any]:
    """Predictions by task, and what the heads start from where all else is shared."""
    if isinstance(network, SegNetSplit):
        shared = network.features(images)
        return {task: network.predict(task, shared) for task in tasks}, shared
    if isinstance(network, SegNetMTAN | SegNetCrossStitch):
        own = network.features(images, tasks)
        # Features are reported only where nothing but heads follows: a task's attention network would stand between.
        starts = None if isinstance(network, SegNetMTAN) and network.attention == "task" else own
        return {task: network.predict(task, own[task]) for task in tasks}, starts
    found: dict[str, Tensor] = network(images)
    return {task: found[task] for task in tasks}, None
