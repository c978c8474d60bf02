"""Which parameters of a model are shared, however they are named, and where they live."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mtl_core.errors import InvalidInputError, NoMatchError, NoSharedParametersError

__all__ = ["SharedSpec", "places_of", "resolve_shared"]

SharedSpec = nn.Module | str | Iterable[nn.Parameter] | Iterable[str] | Iterable[nn.Module]
"""How the shared parameters may be named: a module, parameters, modules, or name patterns."""


def places_of(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[nn.Module, str]]:
    """The module that owns each parameter, and the parameter's name in it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    split = {name: name.rpartition(".") for name in names}
    return {name: (modules[path], attribute) for name, (path, _, attribute) in split.items()}


def resolve_shared(model: nn.Module, shared: SharedSpec) -> dict[str, nn.Parameter]:
    """The shared parameters by name, in the model's order, each once."""
    names = {id(p): name for name, p in model.named_parameters()}
    wanted: set[int] = set()
    items: list[Any] = [shared] if isinstance(shared, nn.Module | str | Tensor) else list(shared)
    for item in items:
        if isinstance(item, str):
            matched = [
                id(p)
                for name, p in model.named_parameters(remove_duplicate=False)
                if fnmatch.fnmatchcase(name, item) or name.startswith(f"{item}.")
            ]
            if not matched:
                raise NoMatchError(
                    f"`shared` pattern {item!r} must match a parameter of the model, got none. Names: "
                    f"{', '.join(names.values())}."
                )
            wanted.update(matched)
        elif isinstance(item, nn.Module):
            wanted.update(id(p) for p in item.parameters())
        elif isinstance(item, Tensor):
            wanted.add(id(item))
        else:
            raise InvalidInputError(
                "`shared` must be a module, parameters, modules or name patterns, got an item of type "
                f"{type(item).__name__}."
            )
    strangers = wanted - set(names)
    if strangers:
        raise InvalidInputError(
            f"`shared` must hold parameters of `model`, got {len(strangers)} that are not among its {len(names)}."
        )
    if not wanted:
        raise NoSharedParametersError("`shared` must hold at least one parameter, got none.")
    return {name: p for name, p in model.named_parameters() if id(p) in wanted}
