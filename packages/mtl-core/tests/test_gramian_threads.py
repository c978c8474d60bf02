"""Gramians that numpy computes, and the threads that it computes them on."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from mtl_core.collecting import gramian as module
from mtl_core.extension import NUMPY, BlasThreads, blas_pools, gramian_of

POOLS = blas_pools((NUMPY,))
openblas = pytest.mark.skipif(not POOLS, reason="numpy is not linked to OpenBLAS here")


def counts() -> list[int]:
    return [pool.threads() for pool in POOLS]


def test_small_products_keep_to_the_calling_thread() -> None:
    script = """
import time
import torch
from mtl_core.extension import gramian_of

torch.set_num_threads(1)
shapes = [(2, 9_999), (2, 10_001), (2, 16_384), (3, 10_922), (4, 8_192), (6, 5_461), (11, 2_166), (40, 163)]
for n_tasks, size in shapes:
    jacobian = torch.randn(n_tasks, size)
    gramian_of(jacobian)
    own, all_ = time.thread_time(), time.process_time()
    for _ in range(300):
        gramian_of(jacobian)
    own, all_ = time.thread_time() - own, time.process_time() - all_
    print(n_tasks, size, all_ / own)
"""
    # As on a machine where nothing limits the threads: waiting for others, they would spin.
    free = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=free, capture_output=True, text=True, check=True, timeout=300
    ).stdout
    shares = {tuple(map(int, line.split()[:2])): float(line.split()[2]) for line in printed.splitlines()}
    assert len(shares) == 8
    assert {shape: share for shape, share in shares.items() if share > 1.2} == {}


@openblas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("torchs", "numpys"), [(1, 1), (2, 2), (3, 2)])
def test_large_products_use_as_many_threads_as_torch(
    dtype: torch.dtype, torchs: int, numpys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    by_blocks = module._by_blocks

    def spied(array: np.ndarray) -> np.ndarray:
        seen.append(counts())
        return by_blocks(array)

    monkeypatch.setattr(module, "_by_blocks", spied)
    monkeypatch.setattr(module._as_many_as_torch, "_most", lambda: torchs)
    before = counts()
    for pool in POOLS:
        pool.limit(2)
    try:
        gramian_of(torch.randn(12, 5_000, dtype=dtype))
        assert seen == [[numpys] * len(POOLS)]
        assert counts() == [2] * len(POOLS)
    finally:
        for pool, count in zip(POOLS, before, strict=True):
            pool.limit(count)


def test_the_limit_is_torchs_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert module._as_many_as_torch._most() == 1
        torch.set_num_threads(2)
        assert module._as_many_as_torch._most() == 2
    finally:
        torch.set_num_threads(before)


@openblas
def test_the_setting_returns_after_an_error_and_when_the_last_has_left() -> None:
    limited = BlasThreads(lambda: 1, (NUMPY,))
    before = counts()
    for pool in POOLS:
        pool.limit(2)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with limited:
            entered.set()
            leave.wait(10.0)

    thread = threading.Thread(target=other)
    try:
        with contextlib.suppress(ZeroDivisionError), limited:
            thread.start()
            assert entered.wait(10.0)
            _ = 1 / 0
        assert counts() == [1] * len(POOLS)  # the other has not left
        leave.set()
        thread.join(10.0)
        assert counts() == [2] * len(POOLS)
    finally:
        leave.set()
        for pool, count in zip(POOLS, before, strict=True):
            pool.limit(count)


LAYOUTS = {
    "rows": lambda J: J,
    "columns": lambda J: J.T.contiguous().T,
    "every other column": lambda J: J.repeat_interleave(2, dim=1)[:, ::2],
    "some columns": lambda J: torch.cat([J, J], dim=1)[:, : J.shape[1]],
    "every other row": lambda J: J.repeat_interleave(2, dim=0)[::2],
    "one row, repeated": lambda J: J[:1].expand_as(J),
    "put off minus": lambda J: torch.view_as_complex(torch.stack([J, -J], dim=-1)).conj().imag,
}


SHAPES = [(1, 7), (2, 40_000), (3, 5_000), (5, 3_001), (6, 12_000), (12, 9), (13, 9_011), (70, 800)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 7), (2, 40_000), (3, 5_000), (5, 3_001), (6, 12_000), (12, 9), (13, 30_011), (70, 3_000)]
)
def test_every_way_gives_the_product_exactly_symmetric(shape: tuple[int, int], dtype: torch.dtype, layout: str) -> None:
    if layout == "put off minus" and dtype in (torch.float16, torch.bfloat16):
        pytest.skip("no complex numbers of that precision")
    plain = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    jacobian = LAYOUTS[layout](plain)
    wide = jacobian.double().resolve_neg().numpy()
    lengths = np.sqrt((wide * wide).sum(axis=1))
    # Sums in extended precision, a column of the Gramian at a time.
    expected = np.stack([(wide.astype(np.longdouble) * row).sum(axis=1) for row in wide]).astype(np.float64)
    found = gramian_of(jacobian)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert np.abs((found.numpy() - expected) / np.outer(lengths, lengths)).max() < 1e-14


@pytest.mark.parametrize("shape", [(2, 10), (3, 40_000), (7, 10), (7, 9_000), (40, 5_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_or_out_of_range_comes_out_without_a_warning(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    for value in (math.nan, math.inf, -math.inf, torch.finfo(dtype).max, torch.finfo(dtype).tiny):
        jacobian = torch.ones(*shape, dtype=dtype)
        jacobian[1, 3] = value
        found = gramian_of(jacobian)
        expected = value * value + shape[1] - 1.0
        torch.testing.assert_close(found[1, 1].item(), expected, equal_nan=True)
        assert found[0, 0] == shape[1]
