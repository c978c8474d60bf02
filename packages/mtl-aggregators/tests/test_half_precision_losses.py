"""Losses in half precision weigh as the same numbers in single precision do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import available, log_transform, make
from mtl_core import InvalidInputError, Problem, step
from mtl_core.extension import CountsEpochs
from mtl_core.testing import small_problem


def trained(method: Any, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Weights of two steps that see the same losses in another dtype; the parameters stay."""
    problem, batch = small_problem(3, dtype=torch.float32)

    def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
        values = 1.5 + problem.losses(x).values * torch.tensor([1.0, 3.0, 9.0])
        # Rounded, and then perhaps widened again: equal numbers in both.
        return dict(zip(problem.tasks, values.bfloat16().to(dtype).unbind(), strict=True))

    other = Problem(problem.model, losses, shared="trunk", tasks=problem.tasks)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    torch.manual_seed(0)
    weights = []
    for number in range(2):
        if isinstance(method, CountsEpochs):
            method.start_epoch(number)
        report = step(other, batch, optimizer, method)
        weights.append(torch.zeros(3) if report.weights is None else report.weights.double())
    return weights, report.losses.double()


@pytest.mark.parametrize("logarithms", [False, True])
@pytest.mark.parametrize("name", [name for name in available() if make(name).facts.needs == "losses"])
def test_weights_are_those_of_single_precision(name: str, logarithms: bool) -> None:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        try:
            found.append(trained(log_transform(make(name)) if logarithms else make(name), dtype))
        except InvalidInputError:
            pytest.skip("no such method")
    for mine, wanted in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
