"""What a model is made of at one moment: its modules, parameters and buffers, found by one walk."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["Listing", "all_shared", "first_duplicate", "form_of", "modules_of"]

Places = Mapping[str, tuple[nn.Module, str]]
"""By name, the module that owns a shared parameter and the parameter's name in it."""


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives, in its order, each module once.

    The model's own walk is a generator within a generator for every level of a model: for a small model that took
    longer than the step's arithmetic.
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen:
            continue
        if type(module).named_modules is not nn.Module.named_modules:
            return list(model.named_modules())  # some module lists its parts in a way of its own
        seen.add(id(module))
        found.append((name, module))
        if module._modules:
            prefix = f"{name}." if name else ""
            parts = [(prefix + part, inner) for part, inner in module._modules.items() if inner is not None]
            stack += parts[::-1]  # the first part is to be taken from the stack next
    return found


def all_shared(places: Places) -> dict[str, nn.Parameter]:
    """The shared parameters, frozen ones included, as they lie in the model now."""
    return {name: getattr(owner, attribute) for name, (owner, attribute) in places.items()}


class Listing:
    """The modules, parameters and buffers of a model, as they are when this is made.

    A step asks for them a dozen times, and walking a deep model takes longer than some of what it does with them. A
    listing holds for one step and is made anew for the next, so that what is frozen, added or wrapped in between is
    seen.

    Args:
        model: the model.
        places: where its shared parameters live.

    Attributes:
        modules: every module, by its name in the model.
        all_shared: the shared parameters, frozen ones included.
        named_shared: those that are trainable.
        shared: the same, in the model's order.
        named_trainable: every trainable parameter, shared or of a head.
        heads: every trainable parameter that is not shared.
    """

    def __init__(self, model: nn.Module, places: Places) -> None:
        self.modules = modules_of(model)
        self.all_shared = all_shared(places)
        self.named_shared = {name: p for name, p in self.all_shared.items() if p.requires_grad}
        self.shared = tuple(self.named_shared.values())
        self.named_trainable = self._trainable(model)
        held = {id(p) for p in self.all_shared.values()}
        self.heads = tuple([p for p in self.named_trainable.values() if id(p) not in held])

    def _trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        if type(model).named_parameters is not nn.Module.named_parameters:
            return {name: p for name, p in model.named_parameters() if p.requires_grad}
        found: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for prefix, module in self.modules:
            for attribute, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                if parameter.requires_grad:
                    found[f"{prefix}.{attribute}" if prefix else attribute] = parameter
        return found


def form_of(model: nn.Module) -> tuple[list[tuple[str, nn.Module]], set[str]]:
    """The modules of a model and the names of its parameters: what must be the same for places to mean the same."""
    modules = modules_of(model)
    return modules, {f"{prefix}.{name}" for prefix, module in modules for name, _ in module._parameters.items()}


def first_duplicate(model: nn.Module) -> tuple[str, str] | None:
    """The two names of a module that is registered twice, if there is one."""
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in seen:
            return seen[id(module)], name
        seen[id(module)] = name
    return None
