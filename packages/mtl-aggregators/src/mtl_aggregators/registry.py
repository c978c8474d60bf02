"""Methods by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mtl_aggregators.bases.facts import DeclaresFacts, Facts
from mtl_core import UnknownNameError
from mtl_core.extension import find_plugin, is_spec, offers, plain_name, plugin_names

__all__ = ["GROUP", "available", "describe", "facts_table", "make", "method_class", "methods_table", "own_methods"]

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
    for package in map(importlib.import_module, ("mtl_aggregators", "mtl_aggregators.bilevel")):
        for info in pkgutil.iter_modules(package.__path__):
            name = f"{package.__name__}.{info.name}"
            if info.ispkg or name.removeprefix("mtl_aggregators.") in _WITHOUT_METHODS:
                continue
            module = importlib.import_module(name)
            for public in vars(module).get("__all__", ()):
                value = getattr(module, public)
                # Where it is defined only: a class that is imported for a type or as a base would be found twice.
                if isinstance(value, type) and value.__module__ == module.__name__ and _is_method(value):
                    found[public.lower()] = value
    return dict(sorted(found.items()))


def _is_method(cls: type) -> bool:
    # Statically: on a class, getattr would hand out the property of any metaclass or run a descriptor.
    declares = isinstance(inspect.getattr_static(cls, "facts", None), property)
    return declares and not inspect.isabstract(cls) and not _asks_for_arguments(cls)


def _asks_for_arguments(cls: Callable[..., Any]) -> bool:
    """Whether a class cannot be made without arguments."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(cls).parameters.values()
    return any(each.default is each.empty and each.kind not in kinds for each in parameters)


def _declared(cls: Callable[..., Any]) -> Facts | None:
    """What a method declares with its default settings; ``None`` if it declares nothing or has no such settings."""
    if _asks_for_arguments(cls):
        return None
    method = cls()
    return method.facts if offers(method, DeclaresFacts) else None


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
    # Own methods first: no other package can take the name of one.
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
        # Looked at before the call, whose TypeError would not say what there is.
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
    first = (inspect.getdoc(cls) or "").partition("\n")[0]
    settings = [_setting(parameter) for parameter in inspect.signature(cls).parameters.values()]
    lines = [f"{cls.__name__}: {first}", "settings:", *settings]
    facts = _declared(cls)
    if facts is None:
        return "\n".join([*lines, "facts: none declared for default settings"])
    degree = "none" if facts.homogeneity is None else f"{facts.homogeneity:g}"
    return "\n".join(
        [
            *lines,
            f"needs: {facts.needs}",
            f"degree of homogeneity: {degree}",
            f"scale against the sum of equal unit gradients: {facts.scale.formula}",
            f"scale of the released code: {facts.paper_scale.formula}",
            f"heads in the released code: {facts.paper_heads}",
            f"laws: {', '.join(sorted(facts.laws)) or 'none'}",
            f"reference: {facts.reference}",
        ]
    )


def _setting(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    words = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return f"  {parameter.name}: {words}" + (
        "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    )


def facts_table(names: Iterable[str] | None = None) -> str:
    """The facts that every method declares with its default settings, as a Markdown table of one row per method.

    Args:
        names: the methods; ``None`` for all of ``available()``.

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
    for name in available() if names is None else names:
        facts = _declared(method_class(name))
        if facts is None:
            lines.append((f"`{name}`", *("not declared",) * (len(heads) - 1)))
            continue
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
    return _as_markdown(lines)


def methods_table(known: str = "") -> str:
    """What each method of this package does, as a Markdown table.

    Args:
        known: a table of the same form. Its rows stay as they are, so that a formula may be written there by hand; a
            method without one gets the first line of its docstring.

    Example:
        >>> "| `ls` | `LS` | the sum | nobody |" in methods_table("| `ls` | `LS` | the sum | nobody |").splitlines()
        True
    """
    rows = {line.split("`")[1]: line for line in known.splitlines() if line.startswith("| `")}
    table = _as_markdown([("name", "class", "update", "paper"), ("---",) * 4])
    for name, cls in own_methods().items():
        facts = _declared(cls)
        first = (inspect.getdoc(cls) or "").partition("\n")[0].removesuffix(".").replace("|", "&#124;")
        new = _as_markdown([(f"`{name}`", f"`{cls.__name__}`", first, "" if facts is None else facts.reference)])
        table += rows.get(name, new.rstrip("\n")) + "\n"
    return table


def _as_markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join(
        "|" + "---|" * len(cells) + "\n" if set(cells) == {"---"} else "| " + " | ".join(cells) + " |\n"
        for cells in lines
    )
