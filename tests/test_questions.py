"""The errors of docs/questions.md are raised, in those words, by the mistakes that the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import DBMTL, DWA, FAMO, SI, FairGrad
from mtl_teleport import COST

PAGE = (Path(__file__).parents[1] / "docs" / "questions.md").read_text(encoding="utf-8")
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)


def losses_of(model: Any, x: Tensor) -> dict[str, Tensor]:
    z = model.trunk(x)
    return {"a": (model.a(z) - 1).square().mean(), "b": (model.b(z) + 1).square().mean()}


def with_b(change: Callable[[Any, Tensor, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """Losses of which the second is made otherwise, from the model, its input and what the loss was."""

    def losses(model: Any, x: Tensor) -> dict[str, Any]:
        right = losses_of(model, x)
        return {"a": right["a"], "b": change(model, x, right["b"])}

    return losses


def step(losses: Any = losses_of, method: Any = None, optimizer: Any = torch.optim.SGD, times: int = 1) -> None:
    model = Net()
    problem = mtl_core.Problem(model, losses, shared=model.trunk, tasks=("a", "b"))
    stepper = optimizer(model.parameters(), lr=0.1)
    for _ in range(times):
        mtl_core.step(problem, X, stepper, FairGrad() if method is None else method)


def by_a_way_past_the_features(model: Any, x: Tensor) -> Any:
    return {"a": model.a(z := model.trunk(x)).square().mean(), "b": model.b(model.trunk(x)).square().mean()}, z


def collected_twice() -> None:
    model = Net()
    losses = losses_of(model, X)
    mtl_core.collect(losses, model.trunk.parameters())
    sum(losses.values(), torch.zeros(())).backward()


def wrapped() -> None:
    model = Net()
    mtl_core.Problem(nn.DataParallel(model), losses_of, shared=model.trunk, tasks=("a", "b"))


def parameters_outside_of_the_model() -> None:
    model, scale = Net(), nn.Parameter(torch.ones(()))
    problem = mtl_core.Problem(model, with_b(lambda m, x, b: b * scale), shared=model.trunk, tasks=("a", "b"))
    mtl_core.step(problem, X, torch.optim.SGD([*model.parameters(), scale], lr=0.1), FairGrad())


def within_no_grad() -> None:
    with torch.no_grad():
        step()


def sparse_under_adam() -> None:
    model = Net()
    model.trunk = nn.Sequential(nn.Embedding(5, 4, sparse=True))
    problem = mtl_core.Problem(model, losses_of, shared=model.trunk, tasks=("a", "b"))
    mtl_core.step(problem, torch.arange(5), torch.optim.Adam(model.parameters()), FairGrad())


def one_loss_of(other: Any) -> Callable[[Any, Tensor], Any]:
    return lambda model, x: losses_of(other, x)


MISTAKES: dict[str, list[Callable[[], object]]] = {
    "must depend on the shared parameters": [
        lambda: step(with_b(lambda model, x, b: b.detach())),
        lambda: step(one_loss_of(Net())),
    ],
    "must be a scalar tensor": [
        lambda: step(with_b(lambda model, x, b: model.b(model.trunk(x)).square())),
        lambda: step(with_b(lambda model, x, b: b.item())),
    ],
    "must return one number per task": [lambda: step(lambda model, x: sum(losses_of(model, x).values()))],
    "every task's loss must be finite": [lambda: step(with_b(lambda model, x, b: b * torch.nan))],
    "must be finite, got NaN or infinity though the losses are finite": [
        lambda: step(with_b(lambda model, x, b: (0 * b).sqrt()))
    ],
    "must match a parameter of the model": [
        lambda: mtl_core.Problem(Net(), losses_of, shared="encoder", tasks=("a", "b"))
    ],
    "must be the bare module": [wrapped],
    "must be the only way from the shared parameters to the losses": [lambda: step(by_a_way_past_the_features)],
    "that the optimiser holds and the model does not have": [parameters_outside_of_the_model],
    "Trying to backward through the graph a second time": [collected_twice],
    "gradients must be enabled for a training step": [within_no_grad],
    "must make its step from gradients": [lambda: step(optimizer=torch.optim.LBFGS)],
    "must lie above their lower bound": [lambda: step(with_b(lambda model, x, b: b - 100), FAMO())],
    "must be positive for": [
        lambda: step(with_b(lambda model, x, b: b - 100), SI()),
        lambda: step(with_b(lambda model, x, b: b - 100), DBMTL()),
    ],
    "must be called at the start of every epoch": [lambda: step(method=DWA(), times=30)],
    "count epochs, got none so far": [lambda: step(method=COST(FairGrad()))],
    "must take sparse gradients": [sparse_under_adam],
    "must be an instance, got the class": [lambda: step(method=FairGrad)],
}


def test_the_page_lists_these_errors() -> None:
    table = PAGE.partition("\n## What an error means\n")[2]
    assert re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE) == list(MISTAKES)


@pytest.mark.parametrize(("words", "mistake"), [(words, each) for words in MISTAKES for each in MISTAKES[words]])
def test_the_mistake_is_told_in_these_words(words: str, mistake: Callable[[], object]) -> None:
    expected = RuntimeError if words.startswith("Trying") else mtl_core.InvalidInputError
    with pytest.raises(expected, match=re.escape(words)):
        mistake()
