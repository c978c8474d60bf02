"""What the solvers' time becomes where other processes hold the cores, and that BLAS's threads have no part in it.

Run it by ``nox -s bench -- contention``, or ``python benchmarks/contention.py [--busy N] [--seconds S]``.
Every method computes weights of one Gramian, in blocks that alternate between the package as it is ("one thread") and
the same without its limit on BLAS's threads ("all threads": as many as the environment allows). Beside it run as many
busy processes as there are cores, each of which ends by itself after the time that the whole may take. Leave
``OMP_NUM_THREADS`` and ``OPENBLAS_NUM_THREADS`` unset: set to 1, there is nothing to compare.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import numpy as np
import torch

from mtl_aggregators import MGDA, AlignedMTL, CAGrad, GramianMethod, NashMTL, UPGrad
from mtl_aggregators.bases import gramian_method
from mtl_core.extension import blas_pools

SIZES = (3, 11, 40, 100)
BLOCK = 10
SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


def methods() -> dict[str, GramianMethod]:
    """The methods whose weights are timed."""
    return {"MGDA": MGDA(), "UPGrad": UPGrad(), "AlignedMTL": AlignedMTL(), "NashMTL": NashMTL(), "CAGrad": CAGrad()}


def limited(limit: int) -> None:
    """Let the methods limit BLAS's threads from so many rows on."""
    gramian_method.FEW = limit  # type: ignore[attr-defined]


def timed(method: GramianMethod, gramian: torch.Tensor, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of single calls with BLAS's threads limited as they are, and with no limit."""
    as_it_is = gramian_method.FEW  # type: ignore[attr-defined]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[1]:
        for limit, record in zip((as_it_is, sys.maxsize), times, strict=True):
            limited(limit)
            for _ in range(BLOCK):
                start = time.perf_counter()
                method.weights(gramian)
                record.append(1e6 * (time.perf_counter() - start))
    limited(as_it_is)
    return np.array(times[0]), np.array(times[1])


def table(seconds: float, seed: int) -> None:
    """Print medians and 95th percentiles."""
    print(f"{'':12s}{'m':>5s}{'one thread':>13s}{'95 %':>9s}{'all threads':>14s}{'95 %':>9s}{'ratio':>9s}{'95 %':>9s}")
    for name, method in methods().items():
        for n_tasks in SIZES:
            rng = np.random.default_rng(seed)
            rows = rng.normal(size=(n_tasks, n_tasks + 5)) * np.logspace(-1, 1, n_tasks)[:, None]
            one, free = timed(method, torch.from_numpy(rows @ rows.T), seconds)
            (a, b), (c, d) = np.percentile(one, (50, 95)), np.percentile(free, (50, 95))
            print(f"{name:12s}{n_tasks:5d}{a:13.0f}{b:9.0f}{c:14.0f}{d:9.0f}{c / a:8.2f}×{d / b:8.2f}×", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="busy processes beside this one")
    parser.add_argument("--seconds", type=float, default=1.5, help="time per method and size")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    counts = ", ".join(str(pool.threads()) for pool in blas_pools()) or "no OpenBLAS found"
    print(f"µs of one weights() call beside {options.busy} busy processes; BLAS threads: {counts}")
    whole = 2.0 * options.seconds * len(SIZES) * len(methods()) + 10.0
    busy = [subprocess.Popen([sys.executable, "-c", SPIN, str(whole)]) for _ in range(options.busy)]
    try:
        table(options.seconds, options.seed)
    finally:
        for process in busy:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
