"""Every mode of collection against one backward pass per task, over drawn architectures and frozen parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_core import collect

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(width, width),
    "without bias": lambda width: nn.Linear(width, width, bias=False),
    "tanh": lambda width: nn.Tanh(),
    "gelu": lambda width: nn.GELU(),
    "softmax": lambda width: nn.Softmax(dim=1),
    "layer norm": lambda width: nn.LayerNorm(width),
    "batch norm": lambda width: nn.BatchNorm1d(width),
    "gated": lambda width: Gated(width),
    "skip": lambda width: Skip(width),
    "convolution": lambda width: Convolution(width),
}


class Gated(nn.Module):
    """One weight used twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(x)) * self.layer(torch.tanh(x))


class Skip(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.layer(x)


class Convolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unsqueeze(1)).mean(1)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, nn.ModuleList, Tensor]:
    """A trunk of drawn layers, its heads and a batch."""
    torch.manual_seed(draw(st.integers(0, 99)))
    width = draw(st.integers(2, 5))
    names = draw(st.lists(st.sampled_from(sorted(LAYERS)), max_size=4))
    trunk = nn.Sequential(nn.Linear(3, width), *(LAYERS[name](width) for name in names)).double()
    heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(draw(st.integers(1, 10)))).double()
    return trunk, heads, torch.randn(5, 3, dtype=torch.float64)


@settings(deadline=None)
@given(networks(), st.data())
def test_all_modes_agree(drawn: tuple[nn.Sequential, nn.ModuleList, Tensor], data: st.DataObject) -> None:
    trunk, heads, x = drawn
    parameters = list(trunk.parameters())
    for k in data.draw(st.sets(st.integers(1, len(parameters)), max_size=3)):
        if k < len(parameters):  # the first stays, so that every loss depends on something
            parameters[k].requires_grad_(False)
    shared = [p for p in parameters if p.requires_grad]
    features = trunk(x)
    losses = [(head(features) - i).square().mean() for i, head in enumerate(heads)]
    rows = [torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) for loss in losses]
    expected = torch.stack(
        [
            torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(row, shared, strict=True)])
            for row in rows
        ]
    )
    weights = torch.randn(len(losses), dtype=torch.float64)
    scale = float(expected.abs().max())
    form = data.draw(st.sampled_from(["sequence", "stack", "sum of a matrix"]))
    outputs: list[Tensor] | Tensor = losses
    if form == "stack":
        outputs = torch.stack(losses)
    elif form == "sum of a matrix":
        outputs = torch.stack(losses) * torch.ones((), dtype=torch.float64)
    for through in (None, features):
        for chunk_size in (None, 1, 2, len(losses)):
            found = collect(outputs, shared, features=through, chunk_size=chunk_size, retain_graph=True)
            torch.testing.assert_close(found.combine(weights), weights @ expected, rtol=1e-9, atol=1e-11 * scale)
            torch.testing.assert_close(found.matrix, expected, rtol=1e-9, atol=1e-11 * scale)
        kept = collect(outputs, shared, features=through, keep="gramian", retain_graph=True)
        torch.testing.assert_close(kept.gramian, expected @ expected.T, rtol=1e-8, atol=1e-11 * scale**2)
        torch.testing.assert_close(kept.combine(weights), weights @ expected, rtol=1e-9, atol=1e-11 * scale)
