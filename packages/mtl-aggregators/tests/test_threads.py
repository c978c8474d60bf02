"""Small problems run on one BLAS thread, and the process's own setting is as before afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mtl_aggregators import GramianMethod, available, make
from mtl_aggregators.bases import gramian_method
from mtl_aggregators.solvers.solution import Vector
from mtl_aggregators.solvers.threads import FEW, one_thread
from mtl_core.extension import blas_pools

POOLS = blas_pools()
pytestmark = pytest.mark.skipif(not POOLS, reason="numpy and scipy are not linked to OpenBLAS here")
OPTIONS = {"fairgrad": {"alpha": 2.0}}


def weightings() -> list[str]:
    """The names of all methods that inherit from ``GramianMethod``."""
    return [name for name in available() if isinstance(made(name), GramianMethod)]


def made(name: str) -> object:
    """A method by its name; ``None`` where it cannot be made without more."""
    try:
        return make(name, **OPTIONS.get(name, {}))
    except (TypeError, ValueError):
        return None


def counts() -> list[int]:
    return [pool.threads() for pool in POOLS]


def gramian(n_tasks: int) -> Tensor:
    rows = torch.randn(n_tasks, n_tasks + 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return rows @ rows.T


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = counts()
    for pool in POOLS:
        pool.limit(2)
    assert counts() == [2] * len(POOLS)
    yield
    for pool, count in zip(POOLS, before, strict=True):
        pool.limit(count)


def test_one_pool_for_each_library() -> None:
    assert 1 <= len(POOLS) <= 2
    for pool in POOLS:
        pool.limit(1)
        assert counts().count(1) == 1
        pool.limit(2)


@pytest.mark.parametrize("name", weightings())
def test_weights_are_solved_for_on_one_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = made(name)
    assert isinstance(method, GramianMethod)
    seen = []
    solve = method.solve

    def spied(matrix: Vector, losses: Vector | None) -> Vector:
        seen.append(counts())
        return solve(matrix, losses)

    monkeypatch.setattr(method, "solve", spied)
    method.weights(gramian(40), losses=torch.ones(40) if method.takes_losses else None)
    assert seen
    assert all(count == [1] * len(POOLS) for count in seen)
    assert counts() == [2] * len(POOLS)


def test_the_setting_returns_after_an_error() -> None:
    class Failing(GramianMethod):
        facts = None  # type: ignore[assignment]

        def solve(self, gramian: Vector, losses: Vector | None) -> Vector:
            raise RuntimeError("no weights")

    with pytest.raises(RuntimeError, match="no weights"):
        Failing().weights(gramian(40))
    assert counts() == [2] * len(POOLS)


def test_it_may_be_entered_within_itself() -> None:
    with one_thread:
        with one_thread:
            assert counts() == [1] * len(POOLS)
        assert counts() == [1] * len(POOLS)
    assert counts() == [2] * len(POOLS)


def test_a_count_of_one_is_left_alone() -> None:
    for pool in POOLS:
        pool.limit(1)
    with one_thread:
        assert counts() == [1] * len(POOLS)
    assert counts() == [1] * len(POOLS)


HANDED_OVER = """
import glob, sys, threading, time
import torch
from mtl_aggregators import AlignedMTL, CAGrad, IMTLG, MGDA, NashMTL, UPGrad
from mtl_aggregators.bases import gramian_method
from mtl_core.extension import blas_pools

def switches():
    own = str(threading.get_native_id())
    found = 0
    for path in glob.glob("/proc/self/task/*/status"):
        if path.split("/")[4] != own:
            with open(path) as status:
                found += sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
    return found

torch.set_num_threads(1)
for pool in blas_pools():
    pool.limit(2)
n_tasks, gramian_method.FEW = int(sys.argv[1]), int(sys.argv[2])
rows = torch.randn(n_tasks, n_tasks + 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
found = []
for _ in range(3):  # threads that were just made, or still look for work, may be seen in the first round
    time.sleep(0.5)
    before = switches()
    for method in (MGDA(), UPGrad(), AlignedMTL(), NashMTL(), CAGrad(), IMTLG()):
        method.weights(rows @ rows.T)
    found.append(switches() - before)
print(min(found))
"""


def handed_over(n_tasks: int, few: int) -> int:
    """How often other threads were woken while weights of so many tasks were computed, limited from ``few`` rows on."""
    arguments = [sys.executable, "-c", HANDED_OVER, str(n_tasks), str(few)]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=600).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts what threads did by /proc")
def test_no_other_thread_is_woken() -> None:
    assert gramian_method.FEW == FEW  # type: ignore[attr-defined]
    assert handed_over(100, few=FEW) == 0
    assert handed_over(FEW, few=FEW) == 0  # too few rows to be handed over, so that nothing need be limited
    assert handed_over(100, few=sys.maxsize) > 0  # the count sees what it is to see
