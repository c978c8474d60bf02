"""From a figure and its setting to the files: the picture, and the numbers beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtl_benchmarks.figures.drawing import new_figure, save
from mtl_benchmarks.paper_figures.registry import PaperFigure
from mtl_benchmarks.paper_figures.setting import Setting
from mtl_benchmarks.storage.files import make_directory, write_atomically
from mtl_benchmarks.storage.tables import table

__all__ = ["Drawn", "PictureFormat", "make_files"]

PictureFormat = Literal["png", "pdf", "svg"]


@dataclass(frozen=True)
class Drawn:
    """The files of a figure.

    Attributes:
        picture: the drawing.
        numbers: the table of what is drawn.
        said: what is drawn, and what was measured.
    """

    picture: Path
    numbers: Path
    said: str


def make_files(figure: PaperFigure, setting: Setting, out: Path, form: PictureFormat = "png") -> Drawn:
    """Train what is missing, draw, and write.

    Args:
        figure: which one.
        setting: what it is made in.
        out: the folder of the two files; made if it does not exist.
        form: ending of the picture.

    Raises:
        MissingExtraError: matplotlib is not installed; nothing was trained.
    """
    new_figure(1.0, 1.0)
    made = figure.make(setting)
    make_directory(out)
    numbers = out / f"{figure.name}.csv"
    write_atomically(numbers, table(made.header, made.rows))
    return Drawn(save(made.figure, out / f"{figure.name}.{form}"), numbers, made.said)
