"""The port in docs/from_torchjd.md: their loop and ours, side by side, and the names that the page gives."""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_aggregators
import mtl_core
from mtl_aggregators import ConFIG

aggregation = pytest.importorskip("torchjd.aggregation")
PAGE = Path(__file__).parents[3] / "docs" / "from_torchjd.md"
MSE = nn.functional.mse_loss


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.a, self.b = nn.Linear(16, 1), nn.Linear(16, 1)

    def losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[list[Tensor], Tensor]:
        x, a, b = batch
        z = self.trunk(x)
        return [MSE(self.a(z), a), MSE(self.b(z), b)], z


def test_ten_steps_give_the_same_weights() -> None:
    from torchjd.autojac import jac_to_grad, mtl_backward

    torch.manual_seed(0)
    theirs = Net().double()
    ours = copy.deepcopy(theirs)
    batches = [tuple(torch.randn(32, width, dtype=torch.float64) for width in (6, 1, 1)) for _ in range(10)]

    optimizer, aggregator = torch.optim.SGD(theirs.parameters(), lr=0.05), aggregation.ConFIG()
    for batch in batches:
        losses, z = theirs.losses(batch)  # type: ignore[arg-type]
        optimizer.zero_grad()
        mtl_backward(losses, features=z)
        jac_to_grad(theirs.trunk.parameters(), aggregator)
        optimizer.step()

    optimizer, method = torch.optim.SGD(ours.parameters(), lr=0.05), ConFIG()
    heads = [*ours.a.parameters(), *ours.b.parameters()]
    for batch in batches:
        losses, z = ours.losses(batch)  # type: ignore[arg-type]
        optimizer.zero_grad()
        gradients = mtl_core.collect(losses, ours.trunk.parameters(), features=z, heads=heads)
        gradients.assign(method(gradients))
        optimizer.step()

    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def test_the_names_in_the_table_exist() -> None:
    table = re.search(r"^\| TorchJD.*?\n\n", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert table is not None
    modules = [importlib.import_module(f"torchjd.{name}") for name in ("aggregation", "autojac", "autogram")]
    scalarization = importlib.import_module("torchjd.scalarization")
    own = {*mtl_core.__all__, *mtl_aggregators.__all__, "COST"}
    absent = []
    for line in table[0].strip().splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        there = re.findall(r"`(?:aggregation\.|scalarization\.)?([A-Z]\w+)", cells[0])
        absent += [name for name in there if not any(hasattr(module, name) for module in [*modules, scalarization])]
        absent += [name for name in re.findall(r"`([A-Z]\w+)", cells[1]) if name not in own]

    assert absent == []


def test_the_recipe_steps_with_theirs_here_and_with_ours_there() -> None:
    recipes = PAGE.with_name("recipes.md").read_text(encoding="utf-8")
    first = re.search(r"^```python\n(.*?)^```$", recipes, flags=re.M | re.S)
    marked = re.search(r"<!-- recipe: torchjd -->\n```py\n(.*?)^```$", recipes, flags=re.M | re.S)
    assert first is not None
    assert marked is not None
    here, there = marked[1].split("\n\nlosses, z")
    page: dict[str, Any] = {"__name__": "__page__"}
    exec(first[1], page)
    trunk = list(page["model"].trunk.parameters())
    before = [p.detach().clone() for p in trunk]

    exec(here, page)
    assert not any(torch.equal(p, old) for p, old in zip(trunk, before, strict=True))

    steps = []
    page["optimizer"].register_step_pre_hook(lambda *_: steps.append([p.grad.clone() for p in trunk]))
    batch = page["draw"]()
    page["draw"] = lambda: batch
    losses, z = page["losses_fn"](page["model"], batch)
    gradients = mtl_core.collect(losses, trunk, features=z)
    expected = mtl_aggregators.UPGrad()(gradients.matrix)
    exec("losses, z" + there, page)
    ((*written,),) = steps
    torch.testing.assert_close(torch.cat([g.flatten() for g in written]), expected)
