"""Forward passes that write into parameters: a search makes dozens of them, and must leave no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import InvalidInputError, Problem
from mtl_core.extension import collect_batch
from mtl_teleport import COST, Always, Dense, LoRA, PeftLoRA, RandomTeleport

LOW, HIGH = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [6, 7]])


class Words(nn.Module):
    """An embedding that shortens the rows it uses, and a layer."""

    def __init__(self, kind: str = "embedding") -> None:
        super().__init__()
        self.words = (
            nn.EmbeddingBag(8, 3, max_norm=1.0, mode="sum") if kind == "bag" else nn.Embedding(8, 3, max_norm=1.0)
        )
        self.layer = nn.Linear(3, 2)
        with torch.no_grad():
            self.words.weight.copy_(torch.arange(24.0).view(8, 3) + 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.words(x)
        return self.layer(torch.tanh(found if found.ndim == 2 else found.sum(1)))


def _problem(model: nn.Module) -> Problem:
    def losses(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = m(x)
        return {"a": (y[:, 0] - 1).square().mean() + 1, "b": (y[:, 1] + 1).square().mean() + 1}

    return Problem(model, losses, shared=model, tasks=("a", "b"))


@pytest.mark.parametrize("kind", ["embedding", "bag"])
@pytest.mark.parametrize("adapter", [LoRA(2), Dense(targets="layer"), PeftLoRA(2)], ids=["LoRA", "Dense", "PeftLoRA"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_refused_search_shortens_no_row_of_a_probe_batch(kind: str, adapter: Any, mode: Any) -> None:
    torch.manual_seed(0)
    model = Words(kind)
    problem, before = _problem(model), model.words.weight.detach().clone()
    cost = COST(
        trigger=Always(), max_per_epoch=None, aim=None, max_steps=2, lr=0.02, adapter=adapter, mode=mode,
        probe_batches=[LOW, HIGH], max_drift=1e-300, backtracks=0, own_step="skip", sharpness="random",
    )  # fmt: skip
    (report,) = mtl_core.step(problem, LOW, torch.optim.SGD(model.parameters(), lr=0.1), cost).events
    assert not report.accepted  # type: ignore[union-attr]
    changed = (model.words.weight != before).any(dim=1)
    # Those of the step's own batch, as in any step.
    assert changed.tolist() == [True] * 4 + [False] * 4


def test_by_hand_no_row_is_shortened() -> None:
    torch.manual_seed(0)
    model = Words()
    problem = _problem(model)
    gradients = collect_batch(problem, LOW)
    before = copy.deepcopy(model.state_dict())
    cost = COST(max_steps=2, max_drift=1e-300, backtracks=0, adapter=Dense(targets="layer"))
    assert not cost.teleport(problem, [LOW, HIGH], gradients, lr=0.02).accepted
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Codebook(nn.Module):
    """A frozen parameter that is a moving average, written in training mode."""

    def __init__(self, *, within: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.code = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.within = within

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                (self.code if not self.within else self.layer.weight).mul_(0.9).add_(0.1 * x.mean(0))
        return self.layer(x + self.code)


@pytest.mark.parametrize("within", ["", "layer"])
@pytest.mark.parametrize("make", [COST, lambda **settings: RandomTeleport(length=0.1, **settings)])
@pytest.mark.parametrize("fires", [True, False])
def test_losses_that_write_into_a_parameter_are_refused_where_a_search_could_be(
    within: str, make: Any, fires: bool
) -> None:
    """Each evaluation of a search moved the average on, refused or not."""
    torch.manual_seed(0)
    model = Codebook(within=within)
    method = make(trigger=lambda gramian: fires, max_per_epoch=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    name = "layer.weight" if within else "code"
    with pytest.raises(InvalidInputError, match=f"must not write into parameters.*got a forward pass.*into {name}"):
        mtl_core.step(_problem(model), torch.randn(4, 3), optimizer, method)
    assert method.schedule.steps == 0


def test_recurrent_layers_and_buffers_are_no_such_thing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model.register_module("recurrent", nn.LSTM(3, 2))
    problem = Problem(
        model,
        lambda m, x: (m[1](m[0](x)) + m.recurrent(x)[0]).square().mean(0) + 1,
        shared=model,
        tasks=("a", "b"),
    )
    cost = COST(trigger=Always(), max_per_epoch=None, max_steps=2, lr=0.02, own_step="skip")
    for _ in range(2):
        report = mtl_core.step(problem, torch.randn(4, 3), torch.optim.SGD(model.parameters(), lr=0.1), cost)
        assert [event.kind for event in report.events] == ["teleport"]
