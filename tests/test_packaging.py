"""What the packages promise each other in their pyproject.toml files."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mtl_core import MissingExtraError

ROOT = Path(__file__).parents[1]
BELOW = {
    "mtl-core": set(),
    "mtl-aggregators": {"mtl-core"},
    "mtl-teleport": {"mtl-core"},
    "mtl-benchmarks": {"mtl-core", "mtl-aggregators", "mtl-teleport"},
}
packages = pytest.mark.parametrize("package", BELOW)


def pyproject(package: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0].lower()


def test_every_package_is_known_here() -> None:
    assert {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")} == set(BELOW)


@packages
def test_project_table(package: str) -> None:
    project = pyproject(package)["project"]

    assert project["name"] == package
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "MIT"
    assert project["readme"] == "README.md"
    assert project["dynamic"] == ["version"]
    assert "version" not in project


@packages
def test_version_stands_in_the_package(package: str) -> None:
    module = importlib.import_module(package.replace("-", "_"))

    assert re.fullmatch(r"\d+\.\d+\.\d+", module.__version__)
    installed = importlib.metadata.version(package)
    assert installed == module.__version__, f"the environment knows {package} as it was: install it again"


def brought(package: str, extra: str) -> set[str]:
    """What an extra stands for in pyproject.toml, extras of our own packages followed to their end."""
    found: set[str] = set()
    for line in pyproject(package)["project"]["optional-dependencies"][extra]:
        own = re.match(r"(mtl-[a-z]+)\[(.+)\]", line)
        found |= {line} if own is None else {r for name in own[2].split(",") for r in brought(own[1], name)}
    return found


EXTRAS = [(p, extra) for p in BELOW for extra in pyproject(p)["project"].get("optional-dependencies", {})]


@pytest.mark.parametrize(("package", "extra"), EXTRAS, ids=[f"{p}[{extra}]" for p, extra in EXTRAS])
def test_an_error_names_the_packages_of_an_extra_with_their_bounds(package: str, extra: str) -> None:
    error = MissingExtraError("this", f"{package}[{extra}]")

    words = shlex.split(str(error).partition("Install it with: ")[2])
    assert words[:2] == ["pip", "install"]
    assert set(words[2:]) == brought(package, extra), f"the environment knows {package} as it was: install it again"


def test_every_extra_that_the_code_names_is_declared() -> None:
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("packages/*/src/**/*.py")]
    named = {found for text in texts for found in re.findall(r'"(mtl-[a-z]+)\[(\w+)\]"', text)}
    named |= {("mtl-benchmarks", extra) for text in texts for extra in re.findall(r'\bextra="(\w+)"', text)}

    assert named <= set(EXTRAS)
    assert {extra for _, extra in set(EXTRAS) - named} <= {"all"}  # each is named where it is missing


@packages
def test_changelog_begins_with_this_version(package: str) -> None:
    version = importlib.import_module(package.replace("-", "_")).__version__
    text = (ROOT / "packages" / package / "CHANGELOG.md").read_text(encoding="utf-8")

    headings = re.findall(r"^## +\[?(\S+?)\]?(?:\s|$)", text, flags=re.MULTILINE)

    assert headings[0] == version


@packages
def test_siblings_are_those_below_and_bounded_at_the_breaking_digit(package: str) -> None:
    requirements = pyproject(package)["project"]["dependencies"]
    siblings = {name_of(r): r for r in requirements if name_of(r).startswith("mtl-")}

    assert set(siblings) == BELOW[package]
    for name, requirement in siblings.items():
        major, minor, _ = importlib.import_module(name.replace("-", "_")).__version__.split(".")
        breaking = (int(major), 0) if int(major) else (0, int(minor))
        following = f"{breaking[0] + 1}" if int(major) else f"0.{int(minor) + 1}"
        lowest = f"{breaking[0]}.{minor}" if int(major) else f"0.{minor}"
        assert requirement == f"{name}>={lowest},<{following}"


@packages
def test_every_lower_bound_has_its_reason_beside_it(package: str) -> None:
    text = (ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
    requirements = [line for line in text.splitlines() if re.match(r"""\s+["'][^"']*>=""", line)]

    assert requirements or package == "mtl-core"
    without = [line.strip() for line in requirements if "#" not in line and not line.strip().startswith('"mtl-')]
    assert not without


@packages
def test_package_is_typed_and_documented(package: str) -> None:
    folder = ROOT / "packages" / package

    assert (folder / "src" / package.replace("-", "_") / "py.typed").is_file()
    assert (folder / "README.md").is_file()
    assert any((folder / "tests").glob("**/test_*.py"))


@packages
def test_no_tool_is_configured_outside_the_root(package: str) -> None:
    assert set(pyproject(package).get("tool", {})) <= {"hatch"}


def test_the_citation_names_a_version_that_exists() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    found = re.search(r"^version: (\S+)$", text, flags=re.MULTILINE)

    assert text.startswith("cff-version: 1.2.0\n")
    assert found is not None
    assert found[1] in {importlib.import_module(package.replace("-", "_")).__version__ for package in BELOW}
