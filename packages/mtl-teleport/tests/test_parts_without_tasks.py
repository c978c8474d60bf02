"""A teleport on micro-batches of which one has no task: the same move as without that part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtl_core import MicroBatches, Problem, step
from mtl_core.testing import TwoLayers
from mtl_teleport import COST, TeleportReport
from mtl_teleport.triggers import Trigger


class Always(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return True


def test_the_move_is_that_of_the_other_parts() -> None:
    def losses(model: nn.Module, part: tuple[Tensor, str]) -> dict[str, Tensor]:
        x, names = part
        outputs = model(x)[1]
        return {name: (outputs["abc".index(name)] - 1.0).square().mean() for name in names}

    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full: list[Any] = [(x[:4], "abc"), (x[4:], "abc")]
    found = []
    for parts in (full, [(x[:3], ""), *full], [full[0], (x[:3], ""), full[1]]):
        torch.manual_seed(0)
        problem = Problem(TwoLayers(3), losses, shared="trunk", tasks=("a", "b", "c"))
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        cost = COST(trigger=Always(), max_steps=2, max_per_epoch=None)
        (report,) = step(problem, MicroBatches(parts), optimizer, cost).events
        assert isinstance(report, TeleportReport)
        found.append(torch.cat([p.detach().flatten() for p in problem.model.parameters()]))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])
