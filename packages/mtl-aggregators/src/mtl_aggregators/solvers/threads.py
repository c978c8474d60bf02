"""One BLAS thread for small matrices, whatever the process has set for large ones."""

from __future__ import annotations

from mtl_core.extension import NUMPY, SCIPY, BlasThreads

__all__ = ["FEW", "one_thread"]

FEW = 16
"""Rows up to which OpenBLAS keeps to the calling thread by itself in all that the solvers call."""

one_thread = BlasThreads(lambda: 1, (NUMPY, SCIPY))
"""``with one_thread:`` around work on small matrices."""
