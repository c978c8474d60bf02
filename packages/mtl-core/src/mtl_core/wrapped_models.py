"""Models that are wrapped for data parallelism, which task gradients go past."""

from __future__ import annotations

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


def refuse_wrapped(model: nn.Module) -> None:
    """Make sure that no module of a model, however deep, is wrapped for data parallelism.

    Such a wrapper averages the gradients of one ``backward()``. Gradients that are taken task by task go past it: each
    rank would step on its own and the ranks' parameters would drift apart without an error.

    Raises:
        InvalidInputError: naming the module.
    """
    for name, module in model.named_modules():
        found = next((base.__name__ for base in type(module).__mro__ if base.__name__ in _WRAPPERS), None)
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
