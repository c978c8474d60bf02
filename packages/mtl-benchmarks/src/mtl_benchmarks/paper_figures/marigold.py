"""How sensitive MARIGOLD is to its settings.

Chen et al., *Feed m Birds with One Scone: Accelerating Multi-task Gradient Balancing via Bi-level Optimization*.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from mtl_benchmarks.components.options import Choice, option_defaults
from mtl_benchmarks.configuration.making import method_class
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
    rows = [
        (option or base.name, value if option else "", seed, m) for (option, value, seed), m in found.values.items()
    ]
    alone = {seed: found.values["", 0.0, seed] for seed in setting.seeds}
    # The seeds differ more than the settings do: what is drawn is taken seed by seed.
    columns: dict[str, dict[float | str, list[float]]] = {
        _NAMES[option]: {
            value: [found.values[option, value, seed] - alone[seed] for seed in setting.seeds] for value in values
        }
        for option, values in _VALUES.items()
    }
    figure = estimates_figure(
        columns,
        ylabel=f"{found.label.partition(',')[0]}, minus that of {base.name}",
        log=True,
        chosen={_NAMES[option]: own[option] for option in _VALUES},
        reference=[0.0],
        named=base.name,
    )
    told = []
    for option, text in _NAMES.items():
        means = [statistics.fmean(values) for values in columns[text].values()]
        told.append(f"{option} {min(means):+.2f} to {max(means):+.2f}")
    own_value = statistics.fmean(alone.values())
    said = (
        f"{found.label}, means of {len(setting.seeds)} seeds against {base.name} ({own_value:.2f}) seed by seed, "
        f"from the least to the largest over each setting: {', '.join(told)}"
    )
    return Made(figure, ("setting", "value", "seed", found.label), rows, said)
