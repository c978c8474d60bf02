from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_core import DuplicateModuleError, InvalidInputError, InvalidParameterError, NoMatchError, Problem
from mtl_teleport import OFT, Dense, LoHa, LoKr, LoRA
from mtl_teleport.adapters import Adapter
from mtl_teleport.adapters.kronecker import balanced_factors

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


class Messages(nn.Module):
    """A graph layer: each edge carries its own matrix, made from its features, from node to node."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 6 * 4))
        self.root = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        nodes = x.view(-1, 6)
        source, target = torch.arange(len(nodes)), torch.arange(len(nodes)).roll(1)
        matrices = self.edge(nodes[source, :2] - nodes[target, :2]).view(-1, 6, 4)
        messages = torch.einsum("ni,nio->no", nodes[source], matrices)
        return nodes @ self.root + torch.zeros(len(nodes), 4).to(messages).index_add(0, target, messages)


class Pair(nn.Module):
    """A bilinear form of the input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.form(x, x.flip(-1))
        return found


class Reshaped(nn.Module):
    """A layer of one or three dimensions on the same input."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.reshape(self.shape))
        return found


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "bilinear": Pair,
    "convolution": lambda: nn.Conv2d(4, 3, 3, padding=1),
    "convolution 1d": lambda: Reshaped(nn.Conv1d(4, 6, 3), 2, 4, 36),
    "convolution 3d": lambda: Reshaped(nn.Conv3d(1, 3, 2), 2, 1, 4, 6, 6),
    "pointwise": lambda: nn.Conv2d(4, 7, 1),
    "strided": lambda: nn.Conv2d(4, 3, 3, stride=2, bias=False),
    "dilated": lambda: nn.Conv2d(4, 3, 3, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "reflected": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
    "transposed 1d, grouped": lambda: Reshaped(nn.ConvTranspose1d(4, 6, 3, groups=2, dilation=2), 2, 4, 36),
    "embedding": Words,
    "rnn": lambda: Sequence(nn.RNN),
    "lstm": lambda: Sequence(nn.LSTM),
    "gru": lambda: Sequence(nn.GRU),
    "attention": Attention,
    "graph": Messages,
    "transformer": lambda: Reshaped(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), -1, 4, 6),
}

ADAPTERS: dict[str, Callable[[int], Adapter]] = {
    "dense": lambda _: Dense(),
    "lora": lambda rank: LoRA(rank=rank),
    "loha": lambda rank: LoHa(rank=rank),
    "lokr": lambda rank: LoKr(rank=rank),
    "oft": lambda rank: OFT(block_size=rank + 1),
}


def _problem(layer: nn.Module) -> Problem:
    def losses(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        return torch.stack([y.square().mean(), (y - 1).square().mean()])

    return Problem(layer.double(), losses, shared=layer, tasks=("a", "b"))


def _train(session: Any, steps: int = 2) -> None:
    adam = torch.optim.Adam(session.trainable, lr=0.05)
    for _ in range(steps):
        point = session.parameters()
        loss = session.evaluate(X, parameters=point).values[0]
        gradients = session.differentiate(loss, session.trainable, at=point)
        for tensor, gradient in zip(session.trainable, gradients, strict=True):
            tensor.grad = gradient
        adam.step()


@given(name=st.sampled_from(sorted(LAYERS)), kind=st.sampled_from(sorted(ADAPTERS)), rank=st.integers(1, 6))
def test_a_teleport_keeps_everything_but_the_values(name: str, kind: str, rank: int) -> None:
    """The law of every adapter on weights, over kinds of layers."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    problem = _problem(layer)
    frozen = next((p for p in layer.parameters() if p.ndim == 1), None)
    if frozen is not None:
        frozen.requires_grad_(False)
    calls: list[str] = []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    next(layer.parameters()).register_hook(lambda gradient: calls.append("gradient"))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    problem.losses(X).values.sum().backward()
    optimizer.step()
    names, objects = [n for n, _ in layer.named_parameters()], [id(p) for p in layer.parameters()]
    modules, storage = [id(m) for m in layer.modules()], [p.data_ptr() for p in layer.parameters()]
    state = {id(p): {k: v.clone() for k, v in optimizer.state[p].items()} for p in layer.parameters()}
    values, flags = [p.detach().clone() for p in layer.parameters()], [p.requires_grad for p in layer.parameters()]
    before = problem.losses(X).values

    session = ADAPTERS[kind](rank).attach(problem, generator=torch.Generator().manual_seed(0))
    assert torch.equal(session.evaluate(X).values, before), "an adapter starts as an exact no-op"
    _train(session)
    adapted = session.evaluate(X).values
    assert not torch.equal(adapted, before)
    assert all(torch.equal(p, v) for p, v in zip(layer.parameters(), values, strict=True)), "not before merging"
    session.merge()

    torch.testing.assert_close(problem.losses(X).values, adapted)
    moved = {n for n, p, v in zip(names, layer.parameters(), values, strict=True) if not torch.equal(p, v)}
    reached = {n for n, p in problem.named_shared.items() if p.ndim >= 2}
    assert moved >= reached, "every weight is reached"
    assert [n for n, _ in layer.named_parameters()] == names
    assert [id(p) for p in layer.parameters()] == objects
    assert [p.data_ptr() for p in layer.parameters()] == storage
    assert [id(m) for m in layer.modules()] == modules
    assert [p.requires_grad for p in layer.parameters()] == flags
    for p in layer.parameters():
        assert optimizer.state[p].keys() == state[id(p)].keys()
        assert all(torch.equal(v, optimizer.state[p][k]) for k, v in state[id(p)].items())
    calls.clear()
    problem.losses(X).values.sum().backward()
    assert sorted(set(calls)) == ["forward", "gradient"], "hooks are still there"


@given(
    rows=st.integers(1, 6),
    columns=st.integers(2, 11),
    block=st.integers(2, 12),
    size=st.floats(1e-6, 1e2),
    seed=st.integers(0, 99),
)
def test_a_rotation_keeps_lengths_and_angles(rows: int, columns: int, block: int, size: float, seed: int) -> None:
    """Against the Cayley transform written out, and for rotations by any angle."""
    layer = nn.Linear(columns, rows, bias=False).double()
    session = OFT(block_size=block).attach(_problem_of(layer))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in session.trainable:
            tensor.copy_(size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    weight = layer.weight.detach()
    turned = weight + session.delta()["weight"]
    torch.testing.assert_close(turned @ turned.T, weight @ weight.T, rtol=1e-9, atol=1e-9)
    side = min(block, columns)
    skew = torch.zeros(side, side, dtype=torch.float64)
    skew[tuple(torch.triu_indices(side, side, 1))] = session.trainable[0][0].detach()
    skew = skew - skew.T
    identity = torch.eye(side, dtype=torch.float64)
    expected = weight[:, :side] @ (identity + skew) @ torch.linalg.inv(identity - skew)
    torch.testing.assert_close(turned[:, :side], expected, rtol=1e-7, atol=1e-9)


def test_a_rotation_by_hand() -> None:
    # One angle: q = tan(angle / 2) = 1 is a quarter turn, which takes (1, 2) to (-2, 1) or its opposite.
    layer = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
    session = OFT(block_size=2).attach(_problem_of(layer))
    with torch.no_grad():
        session.trainable[0].fill_(1.0)
    turned = layer.weight.detach() + session.delta()["weight"]
    torch.testing.assert_close(turned, torch.tensor([[-2.0, 1.0]], dtype=torch.float64))


def test_hadamard_and_kronecker_by_hand() -> None:
    layer = nn.Linear(4, 2, bias=False).double()
    session = LoHa(rank=1, alpha=2.0).attach(_problem_of(layer))
    with torch.no_grad():
        for tensor, values in zip(
            session.trainable,
            ([[1.0, 2.0, 3.0, 4.0]], [[1.0], [-1.0]], [[1.0, 0.0, 1.0, 2.0]], [[3.0], [1.0]]),
            strict=True,
        ):
            tensor.copy_(torch.tensor(values))
    expected = 2.0 * torch.tensor([[3.0, 0.0, 9.0, 24.0], [-1.0, 0.0, -3.0, -8.0]], dtype=torch.float64)
    torch.testing.assert_close(session.delta()["weight"], expected)
    # Rows split as 1 x 2 and columns as 2 x 2, so C is [1, 2] and B A is [2, 2].
    session = LoKr(rank=1, alpha=3.0).attach(_problem_of(layer))
    with torch.no_grad():
        for tensor, values in zip(session.trainable, ([[1.0, 10.0]], [[1.0, 2.0]], [[1.0], [-1.0]]), strict=True):
            tensor.copy_(torch.tensor(values))
    expected = 3.0 * torch.tensor([[1.0, 2.0, 10.0, 20.0], [-1.0, -2.0, -10.0, -20.0]], dtype=torch.float64)
    torch.testing.assert_close(session.delta()["weight"], expected)


@given(n=st.integers(1, 5000))
def test_balanced_factors(n: int) -> None:
    p, q = balanced_factors(n)
    assert p * q == n
    assert p <= q
    assert all(n % k for k in range(p + 1, q) if k * k <= n)


def test_one_column_cannot_be_rotated() -> None:
    with pytest.raises(NoMatchError, match="two columns"):
        OFT().attach(_problem_of(nn.Linear(1, 3)))


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


@pytest.mark.parametrize("adapter", [LoRA, LoHa, LoKr])
@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 1.5}, {"alpha": 0.0}, {"alpha": -1.0}])
def test_bad_settings(adapter: Callable[..., Any], settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(settings))):
        adapter(**settings)


@pytest.mark.parametrize("size", [0, 1, 2.5])
def test_bad_block_size(size: Any) -> None:
    with pytest.raises(InvalidParameterError, match="block_size"):
        OFT(block_size=size)


def test_targets_must_be_patterns() -> None:
    with pytest.raises(InvalidInputError, match="targets"):
        LoRA(targets=[])
