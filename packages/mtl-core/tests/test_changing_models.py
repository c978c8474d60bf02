"""A model that changes between steps: what is shared is found anew, or the step says that it cannot be."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from mtl_core import InvalidInputError, NoSharedParametersError, Problem, step
from mtl_core.testing import TwoLayers


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.tensor([2.0, 0.5], dtype=torch.float64)


class Weighted:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return 2.0 * losses[0] + 0.5 * losses[1]


METHODS: dict[str, Callable[[], Any]] = {
    "weighting": Equal,
    "losses": Weighted,
    "aggregator": lambda: lambda jacobian: 2.0 * jacobian[0] + 0.5 * jacobian[1],
}


class Adapted(nn.Module):
    """A layer with a low-rank part beside it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
        self.b = nn.Parameter(torch.ones(4, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + x @ self.a.T @ self.b.T


def layer(n_in: int = 4) -> nn.Linear:
    return nn.Linear(n_in, 4).double()


CHANGES: dict[str, Callable[[TwoLayers], object]] = {
    "weight norm": lambda m: parametrizations.weight_norm(m.trunk[0]),
    "old weight norm": lambda m: nn.utils.weight_norm(m.trunk[0]),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.trunk[0]),
    "pruned": lambda m: prune.l1_unstructured(m.trunk[0], "weight", amount=0.3),
    "adapted": lambda m: m.trunk.__setitem__(0, Adapted(m.trunk[0])),
    "added": lambda m: m.trunk.append(layer()),
    "replaced": lambda m: m.trunk.__setitem__(2, layer()),
    "another": lambda m: setattr(m, "trunk", nn.Sequential(layer(3))),
    "wrapped": lambda m: setattr(m, "trunk", nn.Sequential(m.trunk, layer())),
}


def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
    _, outputs = model(x)
    return {name: ((y - i) ** 2).mean() for i, (name, y) in enumerate(zip("ab", outputs, strict=True))}


def made(shared: Callable[[TwoLayers], Any]) -> tuple[TwoLayers, Problem, Tensor]:
    torch.manual_seed(0)
    model = TwoLayers(2)
    problem = Problem(model, losses, shared=shared(model), tasks=("a", "b"))
    return model, problem, torch.randn(5, 3, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("shared", [lambda m: m.trunk, lambda m: "trunk", lambda m: ["trunk.*"]])
def test_what_comes_into_the_shared_part_is_shared(shared: Any, stepped: bool, method: str, change: str) -> None:
    model, problem, x = made(shared)
    if stepped:
        step(problem, x, torch.optim.SGD(model.parameters(), lr=0.01), METHODS[method]())
    CHANGES[change](model)
    model.eval()  # spectral normalisation goes on in each evaluation otherwise
    trunk = {name: p for name, p in model.named_parameters() if name.startswith("trunk.") and p.requires_grad}
    assert problem.shared_names == tuple(trunk)
    found = losses(model, x)
    expected = torch.autograd.grad(2.0 * found["a"] + 0.5 * found["b"], [*trunk.values()])
    step(problem, x, torch.optim.SGD(model.parameters(), lr=0.0), METHODS[method]())
    for p, gradient in zip(trunk.values(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient)
    assert problem.shared == tuple(trunk.values())


NAMED: dict[str, Callable[[TwoLayers], Any]] = {
    "parameters": lambda m: m.trunk.parameters(),
    "names": lambda m: ["trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias"],
    "pattern": lambda m: ["trunk.*.weight", "trunk.*.bias"],
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(
    ("named", "change"),
    [
        *(("parameters", change) for change in CHANGES if change != "replaced"),
        *(("names", change) for change in ("weight norm", "old weight norm", "pruned", "adapted", "another")),
        *(("pattern", change) for change in ("weight norm", "old weight norm", "pruned", "adapted")),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_told_is_refused_before_anything_moves(method: str, named: str, change: str) -> None:
    model, problem, x = made(NAMED[named])
    CHANGES[change](model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # it stays refused
        with pytest.raises(InvalidInputError, match=r"changed since: .* came in, .* Make a new Problem"):
            step(problem, x, optimizer, METHODS[method]())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_parameters_that_were_given_stay_shared_where_a_head_comes_in() -> None:
    model, problem, x = made(lambda m: m.trunk.parameters())
    model.extra = layer()
    assert problem.shared == tuple(model.trunk.parameters())
    model.trunk[2] = layer()
    assert problem.shared == tuple(model.trunk.parameters())
    step(problem, x, torch.optim.SGD(model.parameters(), lr=0.1), Equal())


def test_a_shared_module_may_be_moved_but_not_be_gone() -> None:
    model, problem, _ = made(lambda m: m.trunk)
    trunk = model.trunk
    model.body = nn.ModuleDict({"trunk": trunk})
    del model.trunk
    assert problem.shared_names[0] == "body.trunk.0.weight"
    del model.body
    with pytest.raises(InvalidInputError, match=r"no longer at 'body\.trunk'"):
        problem.list_now()


def test_parametrisations_may_be_taken_off() -> None:
    torch.manual_seed(0)
    model = TwoLayers(2)
    parametrizations.weight_norm(model.trunk[0])
    problem = Problem(model, losses, shared=model.trunk, tasks=("a", "b"))
    parametrize.remove_parametrizations(model.trunk[0], "weight")
    assert set(problem.shared) == set(model.trunk.parameters())


def test_given_parameters_are_not_held() -> None:
    """As sharding puts others in their places, whose wholes must go."""
    model, problem, _ = made(lambda m: m.trunk.parameters())
    held = weakref.ref(model.trunk[0].weight)
    model.trunk[0].weight = nn.Parameter(model.trunk[0].weight.detach().clone())
    gc.collect()
    assert held() is None
    assert problem.shared == tuple(model.trunk.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_part_that_was_frozen_is_said_to_be(method: str) -> None:
    model, problem, x = made(lambda m: m.trunk)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(problem, x, optimizer, METHODS[method]())
    model.trunk.requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NoSharedParametersError, match="all frozen since"):
        step(problem, x, optimizer, METHODS[method]())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
