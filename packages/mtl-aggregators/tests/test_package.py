from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import mtl_aggregators
import mtl_aggregators.solvers
from mtl_core import Aggregator, LossWeighting, Method, Weighting
from mtl_core.extension import offers


def test_public_names() -> None:
    assert sorted(mtl_aggregators.__all__) == [
        "AlignedMTL",
        "AuxiliaryWeights",
        "Bilevel",
        "CAGrad",
        "COSMOS",
        "CRMOGM",
        "ConFIG",
        "DBMTL",
        "DWA",
        "DualProj",
        "ExcessMTL",
        "FAMO",
        "Facts",
        "FairGrad",
        "GLS",
        "GradDrop",
        "GradNorm",
        "GradVac",
        "GramianMethod",
        "GroupedGradVac",
        "IMGrad",
        "IMTL",
        "IMTLG",
        "IMTLL",
        "JacobianMethod",
        "Krum",
        "LS",
        "LossAwareMethod",
        "MARIGOLD",
        "MGDA",
        "MainTasks",
        "MoCo",
        "MoDo",
        "NashMTL",
        "Outcome",
        "PBI",
        "PCD",
        "PCGrad",
        "RLW",
        "RegularisedSolve",
        "SDMGrad",
        "SI",
        "STCH",
        "Scale",
        "SoftmaxWeights",
        "ThreeBatches",
        "TrimmedMean",
        "UPGrad",
        "UW",
        "WorstCaseDecrement",
        "available",
        "describe",
        "exact_hypergradient",
        "in_threes",
        "log_transform",
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
        "equal_projection",
        "factor",
        "fair_point",
        "fair_residual",
        "least_distance",
        "min_norm",
        "min_norm_residual",
        "project",
        "project_rows",
        "project_simplex",
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
        if offers(method, Method):
            assert isinstance(method, Method)
        elif method.facts.needs == "losses":
            assert isinstance(method, LossWeighting)
            assert method.needs == "losses"
        elif method.facts.needs == "jacobian":
            assert isinstance(method, Aggregator)
            assert not isinstance(method, Weighting)
        else:
            assert isinstance(method, Weighting)
            assert not isinstance(method, LossWeighting)
