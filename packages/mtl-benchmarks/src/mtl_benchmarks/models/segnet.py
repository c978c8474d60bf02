r"""SegNet for dense prediction with one head per task, as in the papers' NYUv2 and CityScapes tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.models.declaration import TaskModel
from mtl_core import InvalidInputError, InvalidParameterError
from mtl_core.checks import one_of, positive, positive_int

__all__ = ["CITYSCAPES_OUTPUTS", "NYUV2_OUTPUTS", "STRIDE", "DenseOutput", "SegNet", "SegNetSplit", "Variant"]

Variant = Literal["standard", "wide", "deep"]
_STAGES = 5
STRIDE = 2**_STAGES
"""By which the sides of a picture must be divisible: each stage halves them."""


@dataclass(frozen=True)
class DenseOutput:
    """What a task predicts at every pixel.

    Args:
        channels: numbers per pixel.
        activation: ``"none"``, ``"log_softmax"`` over the channels, or ``"unit_length"``: each pixel's vector divided
            by its length, with nothing added to the length, as in the released code; zero stays zero.
    """

    channels: int
    activation: Literal["none", "log_softmax", "unit_length"] = "none"

    def __post_init__(self) -> None:
        positive_int("channels", self.channels)
        one_of("activation", self.activation, ("none", "log_softmax", "unit_length"))

    def activate(self, raw: Tensor) -> Tensor:
        """The prediction from what the head's last layer gives, ``[b, channels, h, w]``."""
        if self.activation == "log_softmax":
            return functional.log_softmax(raw, dim=1)
        if self.activation == "unit_length":
            # A pixel whose features are all zero gives exactly 0 before the biases have moved, seen in narrow networks:
            # no direction then, and no gradient, instead of 0 / 0.
            squared = raw.square().sum(1, keepdim=True)
            return raw / torch.where(squared == 0, 1.0, squared).sqrt()
        return raw


NYUV2_OUTPUTS: Mapping[str, DenseOutput] = {
    "semantic": DenseOutput(13, "log_softmax"),
    "depth": DenseOutput(1),
    "normal": DenseOutput(3, "unit_length"),
}
CITYSCAPES_OUTPUTS: Mapping[str, DenseOutput] = {"semantic": DenseOutput(7, "log_softmax"), "depth": DenseOutput(1)}


class Encoded(NamedTuple):
    """What the encoder leaves behind, stage by stage: before and after the second block, and where the maxima were."""

    first: list[Tensor]
    second: list[Tensor]
    places: list[Tensor]
    pooled: Tensor


class Decoded(NamedTuple):
    """What the decoder goes through, from the coarsest stage to the finest: unpooled, and after its blocks."""

    unpooled: list[Tensor]
    blocks: list[Tensor]


def filters(width: float, last: int = 512) -> list[int]:
    """Channels of the five stages, scaled.

    Raises:
        InvalidParameterError: a stage would not get a whole number of channels.
    """
    positive("width", width)
    scaled = [width * f for f in (64, 128, 256, 512, last)]
    if any(f != int(f) or f < 1 for f in scaled):
        raise InvalidParameterError(
            f"`width` must make 64 a whole number of channels, got {width}, which makes it {scaled[0]:g}. Use 1/4."
        )
    return [int(f) for f in scaled]


def block(inputs: int, outputs: int, *, repeats: int = 1) -> nn.Sequential:
    """Convolution of 3 × 3, batch normalisation, ReLU; several of them where asked for."""
    layers: list[nn.Module] = []
    for k in range(repeats):
        layers += [
            nn.Conv2d(inputs if k == 0 else outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def head(inputs: int, outputs: int) -> nn.Sequential:
    """A convolution of 3 × 3 and one of 1 × 1, with nothing between them."""
    return nn.Sequential(nn.Conv2d(inputs, inputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1))


def initialise(model: nn.Module, *, distribution: Literal["normal", "uniform"] = "normal") -> None:
    """Xavier weights and zero biases of convolutions; normalisation starts as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            (nn.init.xavier_normal_ if distribution == "normal" else nn.init.xavier_uniform_)(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def check_images(images: Tensor) -> None:
    """Make sure that five halvings of the sides leave whole numbers.

    Raises:
        InvalidInputError: otherwise.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % STRIDE or images.shape[3] % STRIDE:
        raise InvalidInputError(
            f"`images` must be [b, 3, h, w] with sides divisible by {STRIDE}, got {tuple(images.shape)}."
        )


class SegNet(TaskModel):
    """The encoder and decoder that the models for dense prediction share.

    Five stages of 64, 128, 256, 512, 512 channels. Each encoder stage ends in a maximum over 2 × 2 pixels whose places
    are kept; each decoder stage puts values back there.

    Args:
        outputs: what each task predicts.
        width: factor on the channels; 1 is the papers' network, 1/4 trains on a CPU.
        variant: ``"wide"`` doubles the channels of the last stage, ``"deep"`` every block.

    Raises:
        InvalidParameterError: ``width`` does not leave whole numbers of channels.
    """

    def __init__(
        self, outputs: Mapping[str, DenseOutput] = NYUV2_OUTPUTS, *, width: float = 1.0, variant: Variant = "standard"
    ) -> None:
        super().__init__(outputs)
        one_of("variant", variant, ("standard", "wide", "deep"))
        self.outputs = dict(outputs)
        self.filters = f = filters(width, last=1024 if variant == "wide" else 512)
        n = 2 if variant == "deep" else 1
        ins, outs = [3, *f[:-1]], [f[0], *f[:-1]]
        # The two finest stages have one block in their second part, the others two.
        depth = [1 if s < 2 else 2 for s in range(_STAGES)]
        self.encoder_block = nn.ModuleList(block(a, b, repeats=n) for a, b in zip(ins, f, strict=True))
        self.decoder_block = nn.ModuleList(block(a, b, repeats=n) for a, b in zip(f, outs, strict=True))
        self.conv_block_enc = nn.ModuleList(
            nn.Sequential(*(block(c, c, repeats=n) for _ in range(k))) for c, k in zip(f, depth, strict=True)
        )
        self.conv_block_dec = nn.ModuleList(
            nn.Sequential(*(block(c, c, repeats=n) for _ in range(k))) for c, k in zip(outs, depth, strict=True)
        )
        self.pred = nn.ModuleDict({task: head(f[0], output.channels) for task, output in self.outputs.items()})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's head."""
        return (self.pred[task],)

    def encode(self, images: Tensor) -> Encoded:
        """All five stages of the encoder on ``images [b, 3, h, w]``."""
        check_images(images)
        found = Encoded([], [], [], images)
        pooled = images
        for first, second in zip(self.encoder_block, self.conv_block_enc, strict=True):
            found.first.append(first(pooled))
            found.second.append(second(found.first[-1]))
            pooled, places = functional.max_pool2d(found.second[-1], 2, return_indices=True)
            found.places.append(places)
        return found._replace(pooled=pooled)

    def decode(self, encoded: Encoded) -> Decoded:
        """All five stages of the decoder, the coarsest first."""
        found = Decoded([], [])
        value = encoded.pooled
        for s in reversed(range(_STAGES)):
            found.unpooled.append(functional.max_unpool2d(value, encoded.places[s], (2, 2)))
            value = self.conv_block_dec[s](self.decoder_block[s](found.unpooled[-1]))
            found.blocks.append(value)
        return found

    def predict(self, task: str, representation: Tensor) -> Tensor:
        """A task's prediction ``[b, channels, h, w]`` from what its head reads."""
        return self.outputs[task].activate(self.pred[task](representation))


class SegNetSplit(SegNet):
    """SegNet whose tasks part after the last layer of the decoder; with one task it is the single-task network.

    Args:
        outputs: what each task predicts.
        width: factor on the channels; 1 is the papers' network, 1/4 trains on a CPU.
        variant: ``"standard"``, the papers'; ``"wide"`` doubles the channels of the last stage, ``"deep"`` every block.

    Example:
        >>> import torch
        >>> model = SegNetSplit(width=1 / 16)
        >>> features = model.features(torch.zeros(2, 3, 32, 64))
        >>> {task: tuple(model.predict(task, features).shape) for task in model.tasks}
        {'semantic': (2, 13, 32, 64), 'depth': (2, 1, 32, 64), 'normal': (2, 3, 32, 64)}

    References:
        Badrinarayanan et al., *SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation*, TPAMI
        2017; the variants are those of Liu et al., *End-to-End Multi-Task Learning with Attention*, CVPR 2019.
    """

    def __init__(
        self, outputs: Mapping[str, DenseOutput] = NYUV2_OUTPUTS, *, width: float = 1.0, variant: Variant = "standard"
    ) -> None:
        super().__init__(outputs, width=width, variant=variant)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """What all heads read, ``[b, 64 · width, h, w]``."""
        return self.decode(self.encode(images)).blocks[-1]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """One prediction ``[b, channels, h, w]`` per task."""
        features = self.features(images)
        return {task: self.predict(task, features) for task in self.tasks}

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The last shared layer: the second block of the finest decoder stage."""
        return list(self.conv_block_dec[0].parameters())
