from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_core import Problem
from mtl_core.errors import DuplicateModuleError, InvalidInputError, InvalidParameterError, NoMatchError
from mtl_teleport import Dense, LoRA
from mtl_teleport.adapters import Adapter

X = torch.linspace(-1, 1, 2 * 4 * 6 * 6, dtype=torch.float64).view(2, 4, 6, 6)


class Sequence(nn.Module):
    """A recurrent layer, of which only the output counts."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cell(x.flatten(2))[0]
        return found


class Attention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(2)
        found: Tensor = self.attention(z, z, z)[0]
        return found


class Words(nn.Module):
    """An embedding of the signs of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 7)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table((x > 0).long())
        return found


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "convolution": lambda: nn.Conv2d(4, 3, 3, padding=1),
    "dilated": lambda: nn.Conv2d(4, 3, 3, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "reflected": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
    "embedding": Words,
    "lstm": lambda: Sequence(nn.LSTM),
    "gru": lambda: Sequence(nn.GRU),
    "attention": Attention,
}


def _problem(layer: nn.Module) -> Problem:
    def losses(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return torch.stack([y.square().mean(), (y - 1).square().mean()])

    return Problem(layer.double(), losses, shared=layer, tasks=("a", "b"))


def _train(session: Any, steps: int = 2) -> None:
    adam = torch.optim.Adam(session.trainable, lr=0.05)
    for _ in range(steps):
        for tensor, gradient in zip(
            session.trainable, session.differentiate(session.evaluate(X).values.sum(), session.trainable), strict=True
        ):
            tensor.grad = gradient
        adam.step()


@given(name=st.sampled_from(sorted(LAYERS)), dense=st.booleans(), rank=st.integers(1, 6))
def test_a_teleport_keeps_everything_but_the_values(name: str, dense: bool, rank: int) -> None:
    """The law of every adapter on weights, over kinds of layers."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    problem = _problem(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    problem.losses(X).values.sum().backward()
    optimizer.step()
    names, objects = [n for n, _ in layer.named_parameters()], [id(p) for p in layer.parameters()]
    modules, storage = [id(m) for m in layer.modules()], [p.data_ptr() for p in layer.parameters()]
    state = {id(p): {k: v.clone() for k, v in optimizer.state[p].items()} for p in layer.parameters()}
    values, flags = [p.detach().clone() for p in layer.parameters()], [p.requires_grad for p in layer.parameters()]
    before = problem.losses(X).values

    session = (Dense() if dense else LoRA(rank=rank)).attach(problem, generator=torch.Generator().manual_seed(0))
    assert torch.equal(session.evaluate(X).values, before), "an adapter starts as an exact no-op"
    _train(session)
    adapted = session.evaluate(X).values
    assert not torch.equal(adapted, before)
    assert all(torch.equal(p, v) for p, v in zip(layer.parameters(), values, strict=True)), "not before merging"
    session.merge()

    torch.testing.assert_close(problem.losses(X).values, adapted)
    assert [n for n, _ in layer.named_parameters()] == names
    assert [id(p) for p in layer.parameters()] == objects
    assert [p.data_ptr() for p in layer.parameters()] == storage
    assert [id(m) for m in layer.modules()] == modules
    assert [p.requires_grad for p in layer.parameters()] == flags
    for p in layer.parameters():
        assert all(torch.equal(v, optimizer.state[p][k]) for k, v in state[id(p)].items())


def test_low_rank_by_hand() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    session = LoRA(rank=1, alpha=4.0).attach(_problem_of(layer))
    a, b = session.trainable
    with torch.no_grad():
        a.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        b.copy_(torch.tensor([[1.0], [-1.0]]))
    expected = 4.0 * torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]], dtype=torch.float64)
    torch.testing.assert_close(session.delta()["weight"], expected)


def _problem_of(layer: nn.Module) -> Problem:
    return Problem(layer, lambda m, x: m(x).square().mean(0), shared=layer, tasks=("a", "b"))


def test_rank_is_capped_by_the_weight() -> None:
    session = LoRA(rank=50).attach(_problem(nn.Conv2d(4, 3, 3)))
    assert [tuple(t.shape) for t in session.trainable] == [(3, 36), (3, 3)]


def test_merge_takes_a_part() -> None:
    layer = nn.Linear(6, 3, bias=False)
    problem = _problem(layer)
    before = layer.weight.detach().clone()
    session = Dense().attach(problem)
    with torch.no_grad():
        session.trainable[0].fill_(2.0)
    session.merge(scale=0.25)
    torch.testing.assert_close(layer.weight.detach(), before + 0.5)


def test_initial_values_come_from_the_generator() -> None:
    problem = _problem(nn.Linear(6, 3))
    state = torch.get_rng_state()
    first = LoRA().attach(problem, generator=torch.Generator().manual_seed(3)).trainable[0]
    again = LoRA().attach(problem, generator=torch.Generator().manual_seed(3)).trainable[0]
    other = LoRA().attach(problem, generator=torch.Generator().manual_seed(4)).trainable[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.detach().abs().max()) <= 1 / math.sqrt(6)
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_weights_get_a_single_precision_adapter() -> None:
    layer = nn.Linear(3, 2).to(torch.bfloat16)
    session = LoRA().attach(_problem_of(layer))
    assert {t.dtype for t in session.trainable} == {torch.float32}
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert torch.equal(session.evaluate(x).values, _problem_of(layer).losses(x).values)


def test_a_displacement_handed_out_does_not_change() -> None:
    session = Dense().attach(_problem(nn.Linear(6, 3)))
    before = session.delta()
    _train(session)
    assert not any(bool(step.any()) for step in before.values())


def test_targets_name_parameters_or_layers() -> None:
    net = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3))
    problem = _problem(net)
    assert list(LoRA(targets="1").attach(problem).delta()) == ["1.weight"]
    assert list(LoRA(targets=["*.weight"]).attach(problem).delta()) == ["0.weight", "1.weight"]
    assert list(Dense(targets="0").attach(problem).delta()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("adapter", [LoRA(targets="decoder.*"), Dense(targets="decoder")])
def test_a_pattern_without_a_match_lists_what_there_is(adapter: Adapter) -> None:
    with pytest.raises(NoMatchError, match=r"`targets` pattern 'decoder.*got none. Supported: weight \(3, 6\)"):
        adapter.attach(_problem(nn.Linear(6, 3)))


def test_a_bias_has_no_low_rank() -> None:
    with pytest.raises(NoMatchError, match="'bias' must match a shared parameter with at least two dimensions"):
        LoRA(targets="bias").attach(_problem(nn.Linear(6, 3)))


def test_vectors_alone_need_a_dense_adapter() -> None:
    layer = nn.LayerNorm(6)
    with pytest.raises(NoMatchError, match=r"Use Dense\(\)"):
        LoRA().attach(_problem(layer))
    assert sorted(Dense().attach(_problem(layer)).delta()) == ["bias", "weight"]


def test_a_module_registered_twice_is_refused() -> None:
    layer = nn.Linear(6, 6)
    with pytest.raises(DuplicateModuleError, match="'0' and '1'"):
        LoRA().attach(_problem(nn.Sequential(layer, layer)))


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 1.5}, {"alpha": 0.0}, {"alpha": -1.0}])
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(settings))):
        LoRA(**settings)


def test_targets_must_be_patterns() -> None:
    with pytest.raises(InvalidInputError, match="targets"):
        LoRA(targets=[])
