"""Gradients that are not kept: the Gramian block by block, and by the features."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mtl_core import DetachedLossError, InvalidInputError, collect
from mtl_core.collecting.streaming import streamed_gramian
from mtl_core.testing import small_problem

WIDTH = 6


class Residual(nn.Module):
    """Skips, a concatenation, broadcasting, batch normalisation and a pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.last = nn.Linear(8, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = functional.relu(self.norm(self.first(x)))
        y = z + self.second(z) * self.scale
        return self.last(torch.cat([y, z], dim=1).mean((2, 3)))


class Recurrent(nn.Module):
    """One weight used many times, through a cell and a fused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, WIDTH, batch_first=True)
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        sequence, _ = self.layer(x.flatten(2))
        hidden = sequence[:, 0]
        for t in range(sequence.shape[1]):
            hidden = self.cell(sequence[:, t], hidden)
        return hidden


class TiedAndCheckpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, WIDTH)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.first(x.flatten(1)))
        z = checkpoint(lambda u: torch.tanh(self.second(u)), z, use_reentrant=False)
        return torch.tanh(self.third(z))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.last = nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.flatten(2))).mean(1)


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Embedding(5, WIDTH)
        self.sparse = nn.Embedding(5, WIDTH, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        index = x[:, 0, 0, 0].abs().clamp(max=4).long()
        return self.dense(index) * 2 + self.sparse(index)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * 3 * x**2


class Custom(nn.Module):
    """A hand-written backward pass, in a skip, and a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.phase = nn.Parameter(torch.ones(WIDTH, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.flatten(1))
        z = Cube.apply(z) * z
        return (z * self.phase).abs() * 0.1


NETWORKS = [Residual, Recurrent, TiedAndCheckpointed, Attention, Lookup, Custom]


def make(network: type[nn.Module], n_tasks: int, seed: int) -> tuple[nn.Module, nn.ModuleList, tuple[Tensor, ...]]:
    torch.manual_seed(seed)
    trunk = network()
    for tensor in (*trunk.parameters(), *trunk.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()
    heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(n_tasks)).double()
    z = trunk(torch.randn(3, 2, 2, 4, dtype=torch.float64))
    return trunk, heads, tuple((head(z) - i).square().mean() for i, head in enumerate(heads))


@settings(deadline=None)
@given(st.sampled_from(NETWORKS), st.integers(1, 4), st.integers(1, 200), st.data())
def test_streamed_gramian_is_exact(network: type[nn.Module], n_tasks: int, block: int, data: st.DataObject) -> None:
    trunk, heads, losses = make(network, n_tasks, seed=data.draw(st.integers(0, 5)))
    frozen = data.draw(st.sets(st.integers(0, 30), max_size=3))
    names = [str(i) for i in range(n_tasks)]
    shared = [p for i, p in enumerate(trunk.parameters()) if i not in frozen] or list(trunk.parameters())
    expected = collect(losses, shared, retain_graph=True)
    found, head_rows = streamed_gramian(losses, names, shared, list(heads.parameters()), block=block)
    torch.testing.assert_close(found, expected.gramian, rtol=1e-9, atol=1e-12 * float(expected.gramian.abs().max()))
    for i, row in enumerate(head_rows):
        touched = [g for g in row if g is not None]
        wanted = torch.autograd.grad(losses[i], list(heads[i].parameters()), retain_graph=True)
        assert len(touched) == len(wanted)
        for gradient, other in zip(touched, wanted, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("form", ["mapping", "stack", "joint"])
@pytest.mark.parametrize("features", [False, True])
def test_gradients_kept_as_their_gramian(form: str, features: bool) -> None:
    problem, batch = small_problem(3, form=form, features=features)  # type: ignore[arg-type]
    losses = problem.losses(batch)
    full = collect(losses.outputs, problem.shared, retain_graph=True)
    kept = collect(losses.outputs, problem.shared, features=losses.features, keep="gramian", heads=problem.heads)
    assert all(p.grad is not None for p in problem.heads)
    torch.testing.assert_close(kept.gramian, full.gramian)
    weights = torch.tensor([0.2, -1.0, 3.0])
    torch.testing.assert_close(kept.combine(weights), full.combine(weights), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kept.mean, full.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kept.norms, full.norms)
    kept.assign(kept.combine(weights))
    assert all(p.grad is not None and p.grad.shape == p.shape for p in problem.shared)
    with pytest.raises(InvalidInputError, match="keep='jacobian'"):
        _ = kept.matrix


def test_gramian_by_the_features_bounds_and_combines() -> None:
    problem, batch = small_problem(3, features=True)
    losses = problem.losses(batch)
    assert losses.features is not None
    full = collect(losses.outputs, problem.shared, retain_graph=True)
    kept = collect(losses.outputs, problem.shared, features=losses.features, keep="features")
    rows = [torch.autograd.grad(loss, losses.features, retain_graph=True)[0].flatten() for loss in losses.outputs]
    expected = torch.stack(rows)
    torch.testing.assert_close(kept.gramian, expected @ expected.T)
    weights = torch.tensor([0.5, 0.25, 0.25])
    torch.testing.assert_close(kept.combine(weights), full.combine(weights), rtol=1e-9, atol=1e-12)


def test_bad_input() -> None:
    problem, batch = small_problem()
    losses = problem.losses(batch)
    with pytest.raises(InvalidInputError, match="needs `features`"):
        collect(losses.outputs, problem.shared, keep="features")
    with pytest.raises(InvalidInputError, match=r"`keep` must be one of .*'features', got 'all'"):
        collect(losses.outputs, problem.shared, keep="all")  # type: ignore[arg-type]
    loose = nn.Parameter(torch.ones(()))
    with pytest.raises(DetachedLossError, match=r"\['b'\]"):
        collect({"a": losses.values[0], "b": loose * 2}, problem.shared, keep="gramian")


class Product(torch.nn.Module):
    """Two layers with a hook between them that doubles the gradient."""

    def __init__(self, hooked: bool) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.hooked = hooked

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        if self.hooked:
            h.register_hook(lambda gradient: gradient * 2)
        z: Tensor = self.second(h).tanh()
        return z


@pytest.mark.parametrize("hooked", [False, True])
def test_a_hook_that_a_cut_calls_twice_is_no_silent_error(hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_core.collecting.differentiation._BLOCKS", 100)
    torch.manual_seed(0)
    model = Product(hooked).double()
    z = model(torch.randn(5, 6, dtype=torch.float64))
    grads = collect([z.sum(), z.square().mean()], model.parameters(), keep="gramian", retain_graph=True)
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    if hooked:
        with pytest.raises(InvalidInputError, match=r"Look for hooks on activations"):
            grads.combine(weights)
        with pytest.raises(InvalidInputError, match=r"Look for hooks on activations"):
            grads.assign_combination(weights)
    else:
        expected = collect([z.sum(), z.square().mean()], model.parameters(), retain_graph=True)
        torch.testing.assert_close(grads.combine(weights), expected.combine(weights))


def test_complex_products_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_core.collecting.differentiation._BLOCKS", 100)
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 6, dtype=torch.complex128)
    z = layer(torch.randn(5, 6, dtype=torch.complex128))
    losses = [z.abs().sum(), (z * z).real.mean()]
    found = collect(losses, layer.parameters(), keep="gramian", retain_graph=True).gramian
    expected = collect(losses, layer.parameters()).gramian
    torch.testing.assert_close(found, expected)
