"""The walk through a new method in CONTRIBUTING.md, taken in a copy of the packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(packages/\S+\.py)`:\n\n```py\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
SOURCES, TESTS = "packages/mtl-aggregators/src/mtl_aggregators", "packages/mtl-aggregators/tests"
NEEDED = (
    *(f"packages/{package}/src" for package in ("mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks")),
    TESTS,
    "docs/methods.md",
    "docs/choosing.md",
    "tests/test_docs.py",
    "pyproject.toml",
    "conftest.py",
)
COMMAND = "python -m mtl_aggregators --write docs/methods.md"


def copied(root: Path) -> Path:
    """The packages, and what their documentation and tests need."""
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    return root


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the copy."""
    sources = os.pathsep.join(str(root / name) for name in NEEDED if name.endswith("/src"))
    settings = {"PYTHONPATH": sources, "HYPOTHESIS_PROFILE": "ci", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env={**os.environ, **settings}, capture_output=True, text=True
    )


def pytest_on(root: Path, *arguments: str) -> str:
    """What pytest says about the copy: a line for every test, then the failures."""
    found = python(root, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)
    assert found.returncode in (0, 1), found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the files of the page have been written."""
    root = copied(tmp_path_factory.mktemp("walk"))
    for name, content in FILES.items():
        assert not (root / name).exists()
        (root / name).write_text(content, encoding="utf-8")
    return root


def test_two_files_each_and_short() -> None:
    assert list(FILES) == [
        f"{SOURCES}/inverse_norm.py",
        f"{TESTS}/test_inverse_norm.py",
        f"{SOURCES}/sum_of_squares.py",
        f"{TESTS}/test_sum_of_squares.py",
    ]
    for name, content in FILES.items():
        lines = [line for line in content.splitlines() if line.strip()]  # docstrings and imports count
        assert len(lines) <= 25, name


def test_the_files_are_formatted(walk: Path) -> None:
    pytest.importorskip("ruff")
    for command in (["check"], ["format", "--check"]):
        found = python(walk, "-m", "ruff", *command, "--no-cache", *FILES)
        assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_the_files_are_typed(walk: Path) -> None:
    pytest.importorskip("mypy")
    written = [name for name in FILES if name.startswith(SOURCES)]
    found = python(walk, "-m", "mypy", "--no-incremental", "--follow-imports=silent", *written)
    assert found.returncode == 0, found.stdout + found.stderr


def test_it_is_a_method_like_any_other(walk: Path) -> None:
    code = """
import mtl_aggregators, torch
from mtl_aggregators import InverseNorm, available, describe, make
from mtl_aggregators.registry import own_methods
from mtl_core import checks
assert type(make("Inverse-Norm")) is InverseNorm is own_methods()["inversenorm"]
assert "inversenorm" in available() and "sumofsquares" in available()
print(describe("inversenorm"))
print(describe("sumofsquares"))
print(make("inversenorm")(torch.eye(2)).tolist())
"""
    found = python(walk, "-c", code)
    assert found.returncode == 0, found.stderr
    for line in (
        "InverseNorm: Inverse-norm weighting: the sum of the unit gradients",
        "laws: equal_rows, homogeneous, orthogonal, permutation, zero_rows",
        "SumOfSquares: Half the sum of the squared losses",
        "degree of homogeneity: 2",
        "[1.0, 1.0]",
    ):
        assert line in found.stdout


def test_the_command_line_lists_it(walk: Path) -> None:
    found = python(walk, "-c", "from mtl_benchmarks.cli import main; raise SystemExit(main(['list']))")
    assert found.returncode == 0, found.stderr
    for name in ("inversenorm", "sumofsquares"):
        assert re.search(rf"method\W+{name}\b", found.stdout)


def test_the_documentation_is_written_by_the_command(walk: Path) -> None:
    assert f"$ {COMMAND}\n" in PAGE
    page = walk / "docs" / "methods.md"
    before = page.read_text(encoding="utf-8")
    told = pytest_on(walk, "tests/test_docs.py", f"{TESTS}/test_registry.py", "-k", "documentation or described")
    assert "test_docs.py::test_every_method_is_described[inversenorm] FAILED" in told
    assert "test_registry.py::test_every_method_is_in_the_documentation FAILED" in told
    assert f"run: {COMMAND}" in told

    assert python(walk, *COMMAND.split()[1:]).returncode == 0

    after = page.read_text(encoding="utf-8")
    assert [line for line in after.splitlines() if line not in before.splitlines()] == [
        line for line in after.splitlines() if "`inversenorm`" in line or "`sumofsquares`" in line
    ]
    assert after.count("| `inversenorm` |") == after.count("| `sumofsquares` |") == 2


def test_its_laws_run_by_themselves(walk: Path) -> None:
    python(walk, *COMMAND.split()[1:])
    files = ["facts", "scales", "loss_methods", "registry", "package", "inverse_norm", "sum_of_squares"]
    told = pytest_on(
        walk,
        *(f"{TESTS}/test_{name}.py" for name in files),
        "tests/test_docs.py",
        *("-k", "inversenorm or inverse_norm or sumofsquares or sum_of_squares or test_registry or test_package"),
    )
    assert " failed" not in told.splitlines()[-1], told
    for name in (
        "test_facts.py::test_declared_laws[inversenorm]",
        "test_facts.py::test_every_law_that_is_not_declared_is_broken_somewhere[inversenorm]",
        "test_facts.py::test_declared_scale[inversenorm]",
        "test_scales.py::test_declared_scale_is_the_measured_one[inversenorm]",
        "test_scales.py::test_declared_scale_is_the_measured_one[sumofsquares]",
        "test_loss_methods.py::test_declared_homogeneity[SumOfSquares]",
        "test_loss_methods.py::test_absent_tasks[SumOfSquares]",
        "test_inverse_norm.py::test_by_hand",
        "test_sum_of_squares.py::test_by_hand",
        "test_docs.py::test_every_method_is_described[inversenorm]",
    ):
        assert f"{name} PASSED" in told


FORGOTTEN: dict[str, tuple[str, str, str, str]] = {
    "NoTest": ("", "", "test_registry.py::test_every_method_has_a_test_file", "'test_no_test.py': 'NoTest'"),
    "NoAll": (
        '__all__ = ["NoAll"]',
        "",
        "test_registry.py::test_every_class_beside_the_methods_is_one",
        'add "NoAll" to __all__ in mtl_aggregators.no_all',
    ),
    "NoFacts": (
        "def facts(",
        "def fact(",
        "test_registry.py::test_every_class_beside_the_methods_is_one",
        "'NoFacts': ['implement `facts`']",
    ),
    "NoSolve": (
        "def solve(",
        "def solved(",
        "test_registry.py::test_every_class_beside_the_methods_is_one",
        "'NoSolve': ['implement `solve`']",
    ),
    "NoDefault": (
        "    def solve(",
        "    def __init__(self, *, power: float) -> None:\n        super().__init__()\n\n    def solve(",
        "test_registry.py::test_every_class_beside_the_methods_is_one",
        "'NoDefault': ['give `power` a default']",
    ),
    "WrongLaw": ('{"permutation"', '{"simplex", "permutation"', "test_facts.py::test_declared_laws[wronglaw]", ""),
    "TooFewLaws": (
        '"zero_rows"}',
        "}",
        "test_facts.py::test_every_law_that_is_not_declared_is_broken_somewhere[toofewlaws]",
        "AssertionError: zero_rows",
    ),
    "WrongScale": (
        '"1", lambda m: 1.0',
        '"1/m", lambda m: 1.0 / m',
        "test_scales.py::test_declared_scale_is_the_measured_one[wrongscale]",
        "AssertionError: 1/m",
    ),
    "OtherScale": (
        "paper_scale=ONE",
        'paper_scale=Scale("m", float)',
        "test_scales.py::test_facts_are_what_was_written_down[otherscale]",
        "write both scales of otherscale down in BY_HAND in test_scales.py",
    ),
    "NoOption": (
        "paper_scale=ONE",
        'paper_scale=Scale("m", float)',
        "test_scales.py::test_the_released_scale_can_be_had[nooption]",
        "",
    ),
}
"""What is forgotten: what of the example is replaced, by what, the test that fails, and what it says."""


def test_whatever_is_forgotten_is_named_by_a_test(tmp_path: Path) -> None:
    root = copied(tmp_path)
    method, test = (FILES[f"{folder}inverse_norm.py"] for folder in (f"{SOURCES}/", f"{TESTS}/test_"))
    for name, (there, instead, _, _) in FORGOTTEN.items():
        file = re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()
        content = method.replace("InverseNorm", name)
        assert there in content
        (root / SOURCES / f"{file}.py").write_text(content.replace(there, instead), encoding="utf-8")
        if name != "NoTest":
            (root / TESTS / f"test_{file}.py").write_text(test.replace("InverseNorm", name), encoding="utf-8")
    names = " or ".join(name.lower() for name in FORGOTTEN)
    told = pytest_on(
        root, *(f"{TESTS}/test_{name}.py" for name in ("registry", "facts", "scales")), "-k", f"registry or {names}"
    )
    for test, message in {(test, message) for _, _, test, message in FORGOTTEN.values()}:
        assert f"{test} FAILED" in told, told
        assert message in told, told


def test_a_method_that_is_lost_is_named_by_a_test(tmp_path: Path) -> None:
    root = copied(tmp_path)
    file = root / SOURCES / "gls.py"
    assert not file.exists()  # its class is in scalar.py
    scalar = root / SOURCES / "scalar.py"
    scalar.write_text(scalar.read_text().replace('__all__ = ["GLS", ', "__all__ = ["), encoding="utf-8")
    told = pytest_on(root, f"{TESTS}/test_registry.py", "-k", "test_available or is_one")
    assert "test_available FAILED" in told
    assert 'add "GLS" to __all__ in mtl_aggregators.scalar' in told
