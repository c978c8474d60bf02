"""Streets with the seven classes of CityScapes."""

from __future__ import annotations

import math
from random import Random

from mtl_benchmarks.scenes.generated.world import Camera, Composer, Light, Paint, Vector, World

__all__ = ["SKY", "STREET_CLASSES", "street"]

STREET_CLASSES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
"""The seven classes in the order of their labels here. The official files do not say theirs."""

_FLAT, _CONSTRUCTION, _OBJECT, _NATURE, SKY, _HUMAN, _VEHICLE = range(7)

_WALLS: tuple[Vector, ...] = ((0.6, 0.5, 0.42), (0.5, 0.32, 0.26), (0.66, 0.62, 0.55), (0.42, 0.43, 0.46))
_COATS: tuple[Vector, ...] = (
    (0.12, 0.14, 0.25),
    (0.55, 0.14, 0.12),
    (0.2, 0.2, 0.2),
    (0.7, 0.66, 0.5),
    (0.15, 0.4, 0.5),
)
_CARS: tuple[Vector, ...] = (
    (0.7, 0.7, 0.72),
    (0.1, 0.1, 0.12),
    (0.55, 0.08, 0.08),
    (0.12, 0.2, 0.45),
    (0.85, 0.85, 0.82),
)


def _car(put: Composer, draw: Random, x: float, z: float, yaw: float) -> None:
    # Lengths are in metres. Windows stand a few centimetres out of the body: of two faces at one depth, rounding would
    # choose which is seen.
    put.stand(x, 0.0, z, yaw)
    paint, glass, tyre = Paint(draw.choice(_CARS)), Paint((0.12, 0.15, 0.18)), Paint((0.05, 0.05, 0.05))
    if draw.random() < 0.2:
        high = draw.uniform(2.2, 3.0)
        put.box(_VEHICLE, paint, (0, 0.4, -3.2), (2.3, high, 6.4))
        put.box(_VEHICLE, glass, (0, high * 0.6, -3.23), (2.1, 0.8, 6.46))
        wheels = 2.3
    else:
        put.box(_VEHICLE, paint, (0, 0.3, -2.1), (1.8, 0.62, 4.2))
        put.box(_VEHICLE, glass, (0, 0.92, -1.5), (1.6, 0.5, 2.6))
        put.box(_VEHICLE, paint, (0, 1.4, -1.3), (1.5, 0.06, 2.2))
        wheels = 1.35
    for side in (-0.75, 0.75):
        for end in (-wheels, wheels):
            put.ball(_VEHICLE, tyre, (side, 0.34, end), 0.34)


def _person(put: Composer, draw: Random, x: float, z: float) -> None:
    put.stand(x, 0.1, z, draw.uniform(-math.pi, math.pi))
    tall, coat, legs = draw.uniform(0.85, 1.1), Paint(draw.choice(_COATS)), Paint(draw.choice(_COATS))
    for side in (-0.11, 0.11):
        put.box(_HUMAN, legs, (side, 0.0, -0.1), (0.18, 0.85 * tall, 0.2))
    put.box(_HUMAN, coat, (0, 0.8 * tall, -0.14), (0.56, 0.68 * tall, 0.28))
    put.ball(_HUMAN, Paint((0.72, 0.54, 0.43)), (0, 1.62 * tall, 0), 0.15)


def _tree(put: Composer, draw: Random, x: float, z: float) -> None:
    put.stand(x, 0.0, z, 0.0)
    high = draw.uniform(1.8, 3.0)
    put.box(_NATURE, Paint((0.3, 0.22, 0.15)), (0, 0, -0.15), (0.3, high, 0.3))
    for _ in range(3):
        r = draw.uniform(0.9, 1.5)
        leaves = Paint((0.14, draw.uniform(0.28, 0.42), 0.12), (2.3, 2.9, 2.1), 0.5)
        put.ball(_NATURE, leaves, (draw.uniform(-0.7, 0.7), high + draw.uniform(0.2, 1.4), draw.uniform(-0.7, 0.7)), r)


def _pole(put: Composer, draw: Random, x: float, z: float) -> None:
    put.stand(x, 0.0, z, 0.0)
    high, metal = draw.uniform(2.6, 5.0), Paint((0.35, 0.36, 0.36))
    put.box(_OBJECT, metal, (0, 0, -0.08), (0.2, high, 0.2))
    kind = draw.random()
    if kind < 0.45:
        sign = Paint(draw.choice(((0.75, 0.1, 0.1), (0.12, 0.25, 0.65), (0.9, 0.8, 0.15))), glow=0.2)
        put.box(_OBJECT, sign, (0, high - 0.8, -0.12), (0.85, 0.85, 0.05))
    elif kind < 0.8:
        put.box(_OBJECT, Paint((0.1, 0.11, 0.1)), (0, high - 1.0, -0.2), (0.45, 1.1, 0.3))
        put.ball(_OBJECT, Paint((0.9, 0.15, 0.1), glow=0.9), (0, high - 0.25, -0.2), 0.13)
    else:
        put.box(_OBJECT, metal, (-math.copysign(0.9, x), high - 0.1, -0.06), (1.9, 0.12, 0.12))


def _side(put: Composer, draw: Random, side: int, curb: float) -> None:
    """A pavement along one side, what lies behind it, and what stands on it."""
    pavement = draw.uniform(2.2, 3.5)
    put.stand(0.0, 0.0, 0.0, 0.0)
    slabs = Paint((0.5, 0.49, 0.47), (0.5, 0.0, 0.5), 0.12)
    put.box(_FLAT, slabs, (side * (curb + pavement / 2), 0, -5), (pavement, 0.12, 160))
    _behind(put, draw, side, curb + pavement)
    for place in (draw.uniform(5.5, 8), draw.uniform(9, 14), draw.uniform(16, 26)):
        if draw.random() < 0.75:
            _pole(put, draw, side * (curb + 0.4), place)
    for place in (draw.uniform(7, 12), draw.uniform(14, 26)):
        if draw.random() < 0.4:
            _tree(put, draw, side * (curb + 0.9), place)
    for _ in range(draw.randint(2, 4)):
        _person(put, draw, side * (curb + draw.uniform(0.4, pavement - 0.5)), draw.uniform(6, 14))
    if draw.random() < 0.7:
        z = draw.uniform(6, 14)
        while z < 40:
            if draw.random() < 0.6:
                _car(put, draw, side * (curb - 1.1), z, 0.0)
            z += draw.uniform(5.5, 9)


def _behind(put: Composer, draw: Random, side: int, front: float) -> None:
    """Houses with trees between them, or a park, from ``front`` metres beside the middle on."""
    z = draw.uniform(1, 6)
    lawn = Paint((0.2, 0.36, 0.14), (0.7, 0.0, 0.9), 0.25)
    put.box(_NATURE, lawn, (side * (front + 20), 0, -5), (40, 0.14, 160))
    is_park = draw.random() < 0.3
    while z < 60:
        length = draw.uniform(8, 18)
        put.stand(0.0, 0.0, 0.0, 0.0)
        if is_park:
            if draw.random() < 0.5:
                put.box(_NATURE, lawn, (side * (front + 0.6), 0, z), (0.9, draw.uniform(0.8, 1.5), length))
            for k in range(2):
                _tree(put, draw, side * (front + draw.uniform(1.5, 5)), z + length * (k + 0.5) / 2)
        elif draw.random() < 0.85:
            high = draw.uniform(4, 12)
            house = Paint(draw.choice(_WALLS), (0.0, 0.35, 0.3), 0.35)
            back = draw.uniform(0, 1.5)
            put.box(_CONSTRUCTION, house, (side * (front + back + 5), 0, z), (10, high, length))
        else:
            _tree(put, draw, side * (front + 2), z + length / 2)
        z += length + draw.uniform(0, 2.5)


def street(draw: Random) -> tuple[World, Camera, Light]:
    """A street, a camera on it as in a car, and the sun.

    Args:
        draw: where everything random comes from.
    """
    put = Composer()
    curb = draw.uniform(3.8, 5.5)
    asphalt = draw.uniform(0.24, 0.36)
    put.box(_FLAT, Paint((asphalt,) * 3, (0.6, 0.0, 0.9), 0.06), (0, -1, -5), (300, 1.0, 500))
    for k in range(8):
        # A centimetre high, for the same reason as the windows of cars.
        put.box(_FLAT, Paint((0.8, 0.8, 0.78)), (0, 0, 4 + 7 * k), (0.16, 0.012, 3))
    for side in (-1, 1):
        _side(put, draw, side, curb)
    for x, yaw in ((-1.9, math.pi), (1.9, 0.0)):
        if draw.random() < 0.45:
            _car(put, draw, x, draw.uniform(11, 30), yaw + draw.uniform(-0.06, 0.06))
    for _ in range(draw.randint(0, 2)):
        _person(put, draw, draw.uniform(-2.5, 3.5), draw.uniform(6, 11))
    camera = Camera(
        (draw.uniform(0.6, 2.2), draw.uniform(1.2, 1.5), 0.0),
        yaw=draw.uniform(-0.16, 0.16),
        pitch=math.radians(draw.uniform(-4, 3)),
        view=math.radians(draw.uniform(48, 60)),
    )
    light = Light((draw.uniform(-1, 1), draw.uniform(0.8, 1.6), draw.uniform(-1, 0.4)), is_sun=True, ambient=0.5)
    return put.world(), camera, light
