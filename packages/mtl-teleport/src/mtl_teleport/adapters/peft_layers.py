"""The layers that adapters of the PEFT library can be put around; PEFT itself is imported elsewhere."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from mtl_core import NoMatchError, Problem

__all__ = ["choose_layers"]


def choose_layers(problem: Problem, targets: Sequence[str] | None, adapter: str) -> dict[str, nn.Module]:
    """The layers that an adapter wraps, by name, in the model's order or that of the patterns.

    Args:
        problem: the problem.
        targets: name patterns of layers; ``None`` for every supported layer of the shared part.
        adapter: the adapter's name, for the text.

    Raises:
        NoMatchError: no shared layer is supported, or a pattern matches none; lists what is.
    """
    shared = {id(p) for p in problem.shared}
    supported = {
        name: module
        for name, module in problem.model.named_modules()
        # The model itself has nobody in whom PEFT could put another layer in its place.
        if name and _is_supported(module) and id(getattr(module, "weight", None)) in shared
    }
    kinds = (
        "exactly torch.nn.Linear, or Conv2d with groups=1, dilation=1 and zero padding, within the model and with "
        "a parameter as its weight"
    )
    if not supported:
        found = sorted(
            {
                type(m).__name__
                for m in problem.model.modules()
                if any(id(p) in shared for p in m.parameters(recurse=False))
            }
        )
        raise NoMatchError(
            f"{adapter} must find a shared layer that is {kinds}, got {', '.join(found)}. Use "
            "mtl_teleport.LoRA, which adapts any weight."
        )
    if targets is None:
        return supported
    chosen: dict[str, nn.Module] = {}
    for pattern in targets:
        matched = {n: m for n, m in supported.items() if fnmatch.fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")}
        if not matched:
            raise NoMatchError(
                f"`targets` pattern {pattern!r} must match a shared layer that is {kinds}, got none. Supported: "
                f"{', '.join(supported)}."
            )
        chosen.update(matched)
    return chosen


def _is_supported(module: nn.Module) -> bool:
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and tuple(module.dilation) == (1, 1)
        and module.padding_mode == "zeros"
    )
