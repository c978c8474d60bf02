from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtl_core.extension import Trace
from mtl_teleport.isolation import isolated


class Counting(nn.Module):
    """Replaces a buffer at every forward pass, in evaluation mode too, and draws a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x + torch.rand(())


def _net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Counting(), nn.Dropout())
    net[1].eval()  # a frozen layer in a model that trains
    return net


def test_no_trace_is_left() -> None:
    net = _net()
    flags, state = [m.training for m in net.modules()], torch.get_rng_state()
    buffers = [(b, b.clone()) for b in net.buffers()]
    with isolated(net):
        assert not any(m.training for m in net.modules())
        net.train()(torch.randn(4, 2))
    assert [m.training for m in net.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    for now, (tensor, value) in zip(net.buffers(), buffers, strict=True):
        assert now is tensor
        assert torch.equal(now, value)


def test_an_exception_leaves_no_trace_either() -> None:
    net, state = _net(), torch.get_rng_state()

    def fail() -> None:
        with isolated(net):
            torch.rand(3)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert net.training
    assert not net[1].training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trace_repeats_a_forward_pass() -> None:
    net = _net()
    trace, x = Trace(net), torch.ones(4, 2)
    first = net(x)
    trace.restore()
    assert torch.equal(net(x), first)
    assert float(net[2].calls) == 1.0


def test_in_its_own_mode_it_leaves_no_trace_either() -> None:
    net = _net()
    flags, state = [m.training for m in net.modules()], torch.get_rng_state()
    buffers = [(b, b.clone()) for b in net.buffers()]
    with isolated(net, mode="train"):
        assert [m.training for m in net.modules()] == flags
        net(torch.randn(4, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for now, (tensor, value) in zip(net.buffers(), buffers, strict=True):
        assert now is tensor
        assert torch.equal(now, value)
