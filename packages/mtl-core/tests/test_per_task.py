from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, NoLossesError, NonFiniteLossError, NonScalarLossError, collect, collect_per_task


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def loss(model: nn.Module, batch: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
    x, others = batch
    return (model(x) - others["y"]).square().mean()


def batches(n_tasks: int = 4) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, dtype=torch.float64, generator=generator), {"y": torch.full((6, 2), float(i)).double()})
        for i in range(n_tasks)
    ]


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_equals_one_loss_per_task(chunk_size: int | None) -> None:
    model = network()
    expected = collect([loss(model, batch) for batch in batches()], model.parameters())
    found = collect_per_task(model, loss, batches(), chunk_size=chunk_size, tasks=("a", "b", "c", "d"))
    torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.losses, expected.losses)
    assert found.tasks == ("a", "b", "c", "d")
    found.assign(found.combine(torch.ones(4)))
    assert all(p.grad is not None for p in model.parameters())


def test_only_the_shared_parameters() -> None:
    model = network()
    expected = collect([loss(model, batch) for batch in batches()], model[0].parameters())
    found = collect_per_task(model, loss, batches(), shared="0")
    torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-10, atol=1e-13)


class TestBadInput:
    def test_batches(self) -> None:
        model = network()
        with pytest.raises(NoLossesError, match="got none"):
            collect_per_task(model, loss, [])
        uneven = batches(2)
        uneven[1] = (uneven[1][0][:3], uneven[1][1])
        with pytest.raises(InvalidInputError, match=r"equal shapes, got \['\(3, 3\)', '\(6, 3\)'\]"):
            collect_per_task(model, loss, uneven)
        with pytest.raises(InvalidInputError, match="nested alike"):
            collect_per_task(model, loss, [batches(1)[0], (torch.ones(6, 3),)])
        with pytest.raises(InvalidInputError, match="must name each of the 2 batches"):
            collect_per_task(model, loss, batches(2), tasks=("a",))

    def test_losses(self) -> None:
        with pytest.raises(NonScalarLossError, match=r"got shape \(6, 2\)"):
            collect_per_task(network(), lambda model, batch: model(batch[0]), batches(2))
        bad = batches(2)
        bad[1][1]["y"].fill_(math.inf)
        with pytest.raises(NonFiniteLossError, match="'1' is inf"):
            collect_per_task(network(), loss, bad)
