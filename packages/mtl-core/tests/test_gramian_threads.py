"""Gramians of small Jacobians."""

from __future__ import annotations

import os
import subprocess
import sys


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
