"""Docstrings of public names say what they raise themselves, and what each argument is."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mtl_core
from mtl_benchmarks import RunDirectory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docsite.docstrings import public_modules  # noqa: E402

NAMES = {f"{module}.{name}": (module, name) for module, names in public_modules().items() for name in names}
ERRORS = {name for name in mtl_core.__all__ if name.endswith("Error")}


def raised(function: Callable[..., Any]) -> set[str]:
    """Names of this family's errors that a function raises itself; what it calls may raise others."""
    if function.__code__.co_filename.startswith("<"):  # of a dataclass or a protocol: nobody wrote it
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    return {ast.unparse(exc.func if isinstance(exc, ast.Call) else exc).rpartition(".")[2] for exc in found} & ERRORS


def documented(text: str | None) -> set[str]:
    """Names in the section Raises of a docstring."""
    section = re.search(r"^Raises:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(text or ""), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^    (\w+):", section[1], flags=re.MULTILINE)) if section else set()


def functions_of(value: Any) -> Iterator[tuple[str, Callable[..., Any], set[str]]]:
    """A function, or those that a class defines itself and a reader may call: name, function, what is documented."""
    if inspect.isfunction(value):
        function = inspect.unwrap(value)
        yield value.__name__, function, documented(value.__doc__)
    elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
        for name, member in vars(value).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if not inspect.isfunction(function) or function.__module__ != value.__module__:
                continue
            if not name.startswith("_") or name in ("__init__", "__post_init__", "__call__"):
                yield name, function, documented(function.__doc__) | documented(value.__doc__)


@pytest.mark.parametrize("dotted", NAMES)
def test_what_a_public_name_raises_is_in_its_docstring(dotted: str) -> None:
    module, name = NAMES[dotted]
    value = getattr(importlib.import_module(module), name)
    missing = {
        each: sorted(errors)
        for each, function, said in functions_of(value)
        if (errors := {error for error in raised(function) if not _covered(error, said)})
    }

    assert missing == {}


def _covered(error: str, said: set[str]) -> bool:
    """Whether an error or one that it is a kind of is named."""
    return any(each.__name__ in said for each in getattr(mtl_core, error).__mro__)


def test_a_raise_is_seen_and_a_section_read() -> None:
    def careless() -> None:
        raise mtl_core.NoMatchError("no")

    assert raised(careless) == {"NoMatchError"}
    assert documented(
        "One line.\n\n    Raises:\n        NoMatchError: always.\n\n    Note:\n        Other: words.\n"
    ) == {"NoMatchError"}
    assert not _covered("NoMatchError", set())
    assert _covered("NoMatchError", {"InvalidInputError"})


@pytest.mark.parametrize("dotted", NAMES)
def test_the_arguments_of_a_public_name_are_explained(dotted: str) -> None:
    """Of each class, and of functions with three or more, whose first line does not do for all of them."""
    module, name = NAMES[dotted]
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        few = issubclass(value, BaseException) or getattr(value, "_is_protocol", False)
    else:
        few = not inspect.isfunction(value) or len(inspect.signature(value).parameters) < 3
    if few:
        return

    assert [each for each in inspect.signature(value).parameters if not _explained(each, value.__doc__ or "")] == []


def _explained(argument: str, text: str) -> bool:
    """Whether an entry is of this argument, the text names it, or says that it is as elsewhere."""
    if argument in ("args", "kwargs", "kind") or argument.startswith("_"):  # a kind is fixed by its class
        return True
    entries = re.findall(r"^ +((?:\w+, )*\w+): ", text, flags=re.MULTILINE)
    return any(argument in entry.split(", ") for entry in entries) or f"``{argument}" in text or "as for ``" in text


def test_an_argument_is_explained_by_an_entry_or_by_name() -> None:
    text = "Of ``one``.\n\n    Args:\n        two, three: words.\n"

    assert [each for each in ("one", "two", "three", "four") if not _explained(each, text)] == ["four"]


def test_the_readme_lists_the_files_of_a_run() -> None:
    readme = (ROOT / "packages" / "mtl-benchmarks" / "README.md").read_text(encoding="utf-8")
    table = readme.partition("\n## A run is a directory\n")[2].partition("\n\nA run ")[0]
    listed = {name for cell in re.findall(r"^\| (`[^|]+) \|", table, flags=re.MULTILINE) for name in cell.split(", ")}

    assert {name.strip("`") for name in listed} == set(re.findall(r"^ *``([^`]+)`` ", RunDirectory.__doc__ or "", re.M))
