from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import mtl_core
import mtl_core.testing
from mtl_core import InvalidParameterError, MissingExtraError, SolverError, UnknownNameError, checks


def test_public_names() -> None:
    assert sorted(mtl_core.__all__) == [
        "Aggregator",
        "ConflictMonitor",
        "DamagedFileError",
        "DetachedLossError",
        "DuplicateModuleError",
        "EpochConflict",
        "Event",
        "InvalidInputError",
        "InvalidJacobianError",
        "InvalidParameterError",
        "LossWeighting",
        "Method",
        "MicroBatches",
        "MissingExtraError",
        "NoLossesError",
        "NoMatchError",
        "NoSharedParametersError",
        "NonFiniteGradientError",
        "NonFiniteLossError",
        "NonFiniteStateError",
        "NonScalarLossError",
        "Note",
        "Problem",
        "RankError",
        "ResultsDirectoryError",
        "SkippedUpdate",
        "SolverError",
        "StepOptions",
        "StepReport",
        "TaskGradients",
        "TaskLosses",
        "TaskSampling",
        "UnknownNameError",
        "UpdateEvery",
        "Weighting",
        "accumulate",
        "checks",
        "collect",
        "collect_per_task",
        "conflict_count",
        "cosines",
        "dominated_conflict",
        "imbalance_ratio",
        "individual_progress",
        "majority_conflict",
        "mean_cosines",
        "step",
        "weak_conflict",
    ]
    for module in (mtl_core, mtl_core.testing):
        assert all(hasattr(module, name) for name in module.__all__)


def test_import_is_light() -> None:
    """Nothing heavy is imported that torch does not import itself, and the seed and thread count are left alone."""
    script = """
import sys, torch
before, seed, threads = set(sys.modules), torch.initial_seed(), torch.get_num_threads()
import mtl_core
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = new & {"scipy", "peft", "cvxpy", "hypothesis", "matplotlib", "mtl_aggregators", "mtl_teleport"}
assert not heavy, heavy
assert (seed, threads) == (torch.initial_seed(), torch.get_num_threads())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_errors_say_what_to_do() -> None:
    error = UnknownNameError("method", "fairgrd", ["CAGrad", "FairGrad"])
    assert str(error) == "unknown method 'fairgrd'. Did you mean 'FairGrad'? Valid: CAGrad, FairGrad."
    assert error.valid == ("CAGrad", "FairGrad")
    assert "Valid: none." in str(UnknownNameError("option", "x", []))
    assert (
        str(SolverError("no minimum", residual=0.5, iterations=3))
        == "no minimum (residual 5.000e-01 after 3 iterations)"
    )
    assert str(MissingExtraError("x", "mtl-core[testing]")).endswith("with: pip install 'hypothesis>=6.131'")
    assert str(MissingExtraError("x", "other[y]", dependencies=False)).endswith(
        "with: pip install --no-deps 'other[y]'"
    )


MEANT = [
    *((typed, "fairgrad") for typed in ("fairgard", "fairgrd", "Fair_grad", "FAIRGRADD", "fair", "fargrd")),
    *((typed, "mgda") for typed in ("mgdaa", "mdga", "gmda", "mga", "mgd")),
    ("nonw", "none"),
    ("cc", "c"),
    ("--epoch", "--epochs"),
    *((typed, None) for typed in ("nonesuch", "nowhere", "jump", "x", "adam", "cagradient", "", "randomness", "no")),
]


@pytest.mark.parametrize(("typed", "meant"), MEANT)
def test_what_is_suggested_is_a_slip_of_the_pen_away(typed: str, meant: str | None) -> None:
    error = UnknownNameError("name", typed, ["none", "random", "cost", "mgda", "fairgrad", "c", "cagrad", "--epochs"])
    assert ("Did you mean" in str(error)) == (meant is not None)
    assert meant is None or f"Did you mean {meant!r}?" in str(error)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (checks.positive, 0.0, "must be positive, got 0.0"),
        (checks.positive, float("inf"), "must be finite, got inf"),
        (checks.positive, "x", "must be a number, got 'x'"),
        (checks.non_negative, -1e-9, "must not be negative"),
        (checks.positive_int, 1.0, "must be a whole number of at least 1, got 1.0"),
        (checks.positive_int, True, "must be a whole number of at least 1, got True"),
        (checks.boolean, 1, "must be True or False, got 1"),
        (checks.boolean, "no", "must be True or False, got 'no'"),
        (checks.generator, 0, "must be a torch.Generator, got int"),
        (checks.names, "ab", "must be distinct names in a sequence, got 'ab'"),
        (checks.names, ("a", "a"), "must be distinct names"),
        (checks.names, (), "must be distinct names"),
        (checks.names, 3, "must be distinct names in a sequence, got 3"),
    ],
)
def test_checks_refuse(check: object, value: object, message: str) -> None:
    assert callable(check)
    with pytest.raises(InvalidParameterError, match=f"`c` {message}"):
        check("c", value)


def test_checks_return_what_they_are_given() -> None:
    assert checks.positive("c", 0.5) == 0.5
    assert checks.non_negative("c", 0) == 0.0
    assert checks.in_interval("c", 1, 0, 1) == 1.0
    assert checks.one_of("c", "a", ("a", "b")) == "a"
    assert checks.boolean("c", False) is False
    assert checks.names("c", ["a", "b"]) == ("a", "b")
    assert checks.names("c", None) is None
    generator = torch.Generator()
    assert checks.generator("c", generator) is generator
    assert isinstance(checks.generator("c", None), torch.Generator)
