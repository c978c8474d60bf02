"""Two overlaid handwritten digits: two classifications and one reconstruction on one small trunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batching.batches import Batches, Part, resident
from mtl_benchmarks.batching.tally import Rows, Tally, tallied
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.components.sizes import fitting
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.overlay_cnn import OverlayCNN
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, Problem
from mtl_core.checks import in_interval, one_of, positive, positive_int
from mtl_core.checks import seed as checked_seed

__all__ = ["Digits", "OverlaidDigits", "Split", "overlay"]

_SIDE = 8
_N_CLASSES = 10
_TRAIN_SHARE = 2 / 3
_VALIDATION_SHARE = 1 / 5

Split = Literal["train", "validation", "test"]
"""A set of pairs; no digit is in two of them."""


@dataclass(frozen=True)
class OverlaidDigits:
    """A set of overlaid pairs.

    Attributes:
        images: [n, 1, c, c] float32 in [0, 1], c = 8 + shift.
        left: [n] int64, class of the digit at the upper left.
        right: [n] int64, class of the digit at the lower right.
        sources: [n, 2] int64, which of the 1,797 scanned digits each pair is made of.
    """

    images: Tensor
    left: Tensor
    right: Tensor
    sources: Tensor

    def __len__(self) -> int:
        return len(self.left)

    def rows(self, rows: Tensor | slice) -> OverlaidDigits:
        """The chosen pairs."""
        return OverlaidDigits(self.images[rows], self.left[rows], self.right[rows], self.sources[rows])

    def to(self, device: str) -> OverlaidDigits:
        """The same pairs on another device."""
        return OverlaidDigits(*(t.to(device) for t in (self.images, self.left, self.right, self.sources)))


@cache
def _scanned_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: images [1797, 8, 8] in [0, 1] and classes [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("the digits benchmark", "mtl-benchmarks[digits]") from None
    pixels, classes = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, _SIDE, _SIDE) / 16
    return images, torch.as_tensor(classes, dtype=torch.int64)


def overlay(left: Tensor, right: Tensor, *, shift: int) -> Tensor:
    """Lay two digits over each other, the right one ``shift`` pixels lower and further right.

    Where both have ink the darker counts: ``max(left, right)`` per pixel.

    Args:
        left: [n, 8, 8] in [0, 1].
        right: [n, 8, 8] in [0, 1].
        shift: 0 (one on top of the other) to 8 (corner to corner).

    Returns:
        [n, 1, 8 + shift, 8 + shift].

    Example:
        >>> overlay(torch.ones(1, 8, 8), torch.zeros(1, 8, 8), shift=4).sum().item()
        64.0
    """
    canvas = torch.zeros(2, len(left), _SIDE + shift, _SIDE + shift)
    canvas[0, :, :_SIDE, :_SIDE] = left
    canvas[1, :, shift:, shift:] = right
    return canvas.amax(0).unsqueeze(1)


class Digits(Benchmark):
    """Two handwritten digits on one canvas: which is where, and what does the picture look like?

    Pairs of scikit-learn's bundled 8 × 8 digits are overlaid on one canvas. The tasks are of two kinds and of
    different scale: cross-entropy of two classifications and the squared error of a reconstruction, so that
    gradients are imbalanced and the smallest one now and then points against the mean (dominated conflict).

    There are only 1,797 scanned digits, two thirds of them for training, and a training set of any size is
    made of pairs of these. Test pairs are made of the other third only. This is not MultiMNIST: numbers compare
    with other runs of this benchmark and with nothing else.

    Args:
        n_train: pairs in the training set.
        n_test: pairs in the test set.
        n_validation: pairs in a validation set; where there is one, it is made of a fifth of the digits for training,
            which the training set then does without.
        shift: offset of the right digit in pixels, 0 to 8; less is harder, 8 puts them corner to corner.
        width: channels of the network's first convolution.
        class_balance: how often class 9 is drawn for training, relative to class 0, in (0, 1]; those between
            follow geometrically. The test set is balanced.
        reconstruction: squared error summed over the pixels, or their mean.
        reconstruction_weight: factor on the reconstruction loss.
        data_seed: seed of the split and the pairs.
        model: the network, from ``canvas``, ``width`` and ``n_classes``. Its submodules ``trunk`` (from pictures
            [b, 1, c, c] to features), ``left``, ``right`` (logits [b, 10]) and ``decoder`` ([b, c * c]) are the
            tasks', and called with pictures it gives all outputs, as :class:`~mtl_benchmarks.models.OverlayCNN` does.

    Raises:
        InvalidParameterError: a setting is out of its range.

    Example:
        >>> digits = Digits(n_train=64, n_test=32)
        >>> digits.data("train").images.shape
        torch.Size([64, 1, 12, 12])
    """

    name: ClassVar[str] = "digits"
    tasks: ClassVar[tuple[str, ...]] = ("left", "right", "image")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy_left", "left", "%", higher_is_better=True),
        Metric("accuracy_right", "right", "%", higher_is_better=True),
        Metric("error_image", "image", "ink", higher_is_better=False),
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "The pairs are made of 1,797 scanned digits. This is not MultiMNIST: its numbers compare with nothing else.",
    )

    model_arguments: ClassVar[frozenset[str]] = frozenset({"canvas", "width", "n_classes"})

    def __init__(
        self,
        *,
        n_train: int = 6000,
        n_test: int = 2000,
        n_validation: int = 0,
        shift: int = 4,
        width: int = 8,
        class_balance: float = 1.0,
        reconstruction: Literal["sum", "mean"] = "mean",
        reconstruction_weight: float = 1.0,
        data_seed: int = 0,
        model: Callable[..., nn.Module] = OverlayCNN,
    ) -> None:
        self.n_train = positive_int("n_train", n_train)
        self.n_test = positive_int("n_test", n_test)
        self.n_validation = positive_int("n_validation", n_validation) if n_validation else 0
        self.shift = int(in_interval("shift", shift, 0, _SIDE))
        self.width = positive_int("width", width)
        self.class_balance = in_interval("class_balance", class_balance, 0, 1)
        if self.class_balance == 0:
            raise InvalidParameterError("`class_balance` must be positive, got 0. Use a small number such as 0.01.")
        self.reconstruction = one_of("reconstruction", reconstruction, ("sum", "mean"))
        self.reconstruction_weight = positive("reconstruction_weight", reconstruction_weight)
        self.data_seed = checked_seed("data_seed", data_seed)
        for name in ("n_train", "n_test", "n_validation"):  # a picture and what it is made of, in float32
            fitting(name, getattr(self, name), bytes_each=2 * 4 * self.canvas**2)
        self.model = model
        self._data: dict[Split, OverlaidDigits] = {}

    @property
    def splits(self) -> tuple[Literal["validation", "test"], ...]:
        """The test set, and the validation set where there is one."""
        return ("validation", "test") if self.n_validation else ("test",)

    @property
    def training(self) -> Training:
        """Eight epochs of Adam with learning rate 3e-3."""
        return Training(epochs=8, batch_size=64, optimizer=OptimizerChoice("adam", {"lr": 3e-3}))

    @property
    def canvas(self) -> int:
        """Side of the images in pixels."""
        return _SIDE + self.shift

    def data(self, split: Split) -> OverlaidDigits:
        """The pairs of a split, drawn once and the same at every call."""
        if split not in self._data:
            self._data[split] = self._draw(split)
        return self._data[split]

    def _draw(self, split: Split) -> OverlaidDigits:
        images, classes = _scanned_digits()
        generator = torch.Generator().manual_seed(self.data_seed)
        order = torch.randperm(len(classes), generator=generator)
        n_train_sources = round(_TRAIN_SHARE * len(classes))
        n_held = round(_VALIDATION_SHARE * n_train_sources) if self.n_validation else 0
        wanted = torch.ones(_N_CLASSES)
        if split == "train":
            pool, n_pairs = order[: n_train_sources - n_held], self.n_train
            wanted = self.class_balance ** (torch.arange(_N_CLASSES) / (_N_CLASSES - 1))
        elif split == "validation":
            pool, n_pairs = order[n_train_sources - n_held : n_train_sources], self.n_validation
            # Seeds of their own for the held-out splits: their pairs stay the same whatever `n_train` is, and the test
            # pairs whether or not there is a validation set.
            generator.manual_seed(self.data_seed + 2)
        else:
            pool, n_pairs = order[n_train_sources:], self.n_test
            generator.manual_seed(self.data_seed + 1)
        present = torch.bincount(classes[pool], minlength=_N_CLASSES)
        # Divided by how many digits of the class there are, so that classes, and not digits, are drawn evenly.
        weight = (wanted / present)[classes[pool]]
        drawn = torch.multinomial(weight, 2 * n_pairs, replacement=True, generator=generator)
        sources = pool[drawn].view(n_pairs, 2)
        left, right = sources.unbind(1)
        pictures = overlay(images[left], images[right], shift=self.shift)
        return OverlaidDigits(pictures, classes[left], classes[right], sources)

    def build(self) -> nn.Module:
        """A fresh network, by default :class:`~mtl_benchmarks.models.OverlayCNN`.

        Raises:
            InvalidInputError: it lacks one of the submodules.
        """
        model = self.model(canvas=self.canvas, width=self.width, n_classes=_N_CLASSES)
        own = dict(model.named_children())
        missing = [name for name in ("trunk", "left", "right", "decoder") if name not in own]
        if missing:
            raise InvalidInputError(
                f"`model` must have the submodules trunk, left, right and decoder, got {type(model).__name__} with "
                f"{', '.join(own) or 'none'}."
            )
        return model

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean cross-entropy per classification and the squared error of the reconstruction."""
        wanted = tuple(tasks)

        def losses(model: nn.Module, batch: OverlaidDigits) -> tuple[dict[str, Tensor], Tensor]:
            features = model.get_submodule("trunk")(batch.images)
            values = {}
            for task in wanted:
                if task == "image":
                    values[task] = self._reconstruction_loss(model.get_submodule("decoder")(features), batch)
                else:
                    target = batch.left if task == "left" else batch.right
                    values[task] = functional.cross_entropy(model.get_submodule(task)(features), target)
            return values, features

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=wanted)

    def _reconstruction_loss(self, output: Tensor, batch: OverlaidDigits) -> Tensor:
        error = (output - batch.images.flatten(1)).square()
        per_image = error.sum(1) if self.reconstruction == "sum" else error.mean(1)
        return self.reconstruction_weight * per_image.mean()

    def batches(self, *, batch_size: int, seed: int, device: str) -> Batches[OverlaidDigits]:
        """Shuffled training pairs, kept on the device."""
        return resident(self.data("train"), batch_size=batch_size, seed=seed, device=device)

    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """Pairs whose digits were read right, and squared errors of the pixels (full ink is 1), per split."""

        def count(data: OverlaidDigits, begin: int, end: int) -> dict[str, Tensor | Rows]:
            return _counts(model, data.rows(slice(begin, end)).to(device))

        return tallied(model, {split: self.data(split) for split in self.splits}, count, part=part)

    def metrics_from(self, tally: Tally) -> Evaluation:
        """Accuracies in percent and the root mean squared error per pixel, over whole splits."""
        return {
            split: {
                "accuracy_left": 100 * float(row["left"] / row["pairs"]),
                "accuracy_right": 100 * float(row["right"] / row["pairs"]),
                "error_image": float((row["squared"] / row["pixels"]).sqrt()),
            }
            for split, row in cast("Mapping[str, Mapping[str, Tensor]]", tally).items()
        }


def _counts(model: nn.Module, data: OverlaidDigits) -> dict[str, Tensor | Rows]:
    # Sums in double precision: counts and squares of parts add up to the same numbers however a split was divided.
    output: dict[str, Tensor] = model(data.images)
    squared = (output["image"] - data.images.flatten(1)).double().square()
    return {
        "left": (output["left"].argmax(1) == data.left).double().sum(),
        "right": (output["right"].argmax(1) == data.right).double().sum(),
        "pairs": torch.tensor(float(len(data)), dtype=torch.float64),
        "squared": squared.sum(),
        "pixels": torch.tensor(float(squared.numel()), dtype=torch.float64),
    }
