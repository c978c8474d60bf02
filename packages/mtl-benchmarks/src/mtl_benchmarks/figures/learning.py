"""What was learned, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtl_benchmarks.comparison import Comparison, Group
from mtl_benchmarks.figures.drawing import curve, grid, headed, key_below, panels, time_axis
from mtl_benchmarks.figures.palette import run_styles
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Series", "Timeline", "heading", "learning_curves", "series_of", "timeline"]

Series = dict[tuple[str, str, str], list[float]]
"""(split, metric, task) → value per evaluation. Where a metric is no single task's, the task is empty."""


@dataclass(frozen=True)
class Timeline:
    """Where the evaluations of a run stand.

    Attributes:
        unit: ``"epoch"`` where there is one evaluation at most in each, else ``"step"``.
        at: their places, rising.
    """

    unit: str
    at: tuple[int, ...]


def series_of(run: RunResult) -> Series:
    """What a run has recorded at its evaluations."""
    found: Series = {}
    for row in RunDirectory.existing(run.directory).read_metrics():
        found.setdefault((row["split"], row["metric"], row["task"]), []).append(float(row["value"]))
    return found


def timeline(runs: Iterable[RunResult]) -> Timeline:
    """Where the evaluations of runs of one protocol stand: those of the one that went on longest."""
    places = [
        list(dict.fromkeys((int(row["epoch"]), int(row["step"])) for row in directory.read_metrics()))
        for directory in (RunDirectory.existing(run.directory) for run in runs)
    ]
    longest = max(places, key=len)
    epochs = tuple(epoch for epoch, _ in longest)
    if len(set(epochs)) == len(epochs):
        return Timeline("epoch", epochs)
    return Timeline("step", tuple(step for _, step in longest))


def heading(metric: Metric) -> str:
    """Name, unit and direction of a metric."""
    arrow = "↑" if metric.higher_is_better else "↓"
    unit = f" [{metric.unit}]" if metric.unit else ""
    return f"{metric.name.replace('_', ' ')}{unit} {arrow}"


def learning_curves(comparison: Comparison) -> Figure:
    """Test metrics per epoch and, where it is known, how often dominated conflict occurred.

    Lines are means over seeds, bands go from the smallest to the largest.

    Args:
        comparison: its multi-task groups are drawn; without any, its single-task groups.
    """
    groups = comparison.full or comparison.groups
    shown: list[tuple[tuple[str, str, str], str]] = [
        (("test", metric.name, metric.task), heading(metric)) for metric in comparison.metrics
    ]
    shown += [
        (("train", "dominated_conflict", ""), "share of steps with dominated conflict"),
        (("train", "imbalance", ""), "largest / smallest gradient norm"),
    ]
    series = [[series_of(run) for run in group.runs] for group in groups]
    shown = [(key, text) for key, text in shown if any(key in each for runs in series for each in runs)]
    places = timeline(run for group in groups for run in group.runs)
    figure, axes = panels(len(shown))
    styles = run_styles([group.config for group in groups])
    for panel, (key, text) in zip(axes, shown, strict=True):
        for number, (group, runs) in enumerate(zip(groups, series, strict=True)):
            shift = 0.1 * (number - (len(groups) - 1) / 2)
            curves = [each[key] for each in runs if key in each]
            curve(panel, places.at, curves, styles[number], group.label, shift=shift)
        panel.set_title(text)
        time_axis(panel, places.at, places.unit)
        grid(panel)
    headed(figure, f"{comparison.title}: test metrics by {places.unit}{_of_seeds(groups)}")
    key_below(figure, axes)
    return figure


def _of_seeds(groups: Sequence[Group]) -> str:
    counts = {len(group.runs) for group in groups}
    if counts == {1}:
        return ", one seed"
    return f", means of {'–'.join(map(str, sorted({min(counts), max(counts)})))} seeds, bands from least to most"
