"""What docs/cost.md says that a smallest teleport costs, and how many steps save it, is what the budget counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtl_aggregators import LS, FairGrad
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_teleport import COST
from mtl_teleport.budget import look_passes, step_passes
from mtl_teleport.plan import LEAST_BATCHES, LEAST_STEPS

PAGE = (Path(__file__).parents[1] / "docs" / "cost.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| (\w+)[^|]* \| (\d+) \| (\d+)[^|]* \| (\d+) \| (\d+)[^|]* \| (\d+) \|$", PAGE, flags=re.MULTILINE
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_smallest_teleport_and_the_steps_that_save_it(row: tuple[str, ...]) -> None:
    name, *numbers = row
    m, with_gradients, steps_of_gradients, with_losses, steps_of_losses = map(int, numbers)

    assert m == len(benchmark_class(name.lower()).tasks)
    for method, passes, steps in (
        (FairGrad(), with_gradients, steps_of_gradients),
        (LS(), with_losses, steps_of_losses),
    ):
        prices = COST(method)._prices(m)
        assert prices.least(LEAST_BATCHES) + look_passes(method, m) == passes
        assert round(passes / (0.05 * step_passes(method, m))) == steps


def test_the_parts_of_a_search() -> None:
    assert [row[0] for row in ROWS] == ["digits", "MT10", "QM9"]
    assert (LEAST_STEPS, LEAST_BATCHES) == (3, 2)
    assert "three adapter steps on two probe batches" in PAGE
    assert (
        "costs 10 + 2m, a probe batch 2, the last look at the losses 1, the gradients at the new point 1 + 2m" in PAGE
    )
    for m in (2, 3, 11):
        prices = COST(LS())._prices(m)
        assert (prices.step, prices.batch, prices.fixed) == (10 + 2 * m, 2, 1 + 1 + 2 * m)
