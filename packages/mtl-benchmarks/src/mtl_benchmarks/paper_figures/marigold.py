"""How sensitive MARIGOLD is to its settings.

Chen et al., *Feed m Birds with One Scone: Accelerating Multi-task Gradient Balancing via Bi-level Optimization*.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from mtl_benchmarks.components.making import method_class
from mtl_benchmarks.components.options import Choice, option_defaults
from mtl_benchmarks.figures.sweeps import estimates_figure
from mtl_benchmarks.paper_figures.setting import Made, Setting

__all__ = ["sensitivity"]

_VALUES: Mapping[str, tuple[float, ...]] = {
    "beta": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "radius": (1e-4, 1e-3, 1e-2, 1e-1),
    "lr": (1e-5, 1e-4, 1e-3, 1e-2),
}
_NAMES = {"beta": "β, temperature", "radius": "r, radius of the perturbation", "lr": "lr of the weights"}


def sensitivity(setting: Setting) -> Made:
    """One setting varied at a time, the others at their defaults, beside equal weights."""
    method, *rest = setting.methods
    base = rest[0] if rest else Choice("ls")
    own = {**option_defaults(method_class(method.name)), **method.options}
    planned = {
        (option, value, seed): setting.config(Choice(method.name, {**method.options, option: value}), seed=seed)
        for option, values in _VALUES.items()
        for value in values
        for seed in setting.seeds
    }
    planned |= {("", 0.0, seed): setting.config(base, seed=seed) for seed in setting.seeds}
    found = setting.measured(planned)
    rows: list[tuple[Any, ...]] = []
    columns: dict[str, dict[float | str, list[float]]] = {}
    alone: list[float] = []
    for (option, value, seed), measure in found.values.items():
        rows.append((option or base.name, value if option else "", seed, measure))
        if option:
            columns.setdefault(_NAMES[option], {}).setdefault(value, []).append(measure)
        else:
            alone.append(measure)
    figure = estimates_figure(
        columns,
        ylabel=found.label,
        log=True,
        chosen={_NAMES[option]: own[option] for option in _VALUES},
        reference=alone,
        named=base.name,
    )
    told = []
    for option, text in _NAMES.items():
        means = {value: statistics.fmean(values) for value, values in columns[text].items()}
        told.append(f"{option} {min(means.values()):.2f} to {max(means.values()):.2f}")
    said = (
        f"{found.label}, means of {len(setting.seeds)} seeds, from the least to the largest over each setting: "
        f"{', '.join(told)}; {base.name} {statistics.fmean(alone):.2f}"
    )
    return Made(figure, ("setting", "value", "seed", found.label), rows, said)
