"""The colours of the whole project, and the one place where a thing gets its look.

A method has a hue and a dash, a teleport changes their shade and adds a marker, a task has a colour by its place in the
benchmark: so a curve looks the same in every figure. Hues are those of Okabe and Ito and of Tol's *bright* scheme,
which people with any kind of colour blindness tell apart; where colour alone would not do, dash, marker or position
helps.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig

__all__ = [
    "ACCENT",
    "DIVERGING",
    "INK",
    "MANY_TASKS",
    "MUTED",
    "SEQUENTIAL",
    "SUBTLE",
    "Style",
    "method_style",
    "run_styles",
    "task_colour",
]

INK = "#222222"
"""Text, axes, what is neither method nor task."""
MUTED = "#8A8A8A"
"""What stands behind: a state before, a zero line, a reference."""
SUBTLE = "#D9D9D9"
"""Grids and connecting lines."""
ACCENT = "#0072B2"
"""What is new: a state after, a move."""
SEQUENTIAL = "cividis"
"""Colour map of quantities that begin at zero."""
DIVERGING = "RdBu"
"""Colour map of cosines: red against each other, blue with each other."""
MANY_TASKS = 8
"""Up to so many tasks are lines, more are rows of a heat map."""

_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 2)),
    (0, (6, 2, 1.5, 2)),
    (0, (1.5, 1.5)),
    (0, (9, 2, 1.5, 2, 1.5, 2)),
    (0, (3, 1)),
)
# Those that are often drawn together come first, so that seven of them differ in hue. New names are added at the end.
_METHODS = (
    *("ls", "fairgrad", "mgda", "cagrad", "nashmtl", "famo", "marigold"),
    *("upgrad", "pcgrad", "imtlg", "uw", "imgrad", "dwa", "si"),
    *("sdmgrad", "moco", "rlw", "graddrop", "gradvac", "alignedmtl", "config"),
    *("modo", "imtl", "imtll", "gls", "gradnorm", "stch", "dualproj"),
    *("dbmtl", "excessmtl", "crmogm", "krum", "trimmedmean", "pcd", "pbi"),
    *("cosmos",),
)
_TASKS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#888888", "#222222")
# teleport → lightness of the hue, markers: the first, then those of others with the same name and other options
_ALONE = ("o", "8", "H", "*")
_TELEPORTS: dict[str, tuple[float, tuple[str, ...]]] = {
    "cost": (0.6, ("^", "v", ">", "<")),
    "random": (1.45, ("s", "D", "p", "d")),
}
_OTHERS = (("X", "P", "*", "h"), ("P", "X", "h", "*"), ("h", "*", "X", "P"), ("*", "h", "P", "X"))


@dataclass(frozen=True)
class Style:
    """How something is drawn.

    Attributes:
        colour: hexadecimal.
        dash: of its lines, as matplotlib takes it.
        marker: of its points.
    """

    colour: str
    dash: Any
    marker: str


def method_style(method: str, teleport: str | None = None, *, twin: int = 0, teleport_twin: int = 0) -> Style:
    """How a method is drawn, alone or with a teleport.

    Args:
        method: its registered name, or ``package.module:Class``; a name that is not known here has a look of its own
            by its letters.
        teleport: likewise, or None.
        twin: number among several with the same names, which differ in options; they differ in dash.
        teleport_twin: number among the teleports of this name, likewise; they differ in marker.

    Example:
        >>> method_style("ls").colour == method_style("ls", twin=1).colour
        True
        >>> method_style("ls") == method_style("ls", "cost")
        False
    """
    # crc32 and not `hash`, which differs from process to process: a method would change its colour between two figures.
    place = _METHODS.index(method) if method in _METHODS else zlib.crc32(method.encode())
    hue, dash = _HUES[place % len(_HUES)], _DASHES[(place // len(_HUES) + twin) % len(_DASHES)]
    if teleport is None:
        return Style(hue, dash, _ALONE[twin % len(_ALONE)])
    own = _OTHERS[zlib.crc32(teleport.encode()) % len(_OTHERS)]
    lightness, markers = _TELEPORTS.get(teleport, (0.8, own))
    return Style(_with_lightness(hue, lightness), dash, markers[teleport_twin % len(markers)])


def run_styles(configs: Sequence[RunConfig]) -> list[Style]:
    """The look of each, all different where their methods, teleports or options are.

    A teleport with the same options has the same marker whatever method it stands beside.
    """
    teleports: dict[str, list[Choice]] = {}
    seen: dict[tuple[str, str | None], int] = {}
    styles = []
    for config in configs:
        number = 0
        if config.teleport is not None:
            known = teleports.setdefault(config.teleport.name, [])
            if config.teleport not in known:
                known.append(config.teleport)
            number = known.index(config.teleport)
        key = (config.method.name, None if config.teleport is None else config.teleport.name)
        styles.append(method_style(*key, twin=seen.get(key, 0), teleport_twin=number))
        seen[key] = seen.get(key, 0) + 1
    return styles


def task_colour(place: int) -> str:
    """The colour of a task, by its place among all tasks of its benchmark; drawn as lines they are at most eight."""
    return _TASKS[place % len(_TASKS)]


def _with_lightness(colour: str, factor: float) -> str:
    """The same hue, darker for a factor below 1 and lighter above it."""
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    lightness = lightness * factor if factor <= 1 else 1 - (1 - lightness) / factor
    return "#" + "".join(f"{round(255 * c):02X}" for c in colorsys.hls_to_rgb(hue, lightness, saturation))
