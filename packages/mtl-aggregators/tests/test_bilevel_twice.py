"""The exact hypergradient on models of which not every operation can be differentiated twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtl_aggregators import MARIGOLD
from mtl_core import InvalidInputError, Problem, StepReport, step


class Doubled(torch.autograd.Function):
    """x², whose derivative comes without a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        found: Tensor = 2.0 * x * gradient
        return found


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Doubled.apply(self.inner(x))  # type: ignore[no-untyped-call]
        return found


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def stepped(trunk: nn.Module, **settings: Any) -> tuple[StepReport, Tensor]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": trunk, "heads": nn.ModuleList(nn.LazyLinear(1) for _ in range(2))})

    def losses(model: Any, x: Tensor) -> Tensor:
        z = model["trunk"](x)
        return torch.stack([(head(z) - i).square().mean() + 0.1 for i, head in enumerate(model["heads"])])

    batch = torch.randn(6, 5, 8)
    losses(model, batch)
    problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
    method = MARIGOLD(lr=0.1, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        report = step(problem, batch, optimizer, method)
    assert report.weights is not None
    return report, report.weights


def test_fused_attention_is_passed_by() -> None:
    torch.manual_seed(1)
    trunk = Attention()
    start = {name: value.clone() for name, value in trunk.state_dict().items()}
    with sdpa_kernel(SDPBackend.MATH):
        _, wanted = stepped(trunk, hypergradient="exact")
    trunk.load_state_dict(start)
    _, found = stepped(trunk, hypergradient="exact")
    assert not torch.allclose(wanted, torch.full((2,), 0.5, dtype=wanted.dtype))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_function_that_hides_its_second_derivative_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"got Doubled, whose backward .* Use hypergradient='zeroth_order'"):
        stepped(Once(), hypergradient="exact")
    assert bool(torch.isfinite(stepped(Once())[1]).all())


def test_a_bag_of_embeddings_has_no_second_derivative() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.EmbeddingBag(9, 8)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner(x[:, 0].abs().mul(3.0).long().clamp(max=8))
            return torch.tanh(found)

    with pytest.raises(InvalidInputError, match=r"twice differentiable for hypergradient='exact', got: .*zeroth_order"):
        stepped(Bag(), hypergradient="exact")
