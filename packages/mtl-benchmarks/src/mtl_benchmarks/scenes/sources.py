"""Where the folders of NYUv2 and CityScapes come from: fetched, or generated."""

from __future__ import annotations

import io
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy

from mtl_benchmarks.data_files import DataSource
from mtl_benchmarks.scenes.folders import Split, content_problems, folder_problems
from mtl_benchmarks.scenes.generated.rendering import Arrays, rendered_room, rendered_street
from mtl_benchmarks.scenes.layout import CITYSCAPES, NYUV2, SceneLayout
from mtl_benchmarks.scenes.npy import header_of
from mtl_benchmarks.storage.files import parsed, write_atomically
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.checks import positive_int
from mtl_core.checks import seed as checked_seed

__all__ = ["OfficialCityScapes", "OfficialNYUv2", "Rooms", "Streets"]

_SPLITS: tuple[Split, Split] = ("train", "val")
_MANIFEST = "generated.json"
_STRIDE = 32
_VERSION = 1
"""Of what is drawn: a folder that another version began is not continued."""


class _Folders(DataSource):
    """Folders in the layout of one of the data sets."""

    layout: ClassVar[SceneLayout]

    @property
    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """How many pictures there must be to train and to test on."""

    def problems(self, root: Path) -> Sequence[str]:
        """Missing, misnumbered, truncated and differently shaped files, then numbers out of range, then a wrong size.

        Args:
            root: the folder of the data; it need not exist.
        """
        # In this order as each presumes the one before: contents cannot be read where files are missing, and a size is
        # a size only where files have one.
        found = [problem for split in _SPLITS for problem in folder_problems(root, split, self.layout)]
        found = found or [problem for split in _SPLITS for problem in content_problems(root, split, self.layout)]
        return found or self._wrong_size(root)

    def _wrong_size(self, root: Path) -> list[str]:
        found = []
        for split, count in zip(_SPLITS, self.counts, strict=True):
            folder = root / split / "image"
            n = len(list(folder.glob("*.npy")))
            if n != count:
                found.append(f"{folder}: must hold {count} pictures, got {n}")
            size = header_of(folder / "0.npy").shape[:2]
            if size != self.size:
                found.append(f"{folder / '0.npy'}: must be {_by(self.size)} pixels, got {_by(size)}")
        return found

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""

    def _tree(self, root: Path) -> str:
        train, test = self.counts
        h, w = self.size
        shapes = {name: f"({h}, {w})" if c is None else f"({h}, {w}, {c})" for name, c in self.layout.folders.items()}
        lines = [f"  {root}/{{train,val}}/{name}/{{0,1,2,…}}.npy   {shape}" for name, shape in shapes.items()]
        return "\n".join(
            [*lines, f"  with {train} files in each folder of train and {test} in each of val (the test set)"]
        )


def _by(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


class _Official(_Folders):
    what: ClassVar[str]
    values: ClassVar[str]

    @property
    def counts(self) -> tuple[int, int]:
        """As in the papers."""
        return self.layout.counts

    @property
    def size(self) -> tuple[int, int]:
        """As in the papers."""
        return self.layout.size

    def instructions(self, root: Path) -> str:
        """What to fetch, and how it lies.

        Args:
            root: the folder of the data; it need not exist.
        """
        return (
            f"{self.layout.name}, {self.what}: the copy that the authors of MTAN prepared, as .npy files. The README "
            "of their repository, https://github.com/lorenmt/mtan, says where to get it; this project neither has "
            f"nor may pass on a copy, and knows no digests of it. Unpack it so that there are\n{self._tree(root)}\n"
            f"{self.values}"
        )


class OfficialNYUv2(_Official):
    """The papers' copy of NYUv2, which a person fetches: 795 rooms to train on and 654 to test on."""

    layout = NYUV2
    what = "13 classes, depth and surface normals at 288 × 384"
    values = (
        "Numbers are floats: colours from 0 to 1, labels from 0 to 12 and -1 for none, depth in metres and 0 where it "
        "was not measured, normals of length 1 and zero where there is none."
    )


class OfficialCityScapes(_Official):
    """The papers' copy of CityScapes, which a person fetches: 2,975 streets to train on and 500 to test on."""

    layout = CITYSCAPES
    what = "7 classes and inverse depth at 128 × 256"
    values = (
        "Numbers are floats: colours from 0 to 1, labels from 0 to 6 and -1 for none, inverse depth from 0 to 0.4922 "
        "and 0 where it was not measured. Its folders label_2 and label_19 are not read."
    )


class _Generated(_Folders):
    """Scenes made here.

    Args:
        train: pictures to train on.
        test: pictures to test on, in the folder ``val``.
        height: of a picture, a multiple of 32.
        width: of a picture, a multiple of 32.
        data_seed: of everything in them.
    """

    kind: ClassVar[str]
    rendered: ClassVar[Callable[..., Arrays]]

    def __init__(
        self, *, train: int = 400, test: int = 100, height: int = 64, width: int = 96, data_seed: int = 0
    ) -> None:
        self.train = positive_int("train", train)
        self.test = positive_int("test", test)
        for name, side in (("height", height), ("width", width)):
            if type(side) is not int or side < _STRIDE or side % _STRIDE:
                raise InvalidParameterError(
                    f"`{name}` must be a multiple of {_STRIDE}, which the networks halve five times, got {side!r}."
                )
        self.height, self.width = height, width
        self.data_seed = checked_seed("data_seed", data_seed)

    @property
    def counts(self) -> tuple[int, int]:
        """As asked for."""
        return self.train, self.test

    @property
    def size(self) -> tuple[int, int]:
        """As asked for."""
        return self.height, self.width

    def picture(self, split: int, index: int) -> Arrays:
        """One picture with its maps, a function of the seed, the split (0: to train on) and the number."""
        return self.rendered(self.height, self.width, seed=self.data_seed, split=split, index=index)

    def instructions(self, root: Path) -> str:
        """What is made, and how it lies.

        Args:
            root: the folder of the data; it need not exist.
        """
        return (
            f"{self.kind.capitalize()} are generated here, in the folders of {self.layout.name}; there is nothing to "
            f"fetch:\n{self._tree(root)}"
        )

    def write(self, root: Path, said: Callable[[str], None]) -> None:
        """Draw the pictures that are not there yet.

        Each file appears whole or not at all, and is a function of the seed, so that a broken-off command is simply
        given again.

        Args:
            root: the folder of the data; it is made if it does not exist.
            said: called with a line of text now and then.

        Raises:
            InvalidInputError: the folder holds something else, or pictures of another seed or size.
        """
        self._claim(root)
        for number, (split, count) in enumerate(zip(_SPLITS, self.counts, strict=True)):
            for name in self.layout.folders:
                (root / split / name).mkdir(parents=True, exist_ok=True)
            missing = [k for k in range(count) if not all(p.exists() for p in self._files(root, split, k).values())]
            for done, index in enumerate(missing, start=1):
                arrays = self.picture(number, index)
                for name, path in self._files(root, split, index).items():
                    content = io.BytesIO()
                    numpy.save(content, arrays[name], allow_pickle=False)
                    # Not flushed to the disk: what a power cut damages is named by `problems` and can be drawn again.
                    write_atomically(path, content.getvalue(), durable=False)
                if done % 100 == 0 or done == len(missing):
                    said(f"{root / split}: {done} of {len(missing)} {self.kind} drawn")

    def _files(self, root: Path, split: Split, index: int) -> dict[str, Path]:
        return {name: root / split / name / f"{index}.npy" for name in self.layout.folders}

    def _claim(self, root: Path) -> None:
        """Note whose folder it is, or make sure that it is one of these very pictures."""
        own: Mapping[str, Any] = {
            "made": self.kind, "version": _VERSION, "height": self.height, "width": self.width, "seed": self.data_seed
        }  # fmt: skip
        note = root / _MANIFEST
        if not note.exists():
            if root.exists() and any(root.iterdir()):
                raise InvalidInputError(
                    f"`--root` must be a new or empty folder, or one that {self.kind} were written to before, got "
                    f"{root} with other files."
                )
            root.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
            return
        try:
            found = parsed(note.read_bytes())
        except ValueError:
            found = None
        if found != own:
            raise InvalidInputError(
                f"{note} must be of the same {self.kind}, {json.dumps(own)}, got {json.dumps(found)}. Choose another "
                "folder for pictures of another size or seed."
            )


class Rooms(_Generated):
    """Generated rooms in the folders of NYUv2: boxes, planes and balls by ray casting, with thirteen classes.

    Depth and normals are exact; depth is missing on windows, screens, outlines and in blotches, and labels along the
    rim and about half of the outlines. What is learned here holds for these rooms and for no photograph.

    Args:
        train: pictures to train on.
        test: pictures to test on, in the folder ``val``.
        height: of a picture, a multiple of 32.
        width: of a picture, a multiple of 32.
        data_seed: of everything in them.
    """

    layout = NYUV2
    kind = "rooms"
    rendered = staticmethod(rendered_room)


class Streets(_Generated):
    """Generated streets in the folders of CityScapes: boxes and balls by ray casting, with seven classes.

    Inverse depth is exact where it is valid; it is missing in the sky, near the camera, along most outlines and in
    blotches, and labels along the rim, on the bonnet and about half of the outlines. What is learned here holds for
    these streets and for no photograph.

    Args:
        train: pictures to train on.
        test: pictures to test on, in the folder ``val``.
        height: of a picture, a multiple of 32.
        width: of a picture, a multiple of 32.
        data_seed: of everything in them.
    """

    layout = CITYSCAPES
    kind = "streets"
    rendered = staticmethod(rendered_street)
