"""What a generated scene is made of: turned boxes, balls and, indoors, the room around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Camera", "Composer", "Light", "Paint", "World"]

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Paint:
    """How a surface looks.

    Args:
        colour: share of red, green and blue light that it gives back.
        waves: stripes per metre along the solid's own axes; products of waves make checks.
        contrast: how much the stripes change the brightness.
        glow: share of the brightness that comes from the surface itself.
    """

    colour: Vector
    waves: Vector = (0.0, 0.0, 0.0)
    contrast: float = 0.0
    glow: float = 0.0

    def row(self) -> list[float]:
        """As eight numbers."""
        return [*self.colour, *self.waves, self.contrast, self.glow]


@dataclass(frozen=True)
class Camera:
    """A pinhole.

    The world has x to the right, y up and z ahead. A camera without yaw and pitch looks along z.

    Args:
        at: its place.
        yaw: turn to the right, in radians.
        pitch: upwards, in radians.
        view: horizontal angle of view, in radians.
    """

    at: Vector
    yaw: float
    pitch: float
    view: float

    def axes(self) -> Tensor:
        """Rows: right, up and ahead, ``[3, 3]``."""
        sy, cy, sp, cp = math.sin(self.yaw), math.cos(self.yaw), math.sin(self.pitch), math.cos(self.pitch)
        return torch.tensor([[cy, 0.0, -sy], [-sy * sp, cp, -cy * sp], [sy * cp, sp, cy * cp]])

    def rays(self, height: int, width: int) -> Tensor:
        """A direction through the middle of each pixel, ``[3, h · w]``, one metre long along the optical axis.

        So the distance at which a ray hits, in lengths of the ray, is the depth.
        """
        span = math.tan(self.view / 2)
        u = ((torch.arange(width) + 0.5) / width * 2 - 1) * span
        v = (1 - (torch.arange(height) + 0.5) / height * 2) * span * height / width
        local = torch.stack(torch.broadcast_tensors(u[None, :], v[:, None], torch.ones(())))
        return self.axes().T @ local.flatten(1)


@dataclass(frozen=True)
class Light:
    """A lamp, or the sun.

    Args:
        at: place of a lamp, or the direction towards the sun.
        is_sun: which of the two.
        ambient: share of the light that comes from everywhere.
    """

    at: Vector
    is_sun: bool
    ambient: float


@dataclass(frozen=True)
class World:
    """A scene. Surfaces are numbered: the boxes, the balls, then six faces of the room (−x, +x, −y, +y, −z, +z).

    Attributes:
        centres: [n, 3] of the boxes.
        halves: [n, 3] half their sides.
        yaws: [n] by which each is turned about the vertical.
        balls: [k, 4] centres and radii.
        room: [2, 3] lowest and highest corner of the room around everything, or ``None`` outdoors.
        labels: [n + k + 6] class of each surface.
        paints: [n + k + 6, 8] see :class:`Paint`.
    """

    centres: Tensor
    halves: Tensor
    yaws: Tensor
    balls: Tensor
    room: Tensor | None
    labels: Tensor
    paints: Tensor


class Composer:
    """Puts a scene together, solid by solid."""

    def __init__(self) -> None:
        self._boxes: list[list[float]] = []
        self._balls: list[list[float]] = []
        self._box_looks: list[tuple[int, Paint]] = []
        self._ball_looks: list[tuple[int, Paint]] = []
        self._place: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def stand(self, x: float, y: float, z: float, yaw: float = 0.0) -> None:
        """From here on, places are relative to this one, turned by ``yaw``: z then points to (sin yaw, cos yaw)."""
        self._place = (x, y, z, yaw)

    def _world(self, x: float, y: float, z: float) -> list[float]:
        ox, oy, oz, yaw = self._place
        s, c = math.sin(yaw), math.cos(yaw)
        return [ox + c * x + s * z, oy + y, oz - s * x + c * z]

    def box(self, label: int, paint: Paint, low: Sequence[float], size: Sequence[float], *, yaw: float = 0.0) -> None:
        """A box.

        Args:
            label: its class.
            paint: its look.
            low: middle of its lower back edge: centre in x, lowest y, lowest z.
            size: along x, y and z.
            yaw: by which it is turned about its own middle.
        """
        centre = self._world(low[0], low[1] + size[1] / 2, low[2] + size[2] / 2)
        self._boxes.append([*centre, size[0] / 2, size[1] / 2, size[2] / 2, self._place[3] + yaw])
        self._box_looks.append((label, paint))

    def ball(self, label: int, paint: Paint, centre: Sequence[float], radius: float) -> None:
        """A ball."""
        self._balls.append([*self._world(*centre), radius])
        self._ball_looks.append((label, paint))

    def world(self, room: tuple[Vector, Sequence[tuple[int, Paint]]] | None = None) -> World:
        """The scene.

        Args:
            room: size of the room, whose lowest corner is the origin, and label and look of its six faces.
        """
        faces = [(0, Paint((0.0, 0.0, 0.0)))] * 6 if room is None else list(room[1])
        looks = [*self._box_looks, *self._ball_looks, *faces]
        # view() gives an empty scene its seven columns, too.
        boxes = torch.tensor(self._boxes).view(-1, 7)
        return World(
            boxes[:, :3],
            boxes[:, 3:6],
            boxes[:, 6],
            torch.tensor(self._balls).view(-1, 4),
            None if room is None else torch.tensor([(0.0, 0.0, 0.0), room[0]]),
            torch.tensor([label for label, _ in looks]),
            torch.tensor([paint.row() for _, paint in looks]),
        )
