"""What a model is made of at one moment: its modules and parameters, found by one walk."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["Listing", "Places", "Walk", "all_shared", "first_duplicate", "modules_of"]

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


class Walk:
    """The modules of a model and its trainable parameters, found in one go.

    Args:
        model: the model.

    Attributes:
        modules: every module, by its name in the model.
        names: the name of every parameter, frozen ones included, each parameter once.
        trainable: the trainable parameters by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = modules_of(model)
        self.names: list[str] = []
        self.trainable: dict[str, nn.Parameter] = {}
        if type(model).named_parameters is not nn.Module.named_parameters:
            own = dict(model.named_parameters())
            self.names = list(own)
            self.trainable = {name: p for name, p in own.items() if p.requires_grad}
            return
        seen: set[int] = set()
        for prefix, module in self.modules:
            for attribute, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                name = f"{prefix}.{attribute}" if prefix else attribute
                self.names.append(name)
                if parameter.requires_grad:
                    self.trainable[name] = parameter


class Listing:
    """The modules and parameters of a model, as they are when this is made.

    A step asks for them a dozen times, and walking a deep model takes longer than some of what it does with them. A
    listing holds for one step and is made anew for the next, so that what is frozen, added or wrapped in between is
    seen.

    Args:
        walk: what the model is made of.
        places: where its shared parameters live.

    Attributes:
        modules: every module, by its name in the model.
        all_shared: the shared parameters, frozen ones included.
        named_shared: those that are trainable.
        shared: the same, in the model's order.
        named_trainable: every trainable parameter, shared or of a head.
        heads: every trainable parameter that is not shared.
    """

    def __init__(self, walk: Walk, places: Places) -> None:
        self.modules = walk.modules
        self.all_shared = all_shared(places)
        self.named_shared = {name: p for name, p in self.all_shared.items() if p.requires_grad}
        self.shared = tuple(self.named_shared.values())
        self.named_trainable = walk.trainable
        held = {id(p) for p in self.all_shared.values()}
        self.heads = tuple([p for p in self.named_trainable.values() if id(p) not in held])


def first_duplicate(model: nn.Module) -> tuple[str, str] | None:
    """The two names of a module that is registered twice, if there is one."""
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in seen:
            return seen[id(module)], name
        seen[id(module)] = name
    return None
