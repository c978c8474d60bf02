"""Which parameters of a model are shared, however they are named, and where they live."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from mtl_core.errors import InvalidInputError, NoMatchError, NoSharedParametersError
from mtl_core.listing import Walk

__all__ = ["Shared", "SharedSpec"]

SharedSpec = nn.Module | str | Iterable[nn.Parameter] | Iterable[str] | Iterable[nn.Module]
"""How the shared parameters may be named: a module, parameters, modules, or name patterns."""

_Place = tuple[nn.Module, str]


class Shared:
    """Which parameters of a model are shared, found anew by how they were named where the model has changed.

    Parameters that were given by themselves are remembered by the modules that own them: sharding, for one, puts other
    ``Parameter`` objects in their places, and those held here would keep their memory.

    Args:
        model: the model.
        named: how they are named.

    Attributes:
        places: by name, the module that owns each shared parameter and the parameter's name in it.

    Raises:
        NoSharedParametersError: nothing is named.
        NoMatchError: a name pattern matches no parameter.
        InvalidInputError: a parameter is not one of the model's, or an item is something else.
    """

    def __init__(self, model: nn.Module, named: SharedSpec) -> None:
        items: list[Any] = [named] if isinstance(named, nn.Module | str | Tensor) else list(named)
        for item in items:
            if not isinstance(item, str | nn.Module | Tensor):
                raise InvalidInputError(
                    "`shared` must be a module, parameters, modules or name patterns, got an item of type "
                    f"{type(item).__name__}."
                )
        paths = {id(module): path for path, module in model.named_modules()}
        self._patterns = [item for item in items if isinstance(item, str)]
        # A module that only gathers parts of the model, as a list of its layers, has no path in it.
        self._modules = [(paths.get(id(item)), item) for item in items if isinstance(item, nn.Module)]
        self._given: dict[str, _Place] = {}
        given = [item for item in items if isinstance(item, Tensor)]
        self.places = self._find(model, given)
        if not self.places:
            raise NoSharedParametersError("`shared` must hold at least one parameter, got none.")
        ids = {id(item) for item in given}
        self._given = {name: (m, a) for name, (m, a) in self.places.items() if id(getattr(m, a)) in ids}
        walk = Walk(model)
        self._seen = walk.modules, walk.names

    def follow(self, model: nn.Module, walk: Walk) -> bool:
        """Find the shared parameters anew, if the model has other modules or names of parameters than last time.

        Args:
            model: the model.
            walk: what it is made of now.

        Returns:
            whether it has.

        Raises:
            InvalidInputError: what was named is not there any more, or it cannot be told whether what came in is to be
                shared.
        """
        now = walk.modules, walk.names
        if now == self._seen:
            return False
        before = self._modules, self._given
        try:
            modules = dict(model.named_modules(remove_duplicate=False))
            self._modules = [_where_now(path, module, modules) for path, module in self._modules]
            self._given = {name: _place_now(name, place, modules) for name, place in self._given.items()}
            places = self._find(model, [getattr(owner, attribute) for owner, attribute in self._given.values()])
            self._refuse_doubtful(walk, places)
        except InvalidInputError as error:
            self._modules, self._given = before
            came, went = (_listed(names) for names in _differences(walk.names, self._seen[1]))
            raise InvalidInputError(
                "`model` must keep what its Problem was told to share, got one that has changed since: "
                f"{came} came in, {went} went out. {error} Make a new Problem of the model as it is, and give the "
                "optimiser its parameters."
            ) from error
        self.places, self._seen = places, now
        return True

    def _find(self, model: nn.Module, given: Sequence[Tensor]) -> dict[str, _Place]:
        """The places of the shared parameters, in the model's order, each once."""
        named = list(model.named_parameters(remove_duplicate=False))
        wanted = {id(tensor) for tensor in given}
        for pattern in self._patterns:
            matched = [
                id(p) for name, p in named if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
            ]
            if not matched:
                raise NoMatchError(
                    f"`shared` pattern {pattern!r} must match a parameter of the model, got none. Names: "
                    f"{', '.join(name for name, _ in model.named_parameters())}."
                )
            wanted.update(matched)
        for _, module in self._modules:
            wanted.update(id(p) for p in module.parameters())
        strangers = wanted - {id(p) for _, p in named}
        if strangers:
            own = sum(1 for _ in model.parameters())
            raise InvalidInputError(
                f"`shared` must hold parameters of `model`, got {len(strangers)} that are not among its {own}."
            )
        modules = dict(model.named_modules(remove_duplicate=False))
        split = {name: name.rpartition(".") for name, p in model.named_parameters() if id(p) in wanted}
        return {name: (modules[path], attribute) for name, (path, _, attribute) in split.items()}

    def _refuse_doubtful(self, walk: Walk, places: dict[str, _Place]) -> None:
        """Refuse what came in as no shared parameter and looks like one: it would silently be trained as a head."""
        _, names = self._seen
        came = [name for name in walk.trainable if name not in places and name not in names]
        # In the place of a shared parameter, such as the two that a parametrisation makes of a weight.
        lost = [name.rpartition(".")[0] for name in self.places if name not in walk.names]
        doubtful = [name for name in came if any(_is_within(name, path) for path in lost)]
        if self._given:
            # Parameters given by themselves do not say of which part of the model they are all there is.
            doubtful += [name for name in came if _only_shared_beside(name, self._seen, self.places)]
        if doubtful:
            raise InvalidInputError(f"It does not say whether {_listed(doubtful)} should be shared.")


def _where_now(path: str | None, module: nn.Module, modules: dict[str, nn.Module]) -> tuple[str | None, nn.Module]:
    """Where a shared module is now: at its path, be it wrapped or replaced there, or where it was moved to."""
    if path is None:
        return None, module
    there = modules.get(path)
    elsewhere = [name for name, other in modules.items() if other is module]
    if there is not None and (not elsewhere or any(inner is module for inner in there.modules())):
        return path, there
    if there is None and elsewhere:
        return elsewhere[0], module
    raise InvalidInputError(f"The module that was shared is no longer at {path!r}.")


def _place_now(name: str, place: _Place, modules: dict[str, nn.Module]) -> _Place:
    """Where a parameter that was shared by itself is now: in the module that owned it, or under its name."""
    path, _, attribute = name.rpartition(".")
    for owner in (place[0], modules.get(path)):
        inside = owner is not None and any(owner is module for module in modules.values())
        if owner is None or not inside or attribute not in owner._parameters:
            continue
        if owner._parameters[attribute] is not None:
            return owner, attribute
    raise InvalidInputError(f"The parameter that was shared as {name!r} is gone.")


def _only_shared_beside(name: str, seen: tuple[list[tuple[str, nn.Module]], list[str]], shared: Iterable[str]) -> bool:
    """Whether the smallest part of the earlier model that would have held a parameter had shared ones only."""
    modules, names = seen
    paths = [path for path, _ in modules if _is_within(name, path) and any(_is_within(n, path) for n in names)]
    smallest = max(paths, key=len, default="")
    return {n for n in names if _is_within(n, smallest)} <= set(shared)


def _is_within(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _differences(now: Sequence[str], before: Sequence[str]) -> tuple[list[str], list[str]]:
    return [name for name in now if name not in before], [name for name in before if name not in now]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}" if names else "no name"
