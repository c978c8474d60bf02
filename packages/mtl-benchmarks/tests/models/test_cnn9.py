"""The network for CelebA."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from mtl_benchmarks.models import CNN9
from mtl_benchmarks.models.declaration import count


def test_counts() -> None:
    model = CNN9([f"attribute {k}" for k in range(40)])
    assert count(model.parameters()) == 5_197_160
    assert count(model.shared_parameters()) == 5_176_640
    assert len(model.shared_parameters()) == 27
    assert sum(count(model.task_parameters(task)) for task in model.tasks) == 20_520


def test_layers_in_their_order() -> None:
    kinds = {nn.Conv2d: "c", nn.MaxPool2d: "m", nn.AdaptiveAvgPool2d: "a", nn.Linear: "l", nn.BatchNorm2d: "b"}
    kinds |= {nn.BatchNorm1d: "b", nn.ReLU: "r", nn.Flatten: ""}
    model = CNN9(("a",), width=2)
    assert "".join(kinds[type(layer)] for layer in model.trunk) == "cbrmcbrcbrmcbrcbrmcbrcbralbrlbr"
    widths = [layer.out_channels for layer in model.trunk if isinstance(layer, nn.Conv2d)]
    assert widths == [2, 4, 4, 8, 8, 16, 16]
    assert all(layer.bias is None for layer in model.trunk if isinstance(layer, nn.Conv2d | nn.Linear))


def test_logits_are_the_heads_of_the_features() -> None:
    torch.manual_seed(0)
    model = CNN9(("a", "b"), width=2).eval()
    x = torch.rand(4, 3, 64, 64)
    features = model.features(x)
    assert features.shape == (4, 16)
    for task, logit in model(x).items():
        torch.testing.assert_close(logit, functional.linear(features, *model.task_parameters(task))[:, 0])
