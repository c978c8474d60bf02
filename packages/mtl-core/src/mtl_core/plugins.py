"""Classes that other packages bring: by the name of an entry point, or as ``package.module:Class``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mtl_core.errors import InvalidInputError, UnknownNameError

__all__ = ["find_plugin", "is_spec", "load_spec", "plain_name", "plugin_names"]


def plain_name(name: str) -> str:
    """A name as it is looked up: lower case, without hyphens, underscores and spaces.

    Example:
        >>> plain_name("Fair-Grad")
        'fairgrad'
    """
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def is_spec(name: str) -> bool:
    """Whether a name is of the form ``package.module:Class``."""
    return ":" in name


def plugin_names(group: str) -> list[str]:
    """The plain names that installed packages bring under an entry point group, sorted; nothing is imported."""
    return sorted({plain_name(point.name) for point in entry_points(group=group)})


def find_plugin(kind: str, name: str, group: str, others: Iterable[str] = ()) -> Any:
    """What another package brings under a name.

    Args:
        kind: what is sought, for messages: ``"method"``.
        name: ``package.module:Class``, or an entry point's name in any case and spelling.
        group: the entry points' group, as ``"mtl.methods"``.
        others: names that the caller knows itself, for messages.

    Raises:
        UnknownNameError: no package brings that name, or the module has no such class.
        InvalidInputError: what was found cannot be imported, or two packages bring the name.

    Example:
        >>> find_plugin("model", "torch.nn:Linear", "mtl.models").__name__
        'Linear'
    """
    if is_spec(name):
        return load_spec(kind, name)
    points = [point for point in entry_points(group=group) if plain_name(point.name) == plain_name(name)]
    if not points:
        raise UnknownNameError(kind, name, sorted({*others, *plugin_names(group)}))
    if len({point.value for point in points}) > 1:
        raise InvalidInputError(
            f"{kind} {name!r} must be brought by one package, got {', '.join(map(_origin, points))}. Give it as "
            f"{' or '.join(repr(point.value) for point in points)}."
        )
    try:
        return points[0].load()
    except Exception as error:  # whatever another package's import raises, its name is what the reader needs
        raise InvalidInputError(
            f"{kind} {name!r} of the package {_origin(points[0])} must be importable, got {type(error).__name__}: "
            f"{error}. Upgrade that package or uninstall it."
        ) from error


def load_spec(kind: str, spec: str) -> Any:
    """The class that ``package.module:Class`` names.

    Raises:
        UnknownNameError: the module has no such class.
        InvalidInputError: the text has another form, or the module cannot be imported.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute.isidentifier():
        raise InvalidInputError(f"`{kind}` must be a name or 'package.module:Class', got {spec!r}.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # likewise
        raise InvalidInputError(
            f"{kind} {spec!r} must name a module that can be imported, got {type(error).__name__}: {error}. Install "
            "its package, or run where it is on the path."
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        own = [n for n, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise UnknownNameError(f"{kind} in {module_name}", attribute, own)
    return found


def _origin(point: EntryPoint) -> str:
    return repr(point.dist.name if point.dist is not None else point.value)
