"""Methods by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import mtl_aggregators
from mtl_core import UnknownNameError
from mtl_core.extension import find_plugin, is_spec, plain_name, plugin_names

__all__ = ["GROUP", "available", "describe", "facts_table", "make", "method_class", "own_methods"]

GROUP = "mtl.methods"
"""The entry point group under which other packages bring methods."""

_WITHOUT_METHODS = ("__main__", "bilevel.method", "conformance", "registry")
"""Modules that are not read for methods.

``conformance`` needs an extra, and ``Bilevel`` is the general form of which MARIGOLD is a case.
"""


@functools.cache
def own_methods() -> dict[str, Callable[..., Any]]:
    """The methods of this package, by their class's name in lower case.

    A method is a class in the ``__all__`` of a module beside this one, or in ``bilevel``, that declares ``facts`` and
    can be made without arguments.
    """
    found: dict[str, Callable[..., Any]] = {}
    for package in (mtl_aggregators, importlib.import_module("mtl_aggregators.bilevel")):
        for info in pkgutil.iter_modules(package.__path__):
            name = f"{package.__name__}.{info.name}"
            if info.ispkg or name.removeprefix("mtl_aggregators.") in _WITHOUT_METHODS:
                continue
            module = importlib.import_module(name)
            for public in module.__all__:
                value = getattr(module, public)
                if isinstance(value, type) and value.__module__ == module.__name__ and _is_method(value):
                    found[public.lower()] = value
    return dict(sorted(found.items()))


def _is_method(cls: type) -> bool:
    if inspect.isabstract(cls) or not isinstance(inspect.getattr_static(cls, "facts", None), property):
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(
        parameter.default is not parameter.empty or parameter.kind in kinds
        for parameter in inspect.signature(cls).parameters.values()
    )


def available() -> list[str]:
    """Names of all methods, sorted: of this package, and of those that bring some under ``mtl.methods``.

    Example:
        >>> "fairgrad" in available()
        True
    """
    return sorted({*own_methods(), *plugin_names(GROUP)})


def method_class(name: str) -> Callable[..., Any]:
    """The class of a method.

    Args:
        name: any case; hyphens, underscores and spaces are ignored. Or ``package.module:Class``.

    Raises:
        UnknownNameError: no method has that name.
        InvalidInputError: another package brings the method, and it cannot be imported.
    """
    found = None if is_spec(name) else own_methods().get(plain_name(name))
    return find_plugin("method", name, GROUP, own_methods()) if found is None else found


def make(name: str, /, **parameters: Any) -> Any:
    """A method by name.

    Args:
        name: any case; hyphens, underscores and spaces are ignored. Or ``package.module:Class`` for one of another
            package.
        parameters: the method's own settings.

    Returns:
        the method.

    Raises:
        UnknownNameError: no method has that name, or the method has no such setting.
        InvalidParameterError: a setting is out of its range.
        InvalidInputError: another package brings the method, and it cannot be imported.

    Example:
        >>> make("Fair-Grad", alpha=2.0).alpha
        2.0
    """
    cls = method_class(name)
    valid = list(inspect.signature(cls).parameters)
    for parameter in parameters:
        if parameter not in valid:
            raise UnknownNameError(f"option of {cls.__name__}", parameter, valid)
    return cls(**parameters)


def describe(name: str) -> str:
    """What a method is, its settings with their defaults, and its declared facts.

    Args:
        name: as for ``make``.

    Returns:
        text of several lines.

    Raises:
        UnknownNameError: no method has that name.

    Example:
        >>> print(describe("mgda").splitlines()[0])
        MGDA: Multiple-gradient descent: the min-norm point in the convex hull of the task gradients.
    """
    cls = method_class(name)
    facts = cls().facts
    first = (inspect.getdoc(cls) or "").splitlines()[0]
    settings = [
        f"  {parameter.name}: {parameter.annotation} = {parameter.default!r}"
        for parameter in inspect.signature(cls).parameters.values()
    ]
    degree = "none" if facts.homogeneity is None else f"{facts.homogeneity:g}"
    return "\n".join(
        [
            f"{cls.__name__}: {first}",
            "settings:",
            *settings,
            f"needs: {facts.needs}",
            f"degree of homogeneity: {degree}",
            f"scale against the sum of equal unit gradients: {facts.scale.formula}",
            f"scale of the released code: {facts.paper_scale.formula}",
            f"heads in the released code: {facts.paper_heads}",
            f"laws: {', '.join(sorted(facts.laws)) or 'none'}",
            f"reference: {facts.reference}",
        ]
    )


def facts_table() -> str:
    """The facts that every method declares with its default settings, as a Markdown table of one row per method.

    Example:
        >>> facts_table().splitlines()[0]
        '| name | needs | degree | scale | scale in released code | heads in released code | laws | reference |'
    """
    heads = (
        "name",
        "needs",
        "degree",
        "scale",
        "scale in released code",
        "heads in released code",
        "laws",
        "reference",
    )
    lines = [heads, ("---",) * len(heads)]
    for name in available():
        facts = make(name).facts
        lines.append(
            (
                f"`{name}`",
                facts.needs if facts.min_tasks == 1 else f"{facts.needs}, m ≥ {facts.min_tasks}",
                "none" if facts.homogeneity is None else f"{facts.homogeneity:g}",
                facts.scale.formula,
                facts.paper_scale.formula,
                facts.paper_heads,
                ", ".join(law.replace("_", " ") for law in sorted(facts.laws)) or "—",
                facts.reference,
            )
        )
    rows = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join(rows).replace("| --- | --- | --- | --- | --- | --- | --- | --- |", "|" + "---|" * 8) + "\n"
