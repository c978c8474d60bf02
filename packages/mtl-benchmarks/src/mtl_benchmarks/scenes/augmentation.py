"""The papers' augmentation of NYUv2 and CityScapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mtl_benchmarks.scenes.layout import Scenes
from mtl_core import InvalidParameterError
from mtl_core.checks import in_interval

__all__ = ["augmented", "cropped", "flipped"]


def augmented(
    scenes: Scenes,
    *,
    generator: torch.Generator,
    scales: Sequence[float] = (1.0, 1.2, 1.5),
    flip: float = 0.5,
) -> Scenes:
    """Each picture cropped by a random scale and enlarged again, and flipped or not, with its maps.

    Args:
        scenes: pictures and maps; they are augmented independently of each other.
        generator: what is random comes from here.
        scales: a crop is ``1/s`` as high and wide, with ``s`` drawn uniformly from these, at a uniform place.
        flip: probability of a flip from left to right.

    Returns:
        as many scenes of the same size.

    Raises:
        InvalidParameterError: a scale is below 1, there is none, or ``flip`` is no probability.

    Note:
        As in the released code: depth is divided by the scale, in CityScapes as well, where it is inverse depth and
        would have to be multiplied; normals are neither turned nor brought back to length 1 after the enlargement,
        which blends them with invalid pixels at their borders.

    References:
        Liu et al., *End-to-End Multi-Task Learning with Attention*, CVPR 2019, released loaders.
    """
    in_interval("flip", flip, 0, 1)
    if not scales or min(scales) < 1:
        raise InvalidParameterError(f"`scales` must be numbers of 1 or more, got {tuple(scales)}.")
    found = []
    height, width = scenes.images.shape[2:]
    for k in range(len(scenes)):
        one = _row(scenes, k)
        scale = scales[_integer(len(scales), generator)]
        h, w = int(height / scale), int(width / scale)
        top, left = _integer(height - h + 1, generator), _integer(width - w + 1, generator)
        one = cropped(one, scale=scale, top=top, left=left)
        if float(torch.rand((), generator=generator)) < flip:
            one = flipped(one)
        found.append(one)
    return Scenes.stack(found)


def _integer(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _row(scenes: Scenes, k: int) -> Scenes:
    normals = None if scenes.normals is None else scenes.normals[k : k + 1]
    return Scenes(scenes.images[k : k + 1], scenes.labels[k : k + 1], scenes.depth[k : k + 1], normals, scenes.present)


def cropped(scenes: Scenes, *, scale: float, top: int, left: int) -> Scenes:
    """A part ``1/scale`` as high and wide, brought back to the whole size, with depth divided by the scale.

    Pictures and normals bilinearly with corners kept, labels and depth by the nearest pixel.
    """
    height, width = scenes.images.shape[2:]
    h, w = int(height / scale), int(width / scale)

    def part(values: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
        inner = values[..., top : top + h, left : left + w]
        # interpolate() takes no such setting with "nearest".
        corners = True if mode == "bilinear" else None
        return functional.interpolate(inner, size=(height, width), mode=mode, align_corners=corners)

    # interpolate() takes floating numbers only; class numbers are exact in them.
    labels = part(scenes.labels[:, None].float(), "nearest")[:, 0].long()
    normals = None if scenes.normals is None else part(scenes.normals, "bilinear")
    return Scenes.of(part(scenes.images, "bilinear"), labels, part(scenes.depth, "nearest") / scale, normals)


def flipped(scenes: Scenes) -> Scenes:
    """Left and right exchanged; normals point the other way in x."""
    normals = None
    if scenes.normals is not None:
        normals = scenes.normals.flip(3) * torch.tensor([-1.0, 1.0, 1.0], device=scenes.normals.device)[:, None, None]
    return Scenes(scenes.images.flip(3), scenes.labels.flip(2), scenes.depth.flip(3), normals, scenes.present)
