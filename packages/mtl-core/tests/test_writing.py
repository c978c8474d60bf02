"""``.grad`` as ``loss.backward()`` would leave it: the parameter's own layout, one memory per parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import Problem, collect, step
from mtl_core.collecting.writing import as_grad


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


ROUTES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "gramian": (Equal, {}),
    "no jacobian": (Equal, {"keep": "gramian"}),
    "jacobian": (lambda: lambda jacobian: jacobian.sum(0), {}),
    "losses": (Total, {}),
    "layer": (Equal, {"per": "layer"}),
}


def convolutions() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()),
            "a": nn.Conv2d(6, 2, 3),
            "b": nn.Conv2d(6, 2, 3),
        }
    )
    return model.to(memory_format=torch.channels_last), torch.randn(2, 3, 12, 12)


def losses_of(model: Any, x: Tensor) -> dict[str, Tensor]:
    z = model["trunk"](x)
    return {"a": model["a"](z).square().mean(), "b": (model["b"](z) - 1).square().mean()}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad], ids=lambda o: o.__name__
)
def test_fused_optimisers_on_channels_last_weights(route: str, optimizer: Any) -> None:
    method, options = ROUTES[route]
    ends = []
    for ours in (True, False):
        model, x = convolutions()
        opt = optimizer(model.parameters(), lr=1e-2, fused=True)
        problem = Problem(model, losses_of, shared=model["trunk"], tasks=("a", "b"))
        for _ in range(5):
            if ours:
                step(problem, x, opt, method(), **options)
            else:
                opt.zero_grad()
                sum(losses_of(model, x).values()).backward()  # type: ignore[union-attr]
                opt.step()
        ends.append([p.detach() for p in model.parameters()])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_strides_are_the_parameters_own(route: str) -> None:
    method, options = ROUTES[route]
    model, x = convolutions()
    model["trunk"][0].bias = nn.Parameter(torch.zeros(16)[::2])  # with gaps: then as rows
    problem = Problem(model, losses_of, shared=model["trunk"], tasks=("a", "b"))
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def look(parameters: Any) -> None:
        assert all(p.grad is not None for p in parameters)
        seen.extend((p.grad.stride(), as_grad(p, torch.zeros(p.shape)).stride()) for p in parameters)

    step(problem, x, torch.optim.SGD(model.parameters(), lr=0.1), method(), clip=look, **options)
    assert len(seen) == 8
    assert all(found == expected for found, expected in seen)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last),
        lambda: torch.zeros(3, 5).T,
        lambda: torch.zeros(2, 3, 4).permute(2, 0, 1),
        lambda: torch.zeros(4, 6)[:, ::2],
        lambda: torch.zeros(1).expand(5),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0, 3),
        lambda: torch.zeros(1, 4, 1),
    ],
)
def test_as_autograd_accumulates(make: Callable[[], Tensor]) -> None:
    """The strides that torch's own accumulation chooses, for any layout."""
    parameter = make().requires_grad_()
    (parameter * torch.arange(parameter.numel()).view(parameter.shape)).sum().backward()
    assert parameter.grad is not None
    found = as_grad(parameter, parameter.grad.clone(memory_format=torch.contiguous_format))
    assert torch.equal(found, parameter.grad)
    assert found.stride() == parameter.grad.stride() or parameter.numel() < 2


def test_expanded_and_common_gradients_get_memory_of_their_own() -> None:
    """A sum's gradient is one number, expanded; two inputs of a sum share one tensor. Clipping in place scales both."""
    trunk = nn.Parameter(torch.ones(2))
    left, right = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    losses = [(trunk.sum() + (left + right).sum()), trunk.sum() * 2]
    collect(losses, [trunk], heads=[left, right])
    assert left.grad is not None
    assert right.grad is not None
    left.grad.mul_(torch.tensor([1.0, 2.0, 3.0]))
    assert left.grad.tolist() == [1.0, 2.0, 3.0]
    assert right.grad.tolist() == [1.0, 1.0, 1.0]


def test_assign_may_accumulate() -> None:
    theta = nn.Parameter(torch.tensor([1.0, 2.0]))
    for k, expected in ((1, [2.0, 4.0]), (2, [4.0, 8.0])):
        grads = collect([theta.square().sum()], [theta])
        grads.assign(grads.combine(torch.ones(1)), accumulate=k == 2)
        assert theta.grad is not None
        assert theta.grad.tolist() == expected
