"""What was found out in a simulator, kept in the user's cache under its version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy

from mtl_benchmarks.cache import cache_folder, held_in, read_arrays, write_arrays
from mtl_benchmarks.worlds.rollouts import METAWORLD
from mtl_core import MissingExtraError

__all__ = ["kept", "read_kept"]

Made = TypeVar("Made")

_VERSION = 2
"""Of what is kept, and of how episodes are played."""


def kept(
    kind: str,
    settings: str,
    collect: Callable[[], dict[str, numpy.ndarray]],
    make: Callable[[Mapping[str, numpy.ndarray]], Made],
    *,
    world: str,
) -> Made:
    """What is made of arrays from the cache, or of arrays that are collected now and kept.

    Args:
        kind: what they are.
        settings: what they depend on, beside the simulator.
        collect: gives the arrays.
        make: takes them; raises ``KeyError``, ``TypeError`` or ``ValueError`` where they are not what they are to be.
        world: the simulator, as ``package.module:Class``.

    Raises:
        MissingExtraError: the simulator is Meta-World and not installed.
        InvalidInputError: the file in the cache is damaged or of another version.
    """
    found = read_kept(kind, settings, make, world=world)
    if found is not None:
        return found
    path, layout = _place(kind, settings, world)
    arrays = collect()
    write_arrays(path, arrays, layout=layout)
    return make(arrays)


def read_kept(
    kind: str, settings: str, make: Callable[[Mapping[str, numpy.ndarray]], Made], *, world: str
) -> Made | None:
    """As :func:`kept`, or None where nothing is kept; raises what that raises."""
    path, layout = _place(kind, settings, world)
    arrays = read_arrays(path, layout=layout)
    if arrays is None:
        return None
    with held_in(path, kind):
        return make(arrays)


def _place(kind: str, settings: str, world: str) -> tuple[Path, str]:
    simulator = _simulator(world)
    name = f"mt10-{kind}-{simulator.replace(' ', '').replace(':', '.')}-{settings}.npz"
    # Simulator, its version and all settings in the name: another version of it gives other episodes.
    return cache_folder() / name, f"{kind} of {simulator}, {settings}, version {_VERSION}"


def _simulator(world: str) -> str:
    """The simulator with its version, as far as it is known to have one."""
    if world != METAWORLD:
        return world
    try:
        return f"metaworld {metadata.version('metaworld')}"
    except metadata.PackageNotFoundError:
        raise MissingExtraError("the MT10 benchmark", "mtl-benchmarks[mt10]") from None
