"""Generated scenes as arrays in the official formats."""

from __future__ import annotations

from random import Random

import numpy
import torch
from torch import Tensor

from mtl_benchmarks.batching.batches import generator_of, mixed_seed
from mtl_benchmarks.scenes.generated.casting import Seen, look, shaded
from mtl_benchmarks.scenes.generated.imperfections import blotches, edges, framed
from mtl_benchmarks.scenes.generated.rooms import ROOM_CLASSES, room
from mtl_benchmarks.scenes.generated.streets import SKY, street
from mtl_benchmarks.scenes.generated.world import Camera

__all__ = ["Arrays", "rendered_room", "rendered_street"]

Arrays = dict[str, numpy.ndarray]
"""Folder of the official layout → what one of its files holds."""

_FARTHEST = 10.0
"""Metres that the depth camera of a room reaches."""

_INVERSE = 1.85
"""Inverse depth in shares of the sensor's range, times metres: a focal length of 2,262 pixels times a base of 0.21 m,
by 256 pixels of range, as for CityScapes' cameras."""

_NEAREST = 0.4922
"""The largest inverse depth of CityScapes: nothing nearer than 3.8 m has one."""


def _picture(colours: Tensor, height: int, width: int, generator: torch.Generator) -> numpy.ndarray:
    """Exposure, noise of the sensor, and eight bits per colour: ``[h, w, 3]`` in [0, 1]."""
    exposure = 0.85 + 0.4 * float(torch.rand((), generator=generator))
    values = exposure * colours.T.reshape(height, width, 3)
    values += 0.015 * torch.randn(values.shape, generator=generator)
    return ((values.clamp(0, 1) * 255).round() / 255).numpy()


def _labels(seen: Seen, height: int, width: int, generator: torch.Generator, border: int) -> Tensor:
    """Classes, −1 along the rim and along about half of the outlines, as an annotator leaves them."""
    labels = seen.labels.view(height, width)
    careless = blotches(height, width, generator, cells=5) > 0
    return torch.where((edges(labels.float(), 0.5) & careless) | framed(height, width, border), -1, labels)


def rendered_room(height: int, width: int, *, seed: int, split: int, index: int) -> Arrays:
    """A room with NYUv2's folders: depth in metres, normals to the right, up and towards the camera.

    Depth and normals are exact where they are valid. Depth is 0 beyond ten metres, where a surface is seen at a grazing
    angle, along most outlines, in blotches, and on most of windows and screens; normals are zero in the same places
    and along all outlines.

    Args:
        height: of the picture.
        width: of the picture.
        seed: of the whole set.
        split: number of the split.
        index: of the picture in it; a picture is a function of these and its size.
    """
    # Two sources of chance: what stands in the scene does not change with what the sensors draw.
    world, camera, light = room(Random(mixed_seed(seed, split, index, 0)))
    generator = generator_of(seed, split, index, 1)
    seen = look(world, camera, height, width)
    depth = seen.depth.view(height, width)
    # Of the logarithm: a step of 5 % is an outline near by and far away.
    outlines = edges(depth.log(), 0.05)
    glass = torch.tensor([name in ("window", "tv") for name in ROOM_CLASSES])[seen.labels].view(height, width)
    holes = blotches(height, width, generator)
    border = max(1, height // 48)
    invalid = (holes > torch.where(glass, -0.2, 1.5)) | _grazing(seen, camera, height, width, 0.12)
    invalid |= (depth > _FARTHEST) | framed(height, width, border)
    fringe = outlines & (blotches(height, width, generator) > -0.8)
    normals = _in_camera(seen.normals, camera).T.reshape(height, width, 3)
    return {
        "image": _picture(shaded(world, seen, light), height, width, generator),
        "label": _labels(seen, height, width, generator, border).float().numpy(),
        "depth": torch.where(invalid | fringe, 0.0, depth)[..., None].numpy(),
        "normal": torch.where((invalid | outlines)[..., None], 0.0, normals).numpy(),
    }


def rendered_street(height: int, width: int, *, seed: int, split: int, index: int) -> Arrays:
    """A street with CityScapes' folders: inverse depth, which is 0 in the sky, near the camera and in blotches.

    Args:
        height: of the picture.
        width: of the picture.
        seed: of the whole set.
        split: number of the split.
        index: of the picture in it; a picture is a function of these and its size.
    """
    world, camera, light = street(Random(mixed_seed(seed, split, index, 0)))
    generator = generator_of(seed, split, index, 1)
    seen = look(world, camera, height, width)
    nothing = seen.surfaces < 0
    horizon = torch.linspace(0.55, 1.0, height)[:, None].expand(height, width).flatten()
    clouds = 1 + 0.05 * blotches(height, width, generator, cells=4).flatten()
    sky = torch.tensor([0.62, 0.75, 0.92])[:, None] * horizon.sqrt() * clouds
    colours = torch.where(nothing, sky, shaded(world, seen, light))
    inverse = (_INVERSE / seen.depth).view(height, width)
    # The sky's depth is infinite, and the difference of two infinities NaN, which is no outline.
    outlines = edges(seen.depth.clamp(max=1e4).log().view(height, width), 0.08)
    invalid = (blotches(height, width, generator) > 1.3) | (inverse > _NEAREST)
    invalid |= outlines & (blotches(height, width, generator) > -0.5)
    rim = framed(height, width, max(1, height // 64))
    rim[height - max(2, height // 16) :] = True  # the bonnet of the car that the camera is in
    labels = _labels(seen, height, width, generator, 0)
    labels[nothing.view(height, width)] = SKY
    return {
        "image": _picture(colours, height, width, generator),
        "label_7": torch.where(rim, -1, labels).float().numpy(),
        "depth": torch.where(invalid | rim, 0.0, inverse)[..., None].numpy(),
    }


def _in_camera(normals: Tensor, camera: Camera) -> Tensor:
    """Normals ``[3, p]`` of the world in the camera's axes: right, up, and back towards the viewer."""
    return torch.tensor([1.0, 1.0, -1.0])[:, None] * (camera.axes() @ normals)


def _grazing(seen: Seen, camera: Camera, height: int, width: int, below: float) -> Tensor:
    """Where the cosine between the ray and the surface's normal is small, ``[h, w]``."""
    rays = camera.rays(height, width)
    found: Tensor = (seen.normals * rays).sum(0).abs() < below * rays.norm(dim=0)
    return found.view(height, width)
