from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl_core.preservation import RandomState, Trace, preserved


class Model(nn.Module):
    """Buffers that are written to, replaced, and missing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("missing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.replaced = torch.ones(2)
        return self.drop(self.norm(x))


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    model = Model()
    x = torch.randn(5, 3)
    buffers = dict(model.named_buffers())
    values = {name: buffer.clone() for name, buffer in buffers.items()}
    state = torch.get_rng_state()
    with preserved(model):
        first = model(x)
        assert not torch.equal(model.norm.running_mean, values["norm.running_mean"])
    assert all(torch.equal(value, buffers[name]) for name, value in values.items())
    assert all(dict(model.named_buffers())[name] is buffer for name, buffer in buffers.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(x), first)  # the same dropout


def test_an_error_inside_leaves_nothing_either() -> None:
    model = Model()
    try:
        with preserved(model):
            model(torch.randn(5, 3))
            raise RuntimeError
    except RuntimeError:
        pass
    assert int(model.norm.num_batches_tracked) == 0
    assert not bool(model.replaced.any())


def test_unchanged_buffers_stay_usable_by_a_graph() -> None:
    layer = nn.BatchNorm1d(3).eval()
    trace = Trace(layer)
    x = torch.randn(4, 3, requires_grad=True)
    loss = (layer(x) * layer.running_var).sum()
    trace.restore()
    loss.backward()
    assert x.grad is not None


def test_an_earlier_state_is_lent() -> None:
    torch.manual_seed(0)
    model = Model()
    x = torch.randn(5, 3)
    trace = Trace(model)
    first = model(x)
    mean = model.norm.running_mean
    kept, state = mean.clone(), torch.get_rng_state()
    with trace.lent():
        assert torch.equal(model(x), first)
        assert model.norm.running_mean is not mean
    assert model.norm.running_mean is mean
    assert torch.equal(mean, kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_state() -> None:
    state = RandomState(nn.Linear(1, 1))
    first = torch.randn(3)
    state.restore()
    assert torch.equal(torch.randn(3), first)
