"""From a figure and its setting to the files: the picture, and the numbers beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from mtl_aggregators import Facts
from mtl_benchmarks.configuration.making import make_method, resolve_method
from mtl_benchmarks.configuration.naming import by_label, method_label
from mtl_benchmarks.figures.drawing import new_figure, save
from mtl_benchmarks.paper_figures.registry import PaperFigure
from mtl_benchmarks.paper_figures.setting import Setting
from mtl_benchmarks.storage.files import write_atomically
from mtl_benchmarks.storage.output import writable_file
from mtl_benchmarks.storage.tables import table
from mtl_core import InvalidInputError
from mtl_core.extension import is_loss_weighting, offers

__all__ = ["Drawn", "PictureFormat", "make_files"]

PictureFormat = Literal["png", "pdf", "svg"]


@runtime_checkable
class DeclaresFacts(Protocol):
    """A method that says what it needs, as those of ``mtl_aggregators`` do."""

    @property
    def facts(self) -> Facts:
        """What the method declares about itself."""


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
        InvalidInputError: a method does not do for the figure.
        ResultsDirectoryError: the files cannot be written.
    """
    new_figure(1.0, 1.0)
    by_label("methods", setting.methods, method_label, setting.say)
    if figure.on_gradients:
        _refuse_loss_methods(figure, setting)
    numbers, picture = out / f"{figure.name}.csv", out / f"{figure.name}.{form}"
    for file in (numbers, picture):
        writable_file("out", file)
    made = figure.make(setting)
    write_atomically(writable_file("out", numbers), table(made.header, made.rows))
    return Drawn(save(made.figure, picture), numbers, made.said)


def _refuse_loss_methods(figure: PaperFigure, setting: Setting) -> None:
    """Refuse, before anything is trained, methods of whose steps there are no task gradients."""
    for label, choice in setting.labels.items():
        method = make_method(resolve_method(choice), None, seed=0)
        if is_loss_weighting(method) or (offers(method, DeclaresFacts) and method.facts.needs == "losses"):
            raise InvalidInputError(
                f"`--methods` must look at task gradients for {figure.name}, got {label}, which looks at losses. Give "
                f"others, such as {', '.join(figure.methods)}."
            )
