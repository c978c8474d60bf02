"""Values printed in papers: one tidy table with its loader, and the single-task baselines in it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from mtl_benchmarks.metrics import Baseline, Metric
from mtl_benchmarks.protocol.training import Training
from mtl_core import UnknownNameError
from mtl_core.extension import plain_name

__all__ = [
    "PUBLISHED_METRICS",
    "PublishedTable",
    "PublishedValue",
    "printed_baselines",
    "published_table",
    "published_values",
]

_SINGLE_TASK = ("Independent", "STL")


@dataclass(frozen=True)
class PublishedValue:
    """One number of one table of one paper.

    Attributes:
        paper: the paper's short name, such as ``"COST"``.
        table: such as ``"Table 2"``.
        dataset: as the table names it.
        method: the row, as the table names it.
        metric: the column, with its unit in the name.
        value: the number.
        higher_is_better: its direction.
    """

    paper: str
    table: str
    dataset: str
    method: str
    metric: str
    value: float
    higher_is_better: bool


_OTHER_NAMES = {
    "uncertainty": "uw",
    "nash": "nashmtl",
    "cost": "fairgrad + cost",
    "independent": "single task",
    "stl": "single task",
}
"""Where a table calls a row otherwise than we do. COST's own rows are FairGrad with COST."""

_RERUN = ("-R", " (rerun)")
"""At the end of a name: its method, run again by the authors of the table."""


@dataclass(frozen=True)
class PublishedTable:
    """A published table that a benchmark declares as its own: same data, same metrics.

    Args:
        paper: as :func:`published_table` takes it.
        table: as printed.
        dataset: as printed.
        metrics: the benchmark's metric → the name that is printed for it, in the same unit and direction.
        errors: what is known to be wrong with the printed table, one sentence each.
        options: options of the benchmark under which it is the printed experiment, where they are not its defaults.
        training: the protocol of the printed experiment; None: the benchmark's own.
    """

    paper: str
    table: str
    dataset: str
    metrics: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training | None = None

    @property
    def source(self) -> str:
        """Paper and table."""
        return f"{self.paper}, {self.table}, {self.dataset}"

    def rows(self) -> dict[str, dict[str, float]]:
        """Printed method → printed metric → value.

        Raises:
            UnknownNameError: there is no such table; lists the stored ones.
        """
        return published_table(self.paper, self.table, self.dataset)

    def labels(self) -> dict[str, str]:
        """Printed method → how our tables label such a run; ``"single task"`` for models of one task each.

        Example:
            >>> labels = PublishedTable("COST", "Table 1", "CityScapes").labels()
            >>> [labels[name] for name in ("Independent", "Uncertainty", "Nash-MTL", "COST")]
            ['single task', 'uw', 'nashmtl', 'fairgrad + cost']
            >>> PublishedTable("COST", "Table 5", "CityScapes").labels()["Nash-MTL-R + COST"]
            'nashmtl + cost'
        """
        return {printed: _own_label(printed) for printed in self.rows()}


def _own_label(printed: str) -> str:
    words = [_own_name(word) for word in printed.split(" + ")]
    return _OTHER_NAMES.get(words[0], words[0]) if len(words) == 1 else " + ".join(words)


def _own_name(printed: str) -> str:
    for mark in _RERUN:
        printed = printed.removesuffix(mark)
    name = plain_name(printed)
    return name if name == "cost" else _OTHER_NAMES.get(name, name)


def _dense_prediction(task: str, *metrics: tuple[str, str, bool]) -> tuple[Metric, ...]:
    return tuple(Metric(name, task, unit, higher_is_better=better) for name, unit, better in metrics)


_SEGMENTATION = _dense_prediction("semantic", ("mIoU", "%", True), ("PixAcc", "%", True))
_NORMAL = _dense_prediction(
    "normal",
    ("NormalMean", "°", False),
    ("NormalMedian", "°", False),
    ("Within11.25", "%", True),
    ("Within22.5", "%", True),
    ("Within30", "%", True),
)

PUBLISHED_METRICS: dict[str, tuple[Metric, ...]] = {
    "NYUv2": (
        *_SEGMENTATION,
        *_dense_prediction("depth", ("AbsErr", "m", False), ("RelErr", "", False)),
        *_NORMAL,
    ),
    "CityScapes": (*_SEGMENTATION, *_dense_prediction("depth", ("AbsErr", "", False), ("RelErr", "", False))),
}
"""The metrics behind the published Δm and mean rank, per dataset. CityScapes' depth is an inverse depth without a
unit, and its relative error is not a percentage."""


def published_values() -> tuple[PublishedValue, ...]:
    """All stored values, in the order of the papers' tables.

    Example:
        >>> len(published_values())
        1089
    """
    text = resources.files("mtl_benchmarks").joinpath("data/published.csv").read_text(encoding="utf-8")
    return tuple(
        PublishedValue(
            row["paper"],
            row["table"],
            row["dataset"],
            row["method"],
            row["metric"],
            float(row["value"]),
            row["higher_is_better"] == "true",
        )
        for row in csv.DictReader(text.splitlines())
    )


def published_table(paper: str, table: str, dataset: str) -> dict[str, dict[str, float]]:
    """One table as method → metric name → value.

    Args:
        paper: ``"COST"``, ``"COST-appendix"``, ``"IMGrad-appendix"`` or ``"MARIGOLD"``.
        table: as printed, e.g. ``"Table 1"``.
        dataset: as printed, e.g. ``"CityScapes"``.

    Raises:
        UnknownNameError: there is no such table; lists the stored ones.

    Example:
        >>> published_table("COST", "Table 1", "CityScapes")["COST"]["DeltaM_pct"]
        4.3
    """
    rows = published_values()
    chosen: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row.paper, row.table, row.dataset) == (paper, table, dataset):
            chosen.setdefault(row.method, {})[row.metric] = row.value
    if not chosen:
        stored = dict.fromkeys(f"{row.paper} {row.table} {row.dataset}" for row in rows)
        raise UnknownNameError("published table", f"{paper} {table} {dataset}", stored)
    return chosen


def printed_baselines(dataset: str) -> tuple[Baseline, ...]:
    """Single-task values that the papers of this field print and copy, with unit, direction and source.

    Args:
        dataset: ``"NYUv2"`` or ``"CityScapes"``.

    Raises:
        UnknownNameError: no single-task row is stored for this dataset.

    Example:
        >>> [baseline.value for baseline in printed_baselines("CityScapes")]
        [74.01, 93.16, 0.0125, 27.77]
    """
    if dataset not in PUBLISHED_METRICS:
        raise UnknownNameError("dataset with printed baselines", dataset, PUBLISHED_METRICS)
    sources = {"NYUv2": ("MARIGOLD", "Table 1"), "CityScapes": ("MARIGOLD", "Table 2")}
    paper, table = sources[dataset]
    rows = published_table(paper, table, dataset)
    single = next(rows[name] for name in _SINGLE_TASK if name in rows)
    return tuple(
        Baseline(metric, single[metric.name], f"{paper}, {table}, row of single-task learning")
        for metric in PUBLISHED_METRICS[dataset]
    )
