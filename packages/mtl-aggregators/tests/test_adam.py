"""Adam on one vector: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from mtl_aggregators.bases.adam import Adam


def test_adam_lets_entries_rest() -> None:
    import numpy as np

    whole, halves = Adam(lr=0.1), Adam(lr=0.1)
    x = y = np.zeros(2)
    for k in range(6):
        x = whole.step(x, np.array([1.0, 2.0]), np.array([True, True]))
        y = halves.step(y, np.array([1.0, np.nan if k % 2 else 2.0]), np.array([True, k % 2 == 0]))
    assert y[0] == x[0]
    three = Adam(lr=0.1)
    z = np.zeros(1)
    for _ in range(3):
        z = three.step(z, np.array([2.0]), np.array([True]))
    assert y[1] == z[0]
