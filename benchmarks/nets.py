"""The trunks that the benchmarks of collecting and stepping are run on."""

from __future__ import annotations

from torch import Tensor, nn, randn


class Pooled(nn.Module):
    """An encoder and decoder of 3×3 convolutions with batch normalisation, as SegNet's, of width 16."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

        w = width
        self.down = nn.ModuleList([block(3, w), block(w, 2 * w), block(2 * w, 4 * w), block(4 * w, 8 * w)])
        self.up = nn.ModuleList([block(8 * w, 4 * w), block(4 * w, 2 * w), block(2 * w, w), block(w, w)])
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        indices = []
        for block in self.down:
            x, index = self.pool(block(x))
            indices.append(index)
        for block in self.up:
            x = block(self.unpool(x, indices.pop()))
        return x


class Encoder(nn.Module):
    """A small transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(1)


def mlp() -> tuple[nn.Module, Tensor, int]:
    layers = [layer for _ in range(3) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers), randn(128, 1024), 1024


def tiny() -> tuple[nn.Module, Tensor, int]:
    layers = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(*layers), randn(32, 32), 32


def convolutional() -> tuple[nn.Module, Tensor, int]:
    return Pooled(), randn(4, 3, 64, 96), 16


def transformer() -> tuple[nn.Module, Tensor, int]:
    return Encoder(), randn(32, 24, 64), 64


NETS = {"mlp": mlp, "convolutional": convolutional, "transformer": transformer, "tiny": tiny}
