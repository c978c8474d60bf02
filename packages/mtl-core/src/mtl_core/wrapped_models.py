"""Models that are wrapped for data parallelism, which task gradients go past."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import nn

from mtl_core.errors import InvalidInputError

__all__ = ["refuse_wrapped"]

_WRAPPERS = frozenset(
    {
        "DDP",  # what torch.distributed's composable replicate() puts under a module's class
        "DataParallel",
        "DistributedDataParallel",
        "FullyShardedDataParallel",
        "ShardedDataParallel",
        "DeepSpeedEngine",
    }
)
"""Names of the classes, of torch and others, that average or shard gradients inside ``backward()``."""


def refuse_wrapped(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Make sure that no module of a model, however deep, is wrapped for data parallelism.

    Such a wrapper averages the gradients of one ``backward()``. Gradients that are taken task by task go past it: each
    rank would step on its own and the ranks' parameters would drift apart without an error.

    Args:
        modules: every module of the model, by its name.

    Raises:
        InvalidInputError: naming the module.
    """
    for name, module in modules:
        kind: Any = type(module)
        found = _wrapper(kind)
        if found is None:
            continue
        where = f"{found} at {name!r}" if name else found
        way_out = "Give model.module" if not name else f"Put the module inside it in its place ({name}.module)"
        if found == "DDP":
            way_out = "Leave out replicate()"
        if found == "FullyShardedDataParallel":
            way_out = "Shard the bare model by torch.distributed.fsdp.fully_shard instead, which is supported"
        raise InvalidInputError(
            f"`model` must be the bare module, got {where}: gradients taken per task through the wrapper are those of "
            f"one rank alone. {way_out}; task gradients are averaged over a process group by mtl_core."
        )


@lru_cache(maxsize=4096)
def _wrapper(kind: type[nn.Module]) -> str | None:
    """Which of the wrappers a class is. It is asked of every module in every step, and a class keeps its bases."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in _WRAPPERS), None)
