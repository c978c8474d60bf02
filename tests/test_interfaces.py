"""What the packages use of each other, read off their sources: declared names, one address each, no circle."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "mtl_core": (),
    "mtl_aggregators": ("mtl_core",),
    "mtl_teleport": ("mtl_core",),
    "mtl_benchmarks": ("mtl_core", "mtl_aggregators", "mtl_teleport"),
}
"""Each package and those whose names it may use."""

PUBLIC = {
    "mtl_core": ("mtl_core", "mtl_core.checks", "mtl_core.extension", "mtl_core.testing"),
    "mtl_aggregators": ("mtl_aggregators", "mtl_aggregators.registry"),
    "mtl_teleport": ("mtl_teleport",),
}
"""The modules of a package whose ``__all__`` is declared for its siblings."""

ALLOWED = {
    ("mtl_benchmarks", "__getitem__"): "whether what a benchmark gave is a map-style data set",
    ("mtl_benchmarks", "__len__"): "likewise",
    ("mtl_benchmarks", "__dict__"): "of anything that a method or benchmark of one's own may be",
    ("mtl_benchmarks", "__module__"): "of a type as it is written in a signature, which need not be a class",
    ("mtl_benchmarks", "_fields"): "how Python marks a named tuple",
    ("mtl_benchmarks", "to"): "of anything in a batch that can be moved to a device",
    ("mtl_core", "__dict__"): "`offers` itself: how a protocol is asked for",
    ("mtl_core", "__getattr__"): "likewise",
    ("mtl_core", "__module__"): "of any value in another package's module, for an error text",
    ("mtl_core", "__notes__"): "an exception has it only after add_note",
    ("mtl_core", "param_groups"): "of what the user gave as an optimiser, before anything relies on it",
    ("mtl_core", "step"): "likewise",
    ("mtl_aggregators", "facts"): "of a class, not of a method: a class is one only if it declares them as a property",
    ("mtl_teleport", "__getitem__"): "whether what the user gave can be indexed, be it a list or a loader's data set",
    ("mtl_teleport", "__name__"): "of the user's callable, for a report; a partial has none",
    ("mtl_core", "_forward_cls"): "of torch's nodes, which declare nothing",
    ("mtl_core", "backward"): "likewise",
    ("mtl_core", "__wrapped__"): "how torch marks what is once differentiable",
    ("mtl_teleport", "found_inf"): "how torch's gradient scaler tells a fused optimiser of an overflow",
    ("mtl_teleport", "peft_type"): "of PEFT's objects, told by their form so that peft is imported only where used",
    ("mtl_teleport", "target_modules"): "likewise",
    ("mtl_teleport", "peft_config"): "likewise",
    ("mtl_teleport", "weight"): "of any layer of the user's model",
}
"""Attributes that are looked up by a literal name, by package, and why no protocol can declare them."""

LOOKUPS = ("getattr", "hasattr", "getattr_static", "attrgetter", "methodcaller")


@dataclass(frozen=True)
class Import:
    """One name that a module imports when it is loaded or later.

    Attributes:
        module: the module that imports, such as ``mtl_core.problem``.
        source: the module named in the statement.
        name: what is taken from it; ``None`` for ``import module``.
        line: where.
        on_load: whether it runs when the module is imported: not in a function, not for type checkers only.
    """

    module: str
    source: str
    name: str | None
    line: int
    on_load: bool

    def __str__(self) -> str:
        what = f"import {self.source}" if self.name is None else f"from {self.source} import {self.name}"
        return f"{self.module}:{self.line}: {what}"


@cache
def sources(package: str) -> dict[str, ast.Module]:
    """Module → its syntax tree."""
    root = ROOT / "packages" / package.replace("_", "-") / "src"
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def is_for_types(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_in(module: str, tree: ast.AST, *, on_load: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write relative imports out"
            for alias in node.names:
                yield Import(module, node.module or "", alias.name, node.lineno, on_load)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, None, node.lineno, on_load)
        elif isinstance(node, ast.If) and is_for_types(node.test):
            for part in node.body:
                yield from imports_in(module, ast.Module([part], []), on_load=False)
            for part in node.orelse:
                yield from imports_in(module, ast.Module([part], []), on_load=on_load)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_in(module, node, on_load=on_load and not later)


@cache
def imports(package: str) -> tuple[Import, ...]:
    return tuple(each for module, tree in sources(package).items() for each in imports_in(module, tree))


def package_of(module: str) -> str:
    return module.partition(".")[0]


def undeclared(package: str) -> list[str]:
    """What a package takes of its siblings that they do not declare for it."""
    found = []
    for each in imports(package):
        owner = package_of(each.source)
        if owner == package or owner not in BELOW:
            continue
        if owner not in BELOW[package]:
            found.append(f"{each}: {owner} is not below {package}")
        elif each.source not in PUBLIC[owner]:
            module = f"{each.source}.{each.name}"
            if module not in PUBLIC[owner]:
                found.append(f"{each}: not one of {', '.join(PUBLIC[owner])}")
        elif each.name is not None:
            declared = importlib.import_module(each.source).__all__
            if each.name not in declared and f"{each.source}.{each.name}" not in PUBLIC[owner]:
                found.append(f"{each}: not in its __all__")
    for module, tree in sources(package).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in BELOW[package]:
                declared = importlib.import_module(node.value.id).__all__
                if node.attr not in declared and f"{node.value.id}.{node.attr}" not in PUBLIC[node.value.id]:
                    found.append(f"{module}:{node.lineno}: {ast.unparse(node)}: not in its __all__")
    return found


@pytest.mark.parametrize("package", BELOW)
def test_siblings_use_declared_names_of_packages_below(package: str) -> None:
    assert not undeclared(package)


def test_no_name_of_core_has_two_addresses() -> None:
    modules = [importlib.import_module(name) for name in PUBLIC["mtl_core"]]
    addresses: dict[str, list[str]] = {}
    objects: dict[int, list[str]] = {}
    for module in modules:
        assert sorted(set(module.__all__)) == sorted(module.__all__), module.__name__
        for name in module.__all__:
            addresses.setdefault(name, []).append(module.__name__)
            if callable(vars(module)[name]):
                objects.setdefault(id(vars(module)[name]), []).append(f"{module.__name__}.{name}")
    assert not {name: found for name, found in addresses.items() if len(found) > 1}
    assert not [found for found in objects.values() if len(found) > 1]


def graph(package: str) -> dict[str, set[str]]:
    """Module → modules of the same package that its import needs. A package's ``__init__`` counts as named only."""
    modules = sources(package)
    edges: dict[str, set[str]] = {module: set() for module in modules}
    for each in imports(package):
        if each.on_load and package_of(each.source) == package:
            within = f"{each.source}.{each.name}"
            edges[each.module].add(within if within in modules else each.source)
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, by Tarjan's algorithm, and loops."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            place = stack.index(node)
            component = sorted(stack[place:])
            del stack[place:]
            if len(component) > 1 or node in edges[node]:
                found.append(component)

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("package", BELOW)
def test_no_module_is_in_a_circle(package: str) -> None:
    assert not circles(graph(package))


def lookups(package: str) -> list[tuple[str, str]]:
    """Attributes that are looked up by a literal name: ``module:line`` and the name."""
    found = []
    for module, tree in sources(package).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
                names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                if called in LOOKUPS and names:
                    found.append((f"{module}:{node.lineno}", names[0]))
    return found


@pytest.mark.parametrize("package", BELOW)
def test_nothing_is_looked_up_by_name_that_a_protocol_can_declare(package: str) -> None:
    found = [(place, name) for place, name in lookups(package) if (package, name) not in ALLOWED]
    assert not found, "declare a protocol and ask by mtl_core.extension.offers, or give the reason in ALLOWED"


def test_every_exception_is_needed() -> None:
    used = {(package, name) for package in BELOW for _, name in lookups(package)}
    assert set(ALLOWED) == used


# --- the checks themselves can fail -----------------------------------------------------------------------------


def test_imports_are_told_apart() -> None:
    text = """
import a
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from b import B
else:
    from c import C
try:
    from d import D
except ImportError:
    pass
class K:
    import e
    def f(self):
        import g
"""
    found = {each.source: each.on_load for each in imports_in("m", ast.parse(text))}
    assert found == {"a": True, "typing": True, "b": False, "c": True, "d": True, "e": True, "g": False}


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a", "d"}}) == [["b", "c"], ["d"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_undeclared_names_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import mtl_core
import mtl_core.problem
import mtl_benchmarks
from mtl_core import step, absent
from mtl_core.extension import offers, Hidden
from mtl_core.collecting.flat import flat_size
mtl_core.step
mtl_core.stepping
def f(x):
    return getattr(x, "takes_losses", None), hasattr(x, "y"), getattr(x, f.__name__)
"""
    trees = {"mtl_teleport.example": ast.parse(text)}
    own = tuple(imports_in("mtl_teleport.example", trees["mtl_teleport.example"]))
    monkeypatch.setitem(globals(), "sources", lambda package: trees)
    monkeypatch.setitem(globals(), "imports", lambda package: own)
    assert [each.split(": ", 1)[1] for each in undeclared("mtl_teleport")] == [
        "import mtl_core.problem: not one of mtl_core, mtl_core.checks, mtl_core.extension, mtl_core.testing",
        "import mtl_benchmarks: mtl_benchmarks is not below mtl_teleport",
        "from mtl_core import absent: not in its __all__",
        "from mtl_core.extension import Hidden: not in its __all__",
        (
            "from mtl_core.collecting.flat import flat_size: not one of "
            "mtl_core, mtl_core.checks, mtl_core.extension, mtl_core.testing"
        ),
        "mtl_core.stepping: not in its __all__",
    ]
    assert [name for _, name in lookups("mtl_teleport")] == ["takes_losses", "y"]
