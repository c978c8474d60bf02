"""What was found out in a simulator, kept in the user's cache under its version."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy

from mtl_benchmarks.cache import cache_folder, read_arrays, write_arrays
from mtl_benchmarks.worlds.rollouts import METAWORLD
from mtl_core import MissingExtraError

__all__ = ["kept", "read_kept"]

_VERSION = 2
"""Of what is kept, and of how episodes are played."""


def kept(
    kind: str, settings: str, collect: Callable[[], dict[str, numpy.ndarray]], *, world: str
) -> dict[str, numpy.ndarray]:
    """Arrays from the cache, or collected now and kept.

    Args:
        kind: what they are.
        settings: what they depend on, beside the simulator.
        collect: makes them.
        world: the simulator, as ``package.module:Class``.

    Raises:
        MissingExtraError: the simulator is Meta-World and not installed.
        InvalidInputError: the file in the cache is damaged or of another version.
    """
    path, layout = _place(kind, settings, world)
    found = read_arrays(path, layout=layout)
    if found is None:
        found = collect()
        write_arrays(path, found, layout=layout)
    return found


def read_kept(kind: str, settings: str, *, world: str) -> dict[str, numpy.ndarray] | None:
    """As :func:`kept`, or None where nothing is kept; raises what that raises."""
    path, layout = _place(kind, settings, world)
    return read_arrays(path, layout=layout)


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
