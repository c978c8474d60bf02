"""Reading the folders of NYUv2 and CityScapes, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from mtl_benchmarks.scenes.layout import SceneLayout, Scenes
from mtl_benchmarks.scenes.npy import header_of, read_npy
from mtl_core import InvalidInputError
from mtl_core.checks import one_of

__all__ = [
    "SceneFolder",
    "Split",
    "content_problems",
    "folder_problems",
    "is_official",
    "looked_through",
    "missing_files",
]

Split = Literal["train", "val"]
_SHOWN = 3  # names in a message; a folder that was unpacked wrongly has hundreds
_ROUNDED = 1e-3  # how far a number may be outside its range: unit vectors are stored rounded
_UNEVEN = 0.1  # how far the length of a normal may be from 1, of most of them; some are mixed with zeros


class SceneFolder:
    """The pictures and maps under ``ROOT/{train,val}/{image,label,depth,normal}/{0,1,2,…}.npy``.

    Headers of all files are read at the start, so that a missing or truncated file is found before a run begins; the
    numbers are read when they are asked for. ``val`` is what the papers test on; they have no validation set.

    Args:
        root: the data set's folder.
        split: which part of it.
        layout: which data set it is.

    Attributes:
        size: height and width of the pictures.

    Raises:
        InvalidInputError: files are missing, misnumbered, truncated or differently shaped; all that is wrong is named.
    """

    def __init__(self, root: str | Path, split: Split, layout: SceneLayout) -> None:
        one_of("split", split, ("train", "val"))
        self.folder, self.layout = Path(root) / split, layout
        problems = folder_problems(root, split, layout)
        if problems:
            raise InvalidInputError(
                f"`root` must hold {layout.name} as .npy files, got {len(problems)} problem(s):\n"
                + "\n".join(f"- {problem}" for problem in problems)
                + f"\n`mtl-bench data {layout.name.lower()}` says how they must lie."
            )
        self._n = len(_numbers(self.folder / "image")[0])
        height, width, *_ = header_of(self.folder / "image" / "0.npy").shape
        self.size: tuple[int, int] = (height, width)

    def __len__(self) -> int:
        return self._n

    def read(self, index: int) -> Scenes:
        """One picture with its maps, as a batch of one.

        Raises:
            InvalidInputError: a label is no whole number from −1 to the number of classes, a colour is not in [0, 1],
                a depth is out of the layout's range, normals are not of length 1, or a number is not finite.
        """
        if not 0 <= index < self._n:
            raise InvalidInputError(f"`index` must be from 0 to {self._n - 1}, got {index}.")
        labels = self._map(self.layout.labels, index)
        valid = (labels == labels.round()) & (labels >= -1) & (labels < self.layout.n_classes)
        if not bool(valid.all()):
            raise InvalidInputError(
                f"{self._path(self.layout.labels, index)}: labels must be whole numbers from -1 to "
                f"{self.layout.n_classes - 1}, got {float(labels[~valid][0]):g}."
            )
        image = self._within("image", index, 0.0, 1.0)
        depth = self._within("depth", index, 0.0, self.layout.most_depth)
        normals = self._normals(index) if self.layout.normals else None
        return Scenes.of(image, labels[None].long(), depth, normals)

    def load(self, indices: Iterable[int]) -> Scenes:
        """Several pictures with their maps, in this order."""
        return Scenes.stack([self.read(index) for index in indices])

    def _path(self, folder: str, index: int) -> Path:
        return self.folder / folder / f"{index}.npy"

    def _within(self, folder: str, index: int, low: float, high: float) -> Tensor:
        """A map as a batch of one, channels first, whose numbers are where they may be."""
        values = self._map(folder, index)
        least, most = float(values.min()), float(values.max())
        if least < low - _ROUNDED or most > high + _ROUNDED:
            raise InvalidInputError(
                f"{self._path(folder, index)}: numbers must be from {low:g} to {high:g}, got {least:g} to {most:g}."
            )
        return values.movedim(-1, 0)[None]

    def _normals(self, index: int) -> Tensor:
        """Normals, of length 1 but where a picture that was made smaller has mixed them with what was not measured."""
        normals = self._within("normal", index, -1.0, 1.0)
        lengths = normals.norm(dim=1)
        measured = lengths[lengths > 0]
        if len(measured):
            middle, most = float(measured.median()), float(measured.max())
            if most > 1 + _UNEVEN or middle < 1 - _UNEVEN:
                raise InvalidInputError(
                    f"{self._path('normal', index)}: normals must have length 1, or 0 where there is none, got "
                    f"{middle:.3g} in the middle and {most:.3g} at most."
                )
        return normals

    def _map(self, folder: str, index: int) -> Tensor:
        path = self._path(folder, index)
        values = torch.from_numpy(read_npy(path).astype(numpy.float32))
        if not bool(torch.isfinite(values).all()):
            raise InvalidInputError(f"{path} must hold finite numbers, got NaN or infinity.")
        return values


def missing_files(root: str | Path, split: Split, layout: SceneLayout) -> list[Path]:
    """Folders of a split that are not there, and the first few files that are missing in the others.

    Args:
        root: the data set's folder; it need not exist.
        split: which part of it.
        layout: which data set it is.
    """
    folder = Path(root) / split
    n = max(1, len(_numbers(folder / "image")[0]))
    missing: list[Path] = []
    for place in (folder / name for name in layout.folders):
        if not place.is_dir():
            missing.append(place)
            continue
        found = _numbers(place)[0]
        expected = set(range(max(n, max(found, default=-1) + 1)))
        missing += [place / f"{k}.npy" for k in _few(sorted(expected - set(found)))]
    return missing


def folder_problems(root: str | Path, split: Split, layout: SceneLayout) -> list[str]:
    """What is wrong with a split's files, each with the file's name; empty where a run can begin.

    Args:
        root: the data set's folder; it need not exist.
        split: which part of it.
        layout: which data set it is.
    """
    folder = Path(root) / split
    missing = missing_files(root, split, layout)
    folders = [path for path in missing if path.suffix != ".npy"]
    if folders:
        return [f"{path}: there is no such folder" for path in folders]
    numbers, problems = _numbers(folder / "image")
    if not numbers and not problems:
        return [f"{folder / 'image'}: there is no .npy file"]
    for name in layout.folders:
        misnamed = _numbers(folder / name)[1]
        problems += [f"{folder / name / wrong}: must be named by a number, as 0.npy" for wrong in _few(misnamed)]
        problems += [f"{path}: is missing" for path in missing if path.parent == folder / name]
    return problems or _shape_problems(folder, layout, len(numbers))


def content_problems(root: str | Path, split: Split, layout: SceneLayout) -> list[str]:
    """What is wrong inside a split's files whose names and shapes are right; reads all of them.

    Args:
        root: the data set's folder.
        split: which part of it.
        layout: which data set it is.
    """
    return looked_through(SceneFolder(root, split, layout), keep=False)[1]


def looked_through(folder: SceneFolder, *, keep: bool) -> tuple[list[Scenes], list[str]]:
    """All pictures of a split if they are to be kept, and what is wrong inside its files."""
    kept: list[Scenes] = []
    found: list[str] = []
    for k in range(len(folder)):
        try:
            one = folder.read(k)
        except InvalidInputError as error:
            found.append(str(error))
        else:
            kept += [one] if keep else []
    return kept, _few(found)


def is_official(root: str | Path, layout: SceneLayout) -> bool:
    """Whether the pictures under ``root`` have the size and number of the official ones, or there are none to see."""
    first = Path(root) / "train" / "image" / "0.npy"
    try:
        size = header_of(first).shape[:2]
    except InvalidInputError:
        # Nothing to see: whoever asks for the protocol before the files are there gets that of the papers.
        return True
    counts = tuple(len(_numbers(Path(root) / split / "image")[0]) for split in ("train", "val"))
    return size == layout.size and counts == layout.counts


def _numbers(folder: Path) -> tuple[list[int], list[str]]:
    """The numbers that name the files, in order, and the names that are no such numbers."""
    names = sorted(path.name for path in folder.glob("*.npy"))
    wrong = [name for name in names if not name[:-4].isdecimal() or name[:-4] != str(int(name[:-4]))]
    return sorted(int(name[:-4]) for name in names if name not in wrong), wrong


def _few(items: list[Any]) -> list[Any]:
    return items[:_SHOWN]


def _shape_problems(folder: Path, layout: SceneLayout, n: int) -> list[str]:
    problems: list[str] = []
    size: tuple[int, ...] | None = None
    for name, channels in layout.folders.items():
        found: list[str] = []
        for k in range(n):
            path = folder / name / f"{k}.npy"
            try:
                array = header_of(path)
            except InvalidInputError as error:
                found.append(str(error))
                continue
            if size is None and len(array.shape) == (2 if channels is None else 3):
                size = (array.shape[0], array.shape[1])
            sides = ("height", "width") if size is None else size
            expected = sides if channels is None else (*sides, channels)
            if array.shape != expected or array.dtype.kind not in "fiu":
                shape = ", ".join(map(str, expected))
                found.append(f"{path}: must be numbers of shape ({shape}), got {array.dtype} of {array.shape}")
            elif not all(array.shape):
                found.append(f"{path}: must have pixels, got an array of shape {array.shape}")
        problems += _few(found)
    return problems
