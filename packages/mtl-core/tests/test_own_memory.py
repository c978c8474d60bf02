"""What is written to ``.grad`` is memory of its own: whoever scales it in place scales nothing else."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtl_core import Problem, step
from mtl_core.testing import small_problem

Keep = Literal["jacobian", "gramian", "features"]
ROUTES: tuple[Keep, ...] = ("jacobian", "gramian", "features")


class Weights:
    """Weights that differ, by way of the Gramian."""

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.linspace(0.5, 1.0, len(gramian), dtype=torch.float64)


class Constant(torch.autograd.Function):
    """``(x * c).sum()``, whose gradient is the caller's own tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor) -> Tensor:
        ctx.c = c
        return (x * c).sum()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        return ctx.c, None


class Sums(nn.Module):
    """Two shared parameters whose sum is all that is used, one of them by a view; two heads likewise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.p = nn.Parameter(torch.randn(3, 4))
        self.q = nn.Parameter(torch.randn(3, 4))
        self.r = nn.Parameter(torch.randn(12))
        self.heads = nn.ParameterList(torch.randn(12) for _ in range(4))


def losses(model: Sums, x: Tensor) -> tuple[Tensor, Tensor]:
    z = (model.p + model.q + model.r.view(3, 4)).tanh().flatten()
    first = (3.0 * ((model.heads[0] + model.heads[1]) * z).sum() - x).square()
    second = (3.0 * ((model.heads[2] + model.heads[3]) * z).sum() + x).square()
    return torch.stack([first, second]), z


def norm(parameters: Any) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters]).norm())


@pytest.mark.parametrize("clip", ["shared", "all"])
@pytest.mark.parametrize("keep", ROUTES)
@pytest.mark.parametrize("heads", ["unit", "weighted"])
def test_clipping_in_place_scales_each_gradient_once(keep: Keep, clip: Any, heads: Any) -> None:
    model = Sums()
    shared = [model.p, model.q, model.r]
    problem = Problem(model, losses, shared=shared, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step(problem, torch.tensor(2.0), optimizer, Weights(), keep=keep, heads=heads)
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    places = [p.grad.data_ptr() for p in model.parameters() if p.grad is not None]
    assert len(set(places)) == len(places)
    step(problem, torch.tensor(2.0), optimizer, Weights(), keep=keep, heads=heads, clip=clip, max_norm=0.1)
    clipped = shared if clip == "shared" else list(model.parameters())
    assert norm(clipped) == pytest.approx(0.1, rel=1e-4)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad / parameter.grad.norm(), plain[name] / plain[name].norm())


@pytest.mark.parametrize("keep", ROUTES)
def test_a_loss_scale_is_taken_off_once(keep: Keep) -> None:
    model = Sums()
    problem = Problem(model, losses, shared=[model.p, model.q, model.r], tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step(problem, torch.tensor(2.0), optimizer, Weights(), keep=keep)
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step(problem, torch.tensor(2.0), optimizer, Weights(), keep=keep, scaler=scaler)
    for parameter, wanted in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


@pytest.mark.parametrize("keep", ROUTES)
def test_a_tensor_of_the_users_is_left_alone(keep: Keep) -> None:
    mine = torch.tensor([1.0, 2.0, 3.0])
    model = nn.Module()
    model.shared = nn.Parameter(torch.ones(3))
    model.head = nn.Parameter(torch.ones(3))

    def kept(model: Any, c: Tensor) -> tuple[Tensor, Tensor]:
        z = model.shared * 1.0
        return torch.stack([Constant.apply(model.head, c) + z.sum(), Constant.apply(z, c)]), z

    def direct(model: Any, c: Tensor) -> Tensor:
        return torch.stack([Constant.apply(model.head, c) + model.shared.sum(), Constant.apply(model.shared, c)])

    problem = Problem(model, kept if keep == "features" else direct, shared=[model.shared], tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(problem, mine, optimizer, Weights(), keep=keep, clip="all", max_norm=0.1)
    assert mine.tolist() == [1.0, 2.0, 3.0]
    assert model.head.grad is not None
    assert model.head.grad.data_ptr() != mine.data_ptr()


@pytest.mark.parametrize("hand_out", [lambda m: m, lambda m: m.detach(), lambda m: m[:], lambda m: m.view(-1)])
def test_what_an_aggregator_keeps_is_not_written_to(hand_out: Any) -> None:
    class Average:
        def __init__(self) -> None:
            self.kept = torch.zeros(36)

        def __call__(self, jacobian: Tensor) -> Tensor:
            self.kept.mul_(0.9).add_(jacobian.sum(0).detach())
            found: Tensor = hand_out(self.kept)
            return found

    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    method = Average()
    problem.model.float()
    step(problem, batch.float(), optimizer, method, max_norm=1e-3)
    assert float(method.kept.norm()) > 0.1


def test_what_an_aggregator_keeps_in_numpy_is_not_written_to() -> None:
    kept = np.zeros(36)

    def average(jacobian: Tensor) -> Tensor:
        kept[:] = 0.9 * kept + jacobian.sum(0).numpy()
        return torch.from_numpy(kept)

    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    step(problem, batch, optimizer, average, max_norm=1e-3)
    assert np.linalg.norm(kept) > 0.1


@pytest.mark.parametrize("keep", ["jacobian", "gramian"])
def test_rows_of_a_sum_of_embeddings_are_written_twice(keep: Keep) -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.tables = nn.ParameterList(torch.randn(9, 3) for _ in range(2))
    model.heads = nn.ModuleList(nn.ModuleList(nn.Embedding(5, 3) for _ in range(2)) for _ in range(2))

    def losses(model: Any, ids: Tensor) -> Tensor:
        # Autograd hands out one sparse gradient for both terms.
        z = nn.functional.embedding(ids, model.tables[0] + model.tables[1], sparse=True)
        own = [nn.functional.embedding(ids, a.weight + b.weight, sparse=True) for a, b in model.heads]
        return torch.stack([(z * y).sum().square() for y in own])

    problem = Problem(model, losses, shared=model.tables, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    ids = torch.tensor([1, 2, 2])
    step(problem, ids, optimizer, Weights(), keep=keep)
    plain = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    step(problem, ids, optimizer, Weights(), keep=keep, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    for parameter, wanted in zip(model.parameters(), plain, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.is_sparse
        torch.testing.assert_close(parameter.grad.to_dense(), wanted)


def test_what_is_fresh_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl_core.collecting.writing import in_own_memory, own

    copied = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda self, **options: copied.append(1) or clone(self, **options))
    layer = nn.Linear(4, 3)
    gradients = torch.autograd.grad(layer(torch.ones(2, 4)).square().sum(), list(layer.parameters()))
    in_own_memory(gradients)
    fresh = torch.ones(2, 3).sum(0)
    own(fresh)
    assert not copied
