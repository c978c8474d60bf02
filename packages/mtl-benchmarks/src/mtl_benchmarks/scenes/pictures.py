"""The pictures of a split, ready to be trained on."""

from __future__ import annotations

from pathlib import Path

from mtl_benchmarks.scenes.folders import SceneFolder, Split, looked_through
from mtl_benchmarks.scenes.layout import SceneLayout, Scenes
from mtl_core import InvalidInputError

__all__ = ["Pictures"]

_KEPT = 2**28
"""Bytes of pictures and maps up to which a split is read once and kept: 1,700 generated rooms of 64 × 96."""


class Pictures:
    """A split whose files have all been looked at; a small one is kept in memory.

    Args:
        root: the data set's folder.
        split: which part of it.
        layout: which data set it is.

    Attributes:
        size: height and width of the pictures.

    Raises:
        InvalidInputError: something is wrong with the files; all that is wrong is named.
    """

    def __init__(self, root: Path, split: Split, layout: SceneLayout) -> None:
        self._folder = SceneFolder(root, split, layout)
        channels = sum(c or 1 for c in layout.folders.values())
        self.size = self._folder.size
        height, width = self.size
        self._is_small = len(self._folder) * height * width * channels * 4 <= _KEPT
        self._kept, problems = looked_through(self._folder, keep=self._is_small)
        if problems:
            raise InvalidInputError(f"`root` must hold {layout.name}, got: {'; '.join(problems)}")

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> Scenes:
        return self._kept[index] if self._is_small else self._folder.read(index)
