from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mtl_aggregators
from mtl_aggregators import MGDA, FairGrad, NashMTL, available, describe, make
from mtl_aggregators.__main__ import main, marks, write_page
from mtl_aggregators.registry import facts_table, method_class, methods_table, own_methods
from mtl_core import InvalidInputError, InvalidParameterError, UnknownNameError
from mtl_core.extension import find_plugin, plugin_names

RELEASED = [
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
"""Names that a version has shipped, so that none is lost; one that is new need not be here."""

NOT_METHODS = {
    "GroupedGradVac": "has no default for the groups' sizes",
    "LogGramian": "made by log_transform, around a method",
    "LogLosses": "made by log_transform, around a method",
    "LogStep": "made by log_transform, around a method",
}
"""Modules of torch beside the methods, which have no name of their own, and why."""


def test_available() -> None:
    assert not set(RELEASED) - set(available())
    assert available() == sorted(available())
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


def test_every_method_is_importable_from_the_top() -> None:
    for cls in own_methods().values():
        assert getattr(mtl_aggregators, cls.__name__) is cls
    with pytest.raises(AttributeError, match="module 'mtl_aggregators' has no attribute 'NashNTL'"):
        _ = mtl_aggregators.NashNTL  # type: ignore[attr-defined]


def lacks(cls: type, module: ModuleType) -> list[str]:
    """What keeps a class from being a method, each with the way out."""
    found = []
    if cls.__name__ not in vars(module).get("__all__", ()):
        found.append(f'add "{cls.__name__}" to __all__ in {module.__name__}')
    if not isinstance(inspect.getattr_static(cls, "facts", None), property):
        found.append("declare `facts` as a property")
    found += [f"implement `{name}`" for name in sorted(vars(cls).get("__abstractmethods__", ()))]
    found += [
        f"give `{name}` a default"
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return found


def test_every_class_beside_the_methods_is_one() -> None:
    missing = {}
    for info in pkgutil.iter_modules(mtl_aggregators.__path__):
        if info.ispkg or info.name == "__main__":
            continue
        module = importlib.import_module(f"mtl_aggregators.{info.name}")
        for name, cls in vars(module).items():
            own = isinstance(cls, type) and issubclass(cls, torch.nn.Module) and cls.__module__ == module.__name__
            if own and not name.startswith("_") and name not in NOT_METHODS and cls not in own_methods().values():
                missing[name] = lacks(cls, module)
    assert not missing, f"these are no methods yet: {missing}"


def test_every_method_has_a_test_file() -> None:
    tests = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    wanted = {f"test_{cls.__module__.rpartition('.')[2]}.py": cls.__name__ for cls in own_methods().values()}
    missing = {file: name for file, name in wanted.items() if file not in tests}
    assert not missing, f"write these files, each for its method: {missing}"


def test_every_method_is_in_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "methods.md"
    if not page.is_file():
        pytest.skip("the documentation is not part of the package")
    copy = tmp_path / "methods.md"
    shutil.copy(page, copy)
    write_page(copy)
    assert copy.read_text() == page.read_text(), "run: python -m mtl_aggregators --write docs/methods.md"


def test_rows_by_hand_stay_and_new_ones_come_from_the_docstring() -> None:
    by_hand = "| `mgda` | `MGDA` | by hand | me |"
    table = methods_table(
        f"| name | class | update | paper |\n|---|---|---|---|\n{by_hand}\n| `gone` | `Gone` | x | y |\n"
    )
    rows = {line.split("`")[1]: line for line in table.splitlines()[2:]}
    assert list(rows) == list(own_methods())
    assert rows["mgda"] == by_hand
    assert rows["gls"] == (
        "| `gls` | `GLS` | Geometric loss strategy: the geometric mean of the losses | Chennupati et al., CVPRW 2019 |"
    )


def test_pages_without_marks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    for text in (None, "# Nothing\n", "".join(marks("methods"))):
        if text is not None:
            page.write_text(text)
        with pytest.raises(InvalidInputError, match="`--write` must name a"):
            write_page(page)
        assert text is None or page.read_text() == text
    with pytest.raises(SystemExit) as exit:
        main(["--write", str(page)])
    assert exit.value.code == 2
    assert "`--write` must name a page with the lines" in capsys.readouterr().err


def test_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out == facts_table()
    main(["mgda"])
    assert capsys.readouterr().out == describe("mgda") + "\n"
    with pytest.raises(SystemExit):
        main(["mgd"])
    assert "Did you mean 'mgda'" in capsys.readouterr().err


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


def test_a_class_without_facts_or_defaults_is_described_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "class Bare:\n"
        '    """A callable."""\n\n'
        "    def __init__(self, *, size: int) -> None: ...\n\n"
        "    def __call__(self, jacobian: object) -> object: ...\n\n\n"
        "class Plain:\n"
        "    def __call__(self, jacobian: object) -> object: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    nothing = "facts: none declared for default settings"
    assert describe("bare:Bare") == f"Bare: A callable.\nsettings:\n  size: int\n{nothing}"
    assert describe("bare:Plain").endswith(f"settings:\n{nothing}")
    brought(monkeypatch, EntryPoint("bare", "bare:Bare", "mtl.methods"))
    assert "| `bare` | not declared |" in facts_table()


def test_other_groups_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    point: Any = EntryPoint("far", "mtl_aggregators.nash_mtl:NashMTL", "mtl.benchmarks")
    brought(monkeypatch, point)
    assert plugin_names("mtl.benchmarks") == ["far"]
    assert find_plugin("benchmark", "FAR", "mtl.benchmarks") is NashMTL
    with pytest.raises(UnknownNameError, match=r"unknown benchmark 'near'.*far, toy"):
        find_plugin("benchmark", "near", "mtl.benchmarks", others=["toy"])
