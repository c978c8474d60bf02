"""Casting rays: what each pixel of a camera sees of a scene, how far away it is, and which way it faces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_benchmarks.scenes.generated.world import Camera, Light, World

__all__ = ["Seen", "look", "shaded"]

_TINY = 1e-9
_OFF = 1e-3
"""Metres by which a shadow's ray starts off the surface, so that it does not meet that surface itself."""


@dataclass(frozen=True)
class Seen:
    """What the pixels see, in rows of the picture.

    Attributes:
        depth: [p] metres along the optical axis; infinite where a pixel sees nothing.
        surfaces: [p] number of the surface; −1 for nothing.
        labels: [p] its class; −1 for nothing.
        normals: [3, p] in the world, towards the side that is seen; zero for nothing.
        points: [3, p] in the world.
        local: [3, p] the same in the axes of the solid.
    """

    depth: Tensor
    surfaces: Tensor
    labels: Tensor
    normals: Tensor
    points: Tensor
    local: Tensor


def look(world: World, camera: Camera, height: int, width: int) -> Seen:
    """What a camera sees, exactly: one ray through the middle of each pixel.

    Example:
        >>> from mtl_benchmarks.scenes.generated.world import Composer, Paint
        >>> scene = Composer()
        >>> scene.box(3, Paint((1.0, 1.0, 1.0)), low=(0.0, -1.0, 4.0), size=(2.0, 2.0, 1.0))
        >>> seen = look(scene.world(), Camera((0.0, 0.0, 0.0), 0.0, 0.0, 0.2), 2, 2)
        >>> seen.depth.tolist(), seen.labels.tolist(), seen.normals[2].tolist()
        ([4.0, 4.0, 4.0, 4.0], [3, 3, 3, 3], [-1.0, -1.0, -1.0, -1.0])
    """
    origin = torch.tensor(camera.at)[:, None]
    rays = camera.rays(height, width)
    n, k = len(world.centres), len(world.balls)
    found = [_enter_boxes(world, origin, rays)] if n else []
    found += [_enter_balls(world, origin, rays)] if k else []
    depth, surfaces = torch.full((rays.shape[1],), math.inf), torch.full((rays.shape[1],), -1)
    if found:
        # All boxes and balls in one table [n + k, p]: the nearest of them is what the pixel sees.
        depth, surfaces = torch.cat(found).min(0)
    if world.room is not None:
        far, face = _leave_room(world.room, origin, rays)
        # Objects may stick out through a wall, which then hides what is behind it.
        outside = far < depth
        depth, surfaces = torch.where(outside, far, depth), torch.where(outside, n + k + face, surfaces)
    seen = torch.isfinite(depth)
    surfaces = torch.where(seen, surfaces, -1)
    points = origin + torch.where(seen, depth, 0.0) * rays
    normals, local = _facing(world, surfaces, points, rays)
    # −1 would index the last surface.
    labels = torch.where(seen, world.labels[surfaces.clamp(min=0)], -1)
    return Seen(depth, surfaces, labels, torch.where(seen, normals, 0.0), points, local)


def shaded(world: World, seen: Seen, light: Light) -> Tensor:
    """The picture that :func:`look` saw, ``[3, p]``, by Lambert's law and with shadows; 0 where nothing was seen.

    A surface gives back its colour, changed by its stripes, times the ambient light and, where no solid is between, the
    lamp's times the cosine between its normal and the direction of the light.
    """
    paints = world.paints[seen.surfaces.clamp(min=0)].T
    # Not of unit length: for a lamp its end is the lamp itself, so that what lies between is at less than 1 of it.
    towards = torch.tensor(light.at)[:, None].expand_as(seen.points)
    if not light.is_sun:
        towards = towards - seen.points
    cosine = ((seen.normals * towards).sum(0) / towards.norm(dim=0).clamp(min=_TINY)).clamp(min=0)
    # A surface that faces away from the light is dark anyway, whatever stands between.
    asked = cosine > 0
    start = seen.points[:, asked] + _OFF * seen.normals[:, asked]
    lit = torch.zeros_like(asked)
    lit[asked] = ~_blocked(world, start, towards[:, asked], math.inf if light.is_sun else 1.0)
    falling = light.ambient + (1 - light.ambient) * cosine * lit
    phases = 2 * math.pi * paints[3:6] * seen.local
    # Along an axis without stripes the wave stands still at its crest.
    waves = torch.where(paints[3:6] == 0, 1.0, phases.sin()).prod(0)
    brightness = (1 + paints[6] * torch.where((paints[3:6] == 0).all(0), 0.0, waves)) * (
        paints[7] + (1 - paints[7]) * falling
    )
    return torch.where(seen.surfaces >= 0, paints[:3] * brightness, 0.0)


def _turned(vectors: Tensor, yaws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, ``[3, p]`` or ``[n, 3, p]``, along the axes of boxes turned by ``yaws [n]``: three times ``[n, p]``."""
    s, c = yaws.sin()[:, None], yaws.cos()[:, None]
    x, y, z = vectors.unbind(-2)
    return c * x - s * z, y.expand(len(yaws), -1), s * x + c * z


def _spans(world: World, origins: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Where each ray enters and leaves each box, ``[n, p]`` in lengths of the ray; it meets it if enter <= leave."""
    places = _turned(origins - world.centres[:, :, None], world.yaws)
    enter = leave = torch.zeros(())
    for axis, (place, ray) in enumerate(zip(places, _turned(rays, world.yaws), strict=True)):
        # A ray along a face would divide by 0.
        inverse = torch.where(ray.abs() < _TINY, _TINY, ray).reciprocal_()
        middle, half = -place * inverse, world.halves[:, axis, None] * inverse.abs()
        # A box is where three slabs overlap: a ray is in it from the last that it enters to the first that it leaves.
        enter = middle - half if axis == 0 else torch.maximum(enter, middle - half)
        leave = middle + half if axis == 0 else torch.minimum(leave, middle + half)
    return enter, leave


def _enter_boxes(world: World, origin: Tensor, rays: Tensor) -> Tensor:
    enter, leave = _spans(world, origin, rays)
    return torch.where((enter <= leave) & (enter > 0), enter, math.inf)


def _enter_balls(world: World, origins: Tensor, rays: Tensor) -> Tensor:
    """Where each ray enters each ball, ``[k, p]``; infinite where it does not, or begins inside."""
    from_centre = origins - world.balls[:, :3, None]
    a = rays.square().sum(0)
    b = (from_centre * rays).sum(1)
    c = from_centre.square().sum(1) - world.balls[:, 3:].square()
    # Half the usual b, so that the twos cancel. Rays are not of unit length, hence a.
    under = b * b - a * c
    enter = (-b - under.clamp(min=0).sqrt()) / a
    return torch.where((under >= 0) & (enter > 0), enter, math.inf)


def _leave_room(room: Tensor, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Where each ray meets the room's walls from within, and the number of the face."""
    safe = torch.where(rays.abs() < _TINY, _TINY, rays)
    far, axis = ((torch.where(safe > 0, room[1][:, None], room[0][:, None]) - origin) / safe).min(0)
    ahead = safe.gather(0, axis[None])[0] > 0
    return far, 2 * axis + ahead


def _facing(world: World, surfaces: Tensor, points: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Normals in the world and points in the axes of their solids, both ``[3, p]``."""
    n, k = len(world.centres), len(world.balls)
    normals, local = torch.zeros_like(points), points.clone()
    on_box = (surfaces >= 0) & (surfaces < n)
    if bool(on_box.any()):
        own = surfaces[on_box]
        s, c = world.yaws[own].sin(), world.yaws[own].cos()
        x, y, z = points[:, on_box] - world.centres[own].T
        place = torch.stack([c * x - s * z, y, s * x + c * z])
        # The face is where the point is farthest out, in halves of the sides.
        axis = (place / world.halves[own].T).abs().argmax(0)
        side = place.gather(0, axis[None])[0].sign()
        facing = torch.zeros_like(place).scatter_(0, axis[None], side[None])
        normals[:, on_box] = torch.stack([c * facing[0] + s * facing[2], facing[1], -s * facing[0] + c * facing[2]])
        local[:, on_box] = place
    on_ball = (surfaces >= n) & (surfaces < n + k)
    if bool(on_ball.any()):
        own = surfaces[on_ball] - n
        place = points[:, on_ball] - world.balls[own, :3].T
        normals[:, on_ball] = place / place.norm(dim=0)
        local[:, on_ball] = place
    face = surfaces - n - k
    on_face = face >= 0
    axis, side = face[on_face] // 2, face[on_face] % 2
    # Faces are seen from within.
    inward = torch.zeros(3, len(axis)).scatter_(0, axis[None], (1.0 - 2.0 * side)[None])
    normals[:, on_face] = inward
    return normals, local


def _blocked(world: World, start: Tensor, towards: Tensor, reach: float) -> Tensor:
    """Whether a solid lies between, ``[p]``."""
    found = torch.zeros(start.shape[1], dtype=torch.bool)
    if len(world.centres):
        enter, leave = _spans(world, start, towards)
        found |= ((enter <= leave) & (leave > 0) & (enter < reach)).any(0)
    if len(world.balls):
        found |= (_enter_balls(world, start, towards) < reach).any(0)
    return found
