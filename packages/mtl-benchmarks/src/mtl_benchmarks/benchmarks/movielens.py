"""MovieLens-100K: how many stars does somebody give a film, is it liked, is it loved?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batching.batches import Batches, Part, resident
from mtl_benchmarks.batching.splits import drawn_splits
from mtl_benchmarks.batching.tally import Rows, Tally, tallied
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.benchmarks.ctr_scores import auc
from mtl_benchmarks.benchmarks.movielens_files import Ratings, movielens_files, read_movielens
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.shared_tower import SharedTower
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, Problem
from mtl_core.checks import positive_int
from mtl_core.checks import seed as checked_seed

__all__ = ["MovieLens"]

_MIDDLE = 3.0
"""Stars that the network's output 0 stands for."""


class MovieLens(Benchmark):
    """Ratings of films: the stars, whether there are four or more, and whether there are five.

    100,000 real ratings by 943 people of 1,682 films, from the package ``recbole`` (extra ``[movielens]``), whose files
    are read and of which nothing is imported. What is known of a rating is its user with age, gender and occupation and
    its film with decade and genre; every field has an embedding, so that a batch touches few rows of the largest
    tables. Losses: the squared error of ``rating``, and the cross-entropies of ``like`` (55 % of the ratings) and
    ``love`` (21 %).

    Args:
        n_train: ratings for training.
        n_test: ratings for reporting.
        n_validation: ratings for choosing; 0: no such split.
        embedding: width of the network's embeddings.
        width: units of its shared layers.
        data_seed: seed of the split.

    Raises:
        InvalidParameterError: an option is out of its range.

    References:
        Harper and Konstan, *The MovieLens Datasets: History and Context*, ACM Transactions on Interactive Intelligent
        Systems 5, 2015.
    """

    name: ClassVar[str] = "movielens"
    tasks: ClassVar[tuple[str, ...]] = ("rating", "like", "love")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("rmse_rating", "rating", "stars", higher_is_better=False),
        Metric("auc_like", "like", "%", higher_is_better=True),
        Metric("auc_love", "love", "%", higher_is_better=True),
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "The tasks are three views of one number: they compete for the network's attention rather than contradict.",
        "The split is by chance and not by time: ratings for testing may be older than those for training.",
    )

    def __init__(
        self,
        *,
        n_train: int = 80_000,
        n_test: int = 20_000,
        n_validation: int = 0,
        embedding: int = 8,
        width: int = 32,
        data_seed: int = 0,
    ) -> None:
        self.n_train = positive_int("n_train", n_train)
        self.n_test = positive_int("n_test", n_test)
        self.n_validation = positive_int("n_validation", n_validation) if n_validation else 0
        self.embedding = positive_int("embedding", embedding)
        self.width = positive_int("width", width)
        self.data_seed = checked_seed("data_seed", data_seed)
        self._data: dict[str, Ratings] = {}
        self._cardinalities: dict[str, int] = {}

    @property
    def training(self) -> Training:
        """Three epochs of Adam with learning rate 2e-3."""
        return Training(epochs=3, batch_size=256, optimizer=OptimizerChoice("adam", {"lr": 2e-3}))

    @property
    def splits(self) -> tuple[str, ...]:
        """The test set, and the validation set where there is one."""
        return ("validation", "test") if self.n_validation else ("test",)

    def files(self) -> dict[str, list[Path]]:
        """The package's."""
        try:
            return {"recbole": movielens_files()}
        except (InvalidInputError, MissingExtraError):  # a complete run is read without them
            return {}

    def data(self, split: Literal["train", "validation", "test"]) -> Ratings:
        """The ratings of a split; the same at every call.

        Raises:
            MissingExtraError: the package is not installed.
            InvalidInputError: its files cannot be read.
            InvalidParameterError: the splits are larger than the data, or one is so small that all its ratings are
                alike.
        """
        if not self._data:
            self._draw(*read_movielens(movielens_files()))
        return self._data[split]

    def _draw(self, ratings: Ratings, cardinalities: dict[str, int]) -> None:
        rows = drawn_splits(
            len(ratings),
            train=self.n_train,
            validation=self.n_validation,
            test=self.n_test,
            seed=self.data_seed,
            what="ratings",
        )
        for split in self.splits:
            # An area under a curve needs both kinds; a rating below 4 and one of 5 give both to `like` and to `love`.
            stars = ratings.stars[rows[split]]
            if not (bool((stars < 4).any()) and bool((stars == 5).any())):
                raise InvalidParameterError(
                    f"`n_{split}` must be enough for a rating below 4 and one of 5, got {len(stars)} without. Take "
                    "more."
                )
        self._cardinalities = cardinalities
        self._data = {split: ratings.rows(chosen) for split, chosen in rows.items() if len(chosen)}

    def build(self) -> nn.Module:
        """A fresh :class:`~mtl_benchmarks.models.SharedTower` with an output per task."""
        self.data("train")
        return SharedTower(self._cardinalities, heads=self.tasks, embedding=self.embedding, width=self.width)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean squared error of the stars, mean cross-entropy of the two questions."""
        wanted = tuple(tasks)

        def losses(model: nn.Module, batch: Ratings) -> tuple[dict[str, Tensor], Tensor]:
            features = model.get_submodule("trunk")(batch.fields)
            outputs = {task: model.get_submodule(f"heads.{task}")(features)[:, 0] for task in wanted}
            return {task: _loss(task, outputs[task], batch) for task in wanted}, features

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=wanted)

    def batches(self, *, batch_size: int, seed: int, device: str) -> Batches[Ratings]:
        """Shuffled ratings for training, kept on the device."""
        return resident(self.data("train"), batch_size=batch_size, seed=seed, device=device)

    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """The outputs for a part of every split: the area under a curve needs all of them side by side."""

        def count(data: Ratings, begin: int, end: int) -> dict[str, Tensor | Rows]:
            outputs: dict[str, Tensor] = model(data.fields[begin:end].to(device))
            return {task: Rows(output.double()) for task, output in outputs.items()}

        return tallied(model, {split: self.data(split) for split in self.splits}, count, part=part)  # type: ignore[arg-type]

    def metrics_from(self, tally: Tally) -> Evaluation:
        """Root of the mean squared error in stars, and areas under the curve, over whole splits."""
        found = {}
        for split, row in cast("Mapping[str, Mapping[str, Rows]]", tally).items():
            outputs = {task: rows.values for task, rows in row.items()}
            stars = self.data(split).stars.to(outputs["rating"].device)  # type: ignore[arg-type]
            found[split] = {
                "rmse_rating": float((outputs["rating"] + _MIDDLE - stars).square().mean().sqrt()),
                "auc_like": auc(stars >= 4, outputs["like"]),
                "auc_love": auc(stars >= 5, outputs["love"]),
            }
        return found


def _loss(task: str, output: Tensor, batch: Ratings) -> Tensor:
    if task == "rating":
        return functional.mse_loss(output + _MIDDLE, batch.stars)
    label = batch.stars >= (4 if task == "like" else 5)
    return functional.binary_cross_entropy_with_logits(output, label.to(output.dtype))
