from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import mtl_aggregators
import mtl_aggregators.solvers
from mtl_core.protocols import LossWeighting, Weighting


def test_public_names() -> None:
    assert sorted(mtl_aggregators.__all__) == [
        "CAGrad",
        "Facts",
        "FairGrad",
        "GramianMethod",
        "LS",
        "MGDA",
        "NashMTL",
        "PCGrad",
        "RegularisedSolve",
        "Scale",
        "UPGrad",
        "available",
        "describe",
        "make",
        "plumbline",
        "stationarity_gap",
    ]
    for name in mtl_aggregators.__all__:
        assert hasattr(mtl_aggregators, name)


def test_public_names_of_the_solvers() -> None:
    assert sorted(mtl_aggregators.solvers.__all__) == [
        "BallSolution",
        "Solution",
        "UnitRows",
        "ball_dual",
        "factor",
        "fair_point",
        "fair_residual",
        "min_norm",
        "min_norm_residual",
        "project",
        "project_rows",
        "unit_rows",
    ]


def test_it_is_typed_and_versioned() -> None:
    assert files("mtl_aggregators").joinpath("py.typed").is_file()
    assert mtl_aggregators.__version__.count(".") == 2


def test_import_loads_neither_cvxpy_nor_hypothesis() -> None:
    code = "import sys, mtl_aggregators; print([n for n in ('cvxpy', 'hypothesis', 'scipy.stats') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_methods_fit_their_protocols() -> None:
    for name in mtl_aggregators.available():
        method = mtl_aggregators.make(name)
        if name == "ls":
            assert isinstance(method, LossWeighting)
            assert method.needs == "losses"
        else:
            assert isinstance(method, Weighting)
            assert getattr(method, "needs", None) != "losses"
