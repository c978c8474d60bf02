from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtl_core.errors import NoMatchError
from mtl_core.functional import placed


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x))
        return found


def test_a_tied_parameter_is_replaced_under_all_its_names() -> None:
    model = Tied()
    own = model.first.weight
    for name in ("first.weight", "second.weight"):
        with placed(model, {name: 2.0 * torch.eye(2)}):
            assert model(torch.ones(1, 2)).tolist() == [[4.0, 4.0]]
        assert model.first.weight is own
        assert model.second.weight is own


def test_a_module_registered_twice_gets_its_own_back() -> None:
    layer = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(layer, layer)
    own = layer.weight
    with placed(model, {"1.weight": torch.full((1, 1), 3.0)}):
        assert float(model(torch.ones(1, 1)).detach()) == 9.0
    assert layer.weight is own


def test_the_same_objects_come_back_in_their_order_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = [(name, id(p)) for name, p in model.named_parameters()]
    with pytest.raises(RuntimeError, match="inside"), placed(model, {"0.bias": torch.zeros(3)}):
        raise RuntimeError("inside")
    assert [(name, id(p)) for name, p in model.named_parameters()] == before


def test_an_unknown_name_changes_nothing() -> None:
    model = nn.Linear(1, 1)
    own = model.weight
    with pytest.raises(NoMatchError, match=r"got \['wight'\]"), placed(model, {"weight": own * 2, "wight": own}):
        pass
    assert model.weight is own


def test_blocks_within_blocks() -> None:
    model = nn.Linear(1, 1, bias=False)
    x = torch.ones(1, 1)
    with placed(model, {"weight": torch.full((1, 1), 2.0)}):
        with placed(model, {"weight": torch.full((1, 1), 3.0)}):
            assert float(model(x)) == 3.0
        assert float(model(x)) == 2.0


@pytest.mark.parametrize("reentered", [True, False])
def test_a_recomputed_activation_is_that_of_the_placed_tensors(reentered: bool) -> None:
    """Outside of the block the recomputation reads the model's own parameters: the fault that this is for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    point = {n: (p.detach() + torch.randn_like(p)).requires_grad_() for n, p in model.named_parameters()}
    with placed(model, point):
        right = torch.autograd.grad(model(x).square().sum(), list(point.values()))
        loss = checkpoint(model, x, use_reentrant=False).square().sum()
        if reentered:
            found = torch.autograd.grad(loss, list(point.values()))
    if not reentered:
        found = torch.autograd.grad(loss, list(point.values()))
    same = all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, right, strict=True))
    assert same == reentered


def test_recurrent_layers() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    values = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    with placed(model, values):
        found = model(x)[0]
    other = nn.LSTM(3, 4, batch_first=True)
    other.load_state_dict(values)
    torch.testing.assert_close(found, other(x)[0].detach())
