"""Which figures a set of runs has data for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_benchmarks.comparison import Comparison, compare
from mtl_benchmarks.figures.drawing import save
from mtl_benchmarks.figures.learning import learning_curves
from mtl_benchmarks.figures.outcome import delta_by_task, has_front, time_and_measure
from mtl_benchmarks.figures.tasks import QUANTITIES, cosine_maps, has_cosines, has_quantity, over_time
from mtl_benchmarks.figures.teleports import has_teleports, teleport_effects
from mtl_benchmarks.figures.toy import by_label, toy_losses, toy_trajectories
from mtl_benchmarks.runs.runner import RunResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "draw_all", "gallery", "pictures_of"]


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn.

    Attributes:
        name: of its file, without the ending.
        caption: what it shows, for a page and for who cannot see it.
        draw: makes it.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


def gallery(runs: Sequence[RunResult], *, others: Sequence[RunResult] = ()) -> list[Picture]:
    """Every figure that the runs have data for.

    Args:
        runs: complete runs, of any benchmarks.
        others: more runs, in which to look for single-task baselines.
    """
    found = toy_pictures(runs)
    for comparison in compare(runs, others=others):
        found += pictures_of(comparison)
    return found


def toy_pictures(runs: Sequence[RunResult]) -> list[Picture]:
    """Paths and end points on the toy problem, which stand beside each other for all starts; one of each per scale."""
    # Its starts are cases, hence comparisons of their own, and belong into one picture.
    toys = [run for run in runs if run.config.benchmark.name == "toy"]
    found = []
    for scale in dict.fromkeys(run.config.benchmark.options["scale"] for run in toys):
        rows = by_label([run for run in toys if run.config.benchmark.options["scale"] == scale])
        about = f"the toy problem with factor {scale:g} on the first loss"
        found += [
            Picture(f"toy-scale-{scale:g}", f"Paths over {about}.", partial(toy_trajectories, rows)),
            Picture(
                f"toy-scale-{scale:g}-losses",
                f"Where the runs end in the space of the losses of {about}, beside its Pareto front.",
                partial(toy_losses, rows),
            ),
        ]
    return found


def pictures_of(comparison: Comparison) -> list[Picture]:
    """The figures of one comparison."""
    name, groups = comparison.file_name, comparison.full

    def picture(kind: str, caption: str, draw: Callable[[Comparison], Figure]) -> Picture:
        return Picture(f"{name}-{kind}", f"{comparison.title}: {caption}", partial(draw, comparison))

    found = []
    if comparison.baselines:
        caption = "how much worse than a model of its own each task has become, left of zero is better."
        found.append(picture("tasks", caption, delta_by_task))
    if has_front(comparison):
        found.append(picture("time", "what was reached against the training time of one run.", time_and_measure))
    found.append(picture("learning", "test metrics by epoch.", learning_curves))
    for key, about in QUANTITIES.items():
        if any(has_quantity(group, key) for group in groups):
            found.append(picture(f"{key}s", f"{about.text} by epoch.", partial(over_time, quantity=key)))
    if any(has_cosines(group) for group in groups):
        found.append(picture("cosine-map", "the cosine of every pair of task gradients.", cosine_maps))
    if any(has_teleports(group) for group in groups):
        found.append(picture("teleports", "every kept teleport, before against after.", teleport_effects))
    return found


def draw_all(runs: Sequence[RunResult], directory: Path, *, others: Sequence[RunResult] = ()) -> list[Path]:
    """Write every figure that the runs have data for.

    Args:
        runs: complete runs, of any benchmarks.
        directory: where the files go; made if it does not exist.
        others: more runs, in which to look for single-task baselines.

    Returns:
        The files written.
    """
    return [save(picture.draw(), directory / f"{picture.name}.png") for picture in gallery(runs, others=others)]
