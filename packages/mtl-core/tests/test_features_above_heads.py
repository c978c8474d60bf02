"""Features that lie above a head are refused: the gradients of what is below them would be lost without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, Problem, collect, step


class Net(nn.Module):
    """A trunk, two heads of two layers each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4)
        self.a = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        self.b = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


def outputs(net: Net, x: Tensor) -> dict[str, Tensor]:
    z = net.trunk(x).tanh()
    first, second = net.a[:2](z), net.b[:2](z)
    return {"z": z, "a": net.a[2](first), "b": net.b[2](second), "first": first, "second": second}


def losses(found: dict[str, Tensor]) -> Tensor:
    return torch.stack([found["a"].square().mean(), (found["b"] - 1.0).square().mean()])


CASES = {"outputs": ("a", "b"), "within heads": ("first", "second"), "one of them": ("first", "b")}


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"keep": "gramian"}, {"keep": "features"}])
@pytest.mark.parametrize("case", CASES)
def test_features_above_a_head(case: str, options: dict[str, Any]) -> None:
    net, x = Net(), torch.randn(5, 3)
    heads = [*net.a.parameters(), *net.b.parameters()]
    found = outputs(net, x)
    features = [found[name] for name in CASES[case]]
    with pytest.raises(InvalidInputError, match=r"must be the trunk's outputs, from which heads start, got some that"):
        collect(losses(found), net.trunk.parameters(), features=features, heads=heads, **options)
    assert all(h.grad is None for h in heads)
    collect(losses(found), net.trunk.parameters(), features=found["z"], heads=heads)
    assert all(h.grad is not None for h in heads)


@pytest.mark.parametrize("absent", [False, True])
def test_heads_of_absent_tasks_are_no_such_thing(absent: bool) -> None:
    net, x = Net(), torch.randn(5, 3)

    def of(model: Any, x: Tensor) -> Any:
        found = outputs(model, x)
        first, second = found["a"].square().mean(), (found["b"] - 1.0).square().mean()
        return {"a": first, "b": None if absent else second}, found["z"]

    problem = Problem(net, of, shared="trunk", tasks=("a", "b"))
    step(problem, x, torch.optim.SGD(net.parameters(), lr=0.1), lambda jacobian: jacobian.sum(0))
    assert all((p.grad is None) is absent for p in net.b.parameters())


def test_a_compiled_model_is_told_what_to_do() -> None:
    net, x = Net(), torch.randn(5, 3)

    def model(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = outputs(net, x)
        return found["z"], found["a"], found["b"]

    compiled = torch.compile(model, backend="aot_eager")
    heads = [*net.a.parameters(), *net.b.parameters()]
    z, a, b = compiled(x)
    values = losses({"a": a, "b": b})
    with pytest.raises(
        InvalidInputError, match=r"A compiled graph that holds heads too cannot be cut: compile the trunk"
    ):
        collect(values, net.trunk.parameters(), features=z, heads=heads)
    with pytest.raises(InvalidInputError, match=r"must be the trunk's outputs|one compiled graph together"):
        collect(values, net.trunk.parameters(), features=[z, a, b], heads=heads)
