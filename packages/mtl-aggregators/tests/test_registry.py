from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import mtl_aggregators
from mtl_aggregators import MGDA, FairGrad, NashMTL, available, describe, make
from mtl_aggregators.registry import facts_table, method_class, own_methods
from mtl_core import InvalidInputError, InvalidParameterError, UnknownNameError
from mtl_core.extension import find_plugin, plugin_names


def test_available() -> None:
    assert available() == [
        "alignedmtl",
        "cagrad",
        "config",
        "cosmos",
        "crmogm",
        "dbmtl",
        "dualproj",
        "dwa",
        "excessmtl",
        "fairgrad",
        "famo",
        "gls",
        "graddrop",
        "gradnorm",
        "gradvac",
        "imgrad",
        "imtl",
        "imtlg",
        "imtll",
        "krum",
        "ls",
        "marigold",
        "mgda",
        "moco",
        "modo",
        "nashmtl",
        "pbi",
        "pcd",
        "pcgrad",
        "rlw",
        "sdmgrad",
        "si",
        "stch",
        "trimmedmean",
        "upgrad",
        "uw",
    ]
    for name in available():
        assert isinstance(make(name), torch.nn.Module)


@pytest.mark.parametrize("name", ["nashmtl", "NashMTL", "Nash-MTL", "nash_mtl", "NASH MTL"])
def test_spellings(name: str) -> None:
    assert isinstance(make(name), NashMTL)


def test_parameters_reach_the_method() -> None:
    method = make("fairgrad", alpha=2)
    assert isinstance(method, FairGrad)
    assert method.alpha == 2.0
    with pytest.raises(InvalidParameterError):
        make("fairgrad", alpha=0)


def test_unknown_method() -> None:
    with pytest.raises(UnknownNameError, match="fairgrad") as caught:
        make("fairgard")
    assert caught.value.name == "fairgard"
    assert list(caught.value.valid) == available()
    assert "Did you mean 'fairgrad'" in str(caught.value)
    with pytest.raises(UnknownNameError):
        describe("nothing")


def test_unknown_option() -> None:
    with pytest.raises(UnknownNameError, match="option of FairGrad 'alhpa'") as caught:
        make("fairgrad", alhpa=2.0)
    assert list(caught.value.valid) == ["alpha", "variant", "ridge", "paper_scale", "backend"]
    assert "Did you mean 'alpha'" in str(caught.value)


def test_description() -> None:
    text = describe("Nash-MTL")
    assert text.startswith("NashMTL: ")
    for part in ("update_weights_every", "non_conflicting", "degree of homogeneity: 0", "ICML 2022"):
        assert part in text


def test_a_method_s_name_is_its_class_s() -> None:
    for name, cls in own_methods().items():
        assert cls.__name__.lower() == name
        assert method_class(cls.__name__) is cls


def test_every_method_is_exported() -> None:
    missing = [cls.__name__ for cls in own_methods().values() if cls.__name__ not in mtl_aggregators.__all__]
    assert not missing, f"add to mtl_aggregators/__init__.py, its imports and __all__: {missing}"


def test_every_method_has_a_test_file() -> None:
    tests = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    wanted = {f"test_{cls.__module__.rpartition('.')[2]}.py": cls.__name__ for cls in own_methods().values()}
    missing = {file: name for file, name in wanted.items() if file not in tests}
    assert not missing, f"write these files, each for its method: {missing}"


def test_every_method_is_in_the_documentation() -> None:
    page = Path(__file__).parents[3] / "docs" / "methods.md"
    if not page.is_file():
        pytest.skip("the documentation is not part of the package")
    assert facts_table() in page.read_text(encoding="utf-8"), "run: python -m mtl_aggregators --into docs/methods.md"


def test_the_registry_is_the_same_in_every_process() -> None:
    code = "from mtl_aggregators.registry import own_methods as f; print([c.__qualname__ for c in f().values()])"
    here = str([cls.__qualname__ for cls in own_methods().values()])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == here


def brought(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """As if packages with these entry points were installed."""
    monkeypatch.setattr("mtl_core.plugins.entry_points", lambda group: [p for p in points if p.group == group])


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    brought(monkeypatch, EntryPoint("Mine-Own", "mtl_aggregators.mgda:MGDA", "mtl.methods"))
    assert "mineown" in available()
    assert isinstance(make("mine_own", paper_scale=True), MGDA)
    assert describe("mineown").startswith("MGDA: ")
    assert "`mineown`" in facts_table()
    with pytest.raises(UnknownNameError, match="Did you mean 'mineown'"):
        make("minewon")


def test_an_entry_point_that_cannot_be_imported_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("broken", "no_such_module:Method", "mtl.methods")

    class Distribution:
        name = "their-package"

    vars(point)["dist"] = Distribution()
    brought(monkeypatch, point)
    with pytest.raises(InvalidInputError, match=r"'broken' of the package 'their-package'.*no_such_module.*Upgrade"):
        make("broken")


def test_two_packages_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ("mtl_aggregators.mgda:MGDA", "mtl_aggregators.pcgrad:PCGrad")
    brought(monkeypatch, *(EntryPoint("twice", value, "mtl.methods") for value in values))
    with pytest.raises(InvalidInputError, match=r"must be brought by one package.*pcgrad:PCGrad"):
        make("twice")


def test_a_class_by_its_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        'from mtl_aggregators.mgda import MGDA\n\n\nclass Mine(MGDA):\n    """One of mine."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert type(make("mine:Mine", normalization="l2")).__name__ == "Mine"
    assert describe("mine:Mine").startswith("Mine: One of mine.")
    for spec, error in {
        "mine:Min": "Did you mean 'Mine'",
        "absent.module:Class": "must name a module that can be imported, got ModuleNotFoundError",
        "mine:": "must be a name or 'package.module:Class', got 'mine:'",
        ":Mine": "must be a name or 'package.module:Class', got ':Mine'",
    }.items():
        with pytest.raises(InvalidInputError, match=error):
            make(spec)


def test_other_groups_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    point: Any = EntryPoint("far", "mtl_aggregators.nash_mtl:NashMTL", "mtl.benchmarks")
    brought(monkeypatch, point)
    assert plugin_names("mtl.benchmarks") == ["far"]
    assert find_plugin("benchmark", "FAR", "mtl.benchmarks") is NashMTL
    with pytest.raises(UnknownNameError, match=r"unknown benchmark 'near'.*far, toy"):
        find_plugin("benchmark", "near", "mtl.benchmarks", others=["toy"])
