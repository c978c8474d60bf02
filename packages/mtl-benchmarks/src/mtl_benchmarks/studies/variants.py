"""The variants of a teleport that an ablation compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import ADAPTERS, TRIGGERS
from mtl_core import UnknownNameError

__all__ = ["ALONE", "CONTROL", "DEFAULT", "PARTS_OF_ABLATION", "Variant", "variants"]

ALONE, DEFAULT, CONTROL = "alone", "default", "random move, same lengths"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: its heading.
        teleport: with the options that differ from the benchmark's own; None for the method alone.
        like: the variant whose moves a random control is to match in length.
    """

    name: str
    teleport: Choice | None
    like: str | None = None


def _cost(name: str, **options: Any) -> Variant:
    return Variant(name, Choice("cost", options))


def _terms() -> list[Variant]:
    return [
        # Held at the mean over the probe batches, as the paper does; held at its own value each loss would stay put.
        _cost("L_t only", search="penalty", reference="loader", gain_weight=0.0, aim=None, htr="keep"),
        _cost("L_g only", drift_weight=0.0, aim=None, max_drift=None, htr="keep"),
        _cost("L_t and L_g", htr="keep"),
        _cost("L_t, L_g and HTR as printed", htr="paper"),
        _cost("L_t, L_g and HTR as released", htr="released"),
        _cost("L_t, L_g and a conflict term", conflict_weight=1.0),
    ]


def _triggers() -> list[Variant]:
    named = [_cost(f"trigger {name}", trigger=Choice(name)) for name in TRIGGERS.names() if name != "majority"]
    sweep = (0.25, 0.5, 0.75)
    return named + [_cost(f"trigger majority {f:g}", trigger=Choice("majority", {"fraction": f})) for f in sweep]


def _adapters() -> list[Variant]:
    return [_cost(f"adapter {name}", adapter=Choice(name)) for name in ADAPTERS.names() if not name.startswith("peft")]


def _sharpness() -> list[Variant]:
    return [_cost(f"sharpness {kind}", sharpness=kind) for kind in ("random", "ascent", "exact")]


PARTS_OF_ABLATION: Mapping[str, Callable[[], list[Variant]]] = {
    "terms": _terms,
    "triggers": _triggers,
    "adapters": _adapters,
    "sharpness": _sharpness,
}
"""What can be varied."""


def variants(parts: Sequence[str]) -> tuple[Variant, ...]:
    """The rows of a table: the method alone, the default, the variants of each part, and the random control.

    Args:
        parts: names out of ``PARTS_OF_ABLATION``; one that is named twice counts once.

    Raises:
        UnknownNameError: a name that is none of them.

    Example:
        >>> [variant.name for variant in variants(["sharpness"])]
        ['alone', 'default', 'sharpness random', 'sharpness ascent', 'sharpness exact', 'random move, same lengths']
    """
    rows = [Variant(ALONE, None), _cost(DEFAULT)]
    for part in dict.fromkeys(parts):
        if part not in PARTS_OF_ABLATION:
            raise UnknownNameError("part of a teleport", part, PARTS_OF_ABLATION)
        rows += PARTS_OF_ABLATION[part]()
    return (*rows, Variant(CONTROL, Choice("random"), like=DEFAULT))
