"""Furnished rooms with the thirteen classes of NYUv2."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from mtl_benchmarks.scenes.generated.world import Camera, Composer, Light, Paint, Vector, World

__all__ = ["ROOM_CLASSES", "room"]

ROOM_CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
    "window",
)  # fmt: skip
"""The thirteen classes in the order of their labels here. The official files do not say theirs."""

(_BED, _BOOKS, _CEILING, _CHAIR, _FLOOR, _FURNITURE, _OBJECT, _PICTURE, _SOFA, _TABLE, _TV, _WALL, _WINDOW) = range(13)

_WOODS: tuple[Vector, ...] = ((0.45, 0.28, 0.14), (0.62, 0.44, 0.26), (0.3, 0.18, 0.1), (0.75, 0.62, 0.45))
_CLOTHS: tuple[Vector, ...] = (
    (0.55, 0.15, 0.13), (0.18, 0.28, 0.5), (0.25, 0.42, 0.25), (0.5, 0.48, 0.44), (0.35, 0.22, 0.38), (0.7, 0.55, 0.3),
)  # fmt: skip


def _wood(draw: Random) -> Paint:
    return Paint(draw.choice(_WOODS), (0.0, 9.0, 0.0), 0.12)


def _cloth(draw: Random) -> Paint:
    f = draw.uniform(3, 9)
    return Paint(draw.choice(_CLOTHS), (f, 0.0, f if draw.random() < 0.5 else 0.0), draw.uniform(0.0, 0.3))


def _bright(draw: Random) -> Paint:
    colour = [draw.uniform(0.05, 0.35) for _ in range(3)]
    colour[draw.randrange(3)] = draw.uniform(0.7, 0.95)
    return Paint((colour[0], colour[1], colour[2]))


def _bed(put: Composer, draw: Random) -> float:
    wide, high = draw.uniform(1.3, 1.9), draw.uniform(0.32, 0.48)
    put.box(_BED, _wood(draw), (0, 0, 0), (wide, draw.uniform(0.8, 1.1), 0.07))
    put.box(_BED, _cloth(draw), (0, 0, 0.07), (wide, high, 1.95))
    pillow = Paint((0.85, 0.84, 0.8))
    for x in (-wide / 4, wide / 4):
        put.box(_BED, pillow, (x, high, 0.15), (wide / 2.6, 0.13, 0.38))
    put.box(_BED, _cloth(draw), (0, high, 1.0), (wide + 0.04, 0.06, 1.02))
    return 2.05


def _sofa(put: Composer, draw: Random) -> float:
    wide, paint = draw.uniform(1.5, 2.2), _cloth(draw)
    put.box(_SOFA, paint, (0, 0.08, 0), (wide, 0.34, 0.9))
    put.box(_SOFA, paint, (0, 0.3, 0), (wide, draw.uniform(0.45, 0.6), 0.22))
    for side in (-1, 1):
        put.box(_SOFA, paint, (side * (wide / 2 - 0.09), 0.08, 0), (0.2, 0.55, 0.92))
        if draw.random() < 0.5:
            put.box(_SOFA, _cloth(draw), (side * wide / 4, 0.42, 0.25), (0.4, 0.36, 0.14))
    return 0.95


def _legs(put: Composer, label: int, paint: Paint, wide: float, high: float, deep: float, thick: float) -> None:
    for x in (-1, 1):
        for z in (thick / 2, deep - thick * 1.5):
            put.box(label, paint, (x * (wide - thick) / 2, 0, z), (thick, high, thick))


def _chair(put: Composer, draw: Random, *, x: float, z: float, yaw: float) -> None:
    """A chair whose back is turned by ``yaw`` from the wall."""
    paint, seat = _wood(draw), draw.uniform(0.42, 0.48)
    cover = paint if draw.random() < 0.5 else _cloth(draw)
    s, c = math.sin(yaw), math.cos(yaw)

    def part(at: Vector, size: Vector, look: Paint) -> None:
        mx, mz = at[0], at[2] + size[2] / 2 - 0.23
        put.box(_CHAIR, look, (x + c * mx + s * mz, at[1], z - s * mx + c * mz - size[2] / 2), size, yaw=yaw)

    part((0, seat, 0), (0.48, 0.07, 0.46), cover)
    part((0, seat + 0.07, 0), (0.48, draw.uniform(0.42, 0.55), 0.06), cover)
    for lx in (-0.2, 0.2):
        for lz in (0.0, 0.4):
            part((lx, 0, lz), (0.06, seat, 0.06), paint)


def _clutter(put: Composer, draw: Random, wide: float, high: float, deep: float, n: int) -> None:
    """Some objects on a surface."""
    for k in range(n):
        x = wide * ((k + draw.uniform(0.3, 0.7)) / n - 0.5)
        z = deep * draw.uniform(0.35, 0.65)
        if draw.random() < 0.4:
            r = draw.uniform(0.08, 0.15)
            put.ball(_OBJECT, _bright(draw), (x, high + r, z), r)
        elif draw.random() < 0.5:
            put.box(
                _OBJECT, _bright(draw), (x, high, z - 0.08), (draw.uniform(0.12, 0.28), 0.28, 0.16), yaw=draw.random()
            )
        else:
            put.box(_OBJECT, Paint((0.2, 0.2, 0.2)), (x, high, z), (0.04, 0.3, 0.04))
            put.ball(_OBJECT, Paint((0.95, 0.9, 0.7), glow=0.5), (x, high + 0.36, z + 0.02), 0.14)


def _table(put: Composer, draw: Random) -> float:
    wide, deep, high, paint = draw.uniform(1.1, 1.9), draw.uniform(0.7, 1.0), draw.uniform(0.66, 0.76), _wood(draw)
    put.box(_TABLE, paint, (0, high - 0.06, 0), (wide, 0.06, deep))
    put.box(_TABLE, paint, (0, high - 0.2, 0.05), (wide - 0.1, 0.14, deep - 0.1))
    _legs(put, _TABLE, paint, wide, high - 0.06, deep, 0.08)
    _clutter(put, draw, wide, high, deep, draw.randint(1, 3))
    if draw.random() < 0.6:
        put.box(_BOOKS, _spines(draw), (draw.uniform(-0.4, 0.4), high, deep / 3), (0.32, 0.2, 0.26), yaw=draw.random())
    _chair(put, draw, x=draw.uniform(-0.35, 0.35), z=deep + 0.3, yaw=math.pi + draw.uniform(-0.6, 0.6))
    return deep + 0.6


def _spines(draw: Random) -> Paint:
    return Paint(draw.choice([*_CLOTHS, (0.75, 0.7, 0.6)]), (draw.uniform(6, 12), 0.0, 0.0), 0.7)


def _bookcase(put: Composer, draw: Random) -> float:
    wide, deep, paint, n = draw.uniform(1.0, 1.7), 0.36, _wood(draw), draw.randint(3, 5)
    high = 0.1 + 0.38 * n
    put.box(_FURNITURE, paint, (0, 0, 0), (wide, high, 0.04))
    for side in (-1, 1):
        put.box(_FURNITURE, paint, (side * wide / 2, 0, 0), (0.06, high + 0.04, deep))
    for k in range(n + 1):
        y = 0.06 + 0.38 * k
        put.box(_FURNITURE, paint, (0, y, 0), (wide, 0.04, deep))
        if k < n:
            filled = draw.uniform(0.65, 0.97) * (wide - 0.08)
            x = -(wide - 0.08 - filled) / 2
            put.box(_BOOKS, _spines(draw), (x, y + 0.04, 0.04), (filled, draw.uniform(0.26, 0.32), deep - 0.08))
    return deep + 0.1


def _cabinet(put: Composer, draw: Random) -> float:
    wide, deep = draw.uniform(0.9, 1.6), draw.uniform(0.42, 0.6)
    high = draw.choice((draw.uniform(0.75, 1.0), draw.uniform(1.7, 2.1)))
    paint = Paint(draw.choice([*_WOODS, (0.8, 0.8, 0.78)]), (2 / wide, 0.0, 0.0), 0.25)
    put.box(_FURNITURE, paint, (0, 0, 0), (wide, high, deep))
    if high < 1.1:
        _clutter(put, draw, wide, high, deep, draw.randint(1, 3))
    return deep + 0.1


def _television(put: Composer, draw: Random) -> float:
    wide, high, paint = draw.uniform(1.2, 1.7), draw.uniform(0.42, 0.6), _wood(draw)
    put.box(_FURNITURE, paint, (0, 0, 0), (wide, high, 0.45))
    screen = draw.uniform(1.1, 1.5)
    shine = Paint((0.06, 0.07, 0.1) if draw.random() < 0.6 else (0.25, 0.35, 0.6), glow=0.6)
    put.box(_TV, Paint((0.05, 0.05, 0.05)), (0, high, 0.18), (0.4, 0.08, 0.12))
    put.box(_TV, shine, (0, high + 0.08, 0.2), (screen, screen * 0.58, 0.06))
    return 0.55


_ITEMS: tuple[tuple[Callable[[Composer, Random], float], float, float], ...] = (
    (_bed, 2.1, 2.0),
    (_sofa, 2.2, 1.2),
    (_table, 1.9, 2.6),
    (_bookcase, 1.8, 1.7),
    (_cabinet, 1.7, 1.0),
    (_television, 1.8, 2.6),
)
"""What stands at a wall, how much of the wall it may take, and how often it is drawn."""

_TALL = (_bookcase, _cabinet, _television)


def _hang(put: Composer, draw: Random, wide: float) -> None:
    """A window or a picture on a wall."""
    if draw.random() < 0.5:
        w, h = min(wide, draw.uniform(1.0, 1.7)), draw.uniform(0.9, 1.3)
        sky = Paint((0.75, 0.85, 0.98), (1 / w, 0.0, 0.0), 0.15, glow=0.9)
        put.box(_WINDOW, Paint((0.9, 0.9, 0.88)), (0, 0.95, 0), (w + 0.14, h + 0.14, 0.03))
        put.box(_WINDOW, sky, (0, 1.02, 0), (w, h, 0.05))
    else:
        w, h = min(wide, draw.uniform(0.8, 1.5)), draw.uniform(0.6, 1.0)
        f = draw.uniform(1.5, 4)
        art = Paint(draw.choice(_CLOTHS), (f, f * draw.uniform(0.5, 1.5), 0.0), 0.8)
        put.box(_PICTURE, Paint(draw.choice(_WOODS)), (0, 1.2, 0), (w + 0.1, h + 0.1, 0.03))
        put.box(_PICTURE, art, (0, 1.25, 0), (w, h, 0.04))


def room(draw: Random) -> tuple[World, Camera, Light]:
    """A room, a camera that looks into it from its front, and a lamp below the ceiling.

    Args:
        draw: where everything random comes from.
    """
    wide, high, long = draw.uniform(3.7, 5.4), draw.uniform(2.35, 2.7), draw.uniform(4.6, 6.0)
    put = Composer()
    # Along the back wall and the two side walls: middle of the bay, way that it faces, and its width.
    bays = [(wide * (k + 0.5) / 2, long, math.pi, wide / 2) for k in range(2)]
    for x, yaw in ((0.0, math.pi / 2), (wide, -math.pi / 2)):
        bays += [(x, long * place, yaw, long * 0.32) for place in (0.38, 0.68)]
    for x, z, yaw, space in bays:
        # A little too wide is let pass: neighbours overlap then, as furniture in a corner does.
        fitting = [item for item in _ITEMS if item[1] <= space + 0.4]
        chosen = draw.choices(fitting, [item[2] for item in fitting])[0][0] if draw.random() < 0.85 else None
        put.stand(x, 0.0, z, yaw)
        if chosen is not None:
            chosen(put, draw)
        # Behind tall furniture it would be hidden.
        if chosen not in _TALL and draw.random() < 0.9:
            _hang(put, draw, space - 0.4)
    _middle(put, draw, wide, long)
    tone = draw.uniform(0.62, 0.85)
    wall = Paint((tone, tone * draw.uniform(0.88, 1.0), tone * draw.uniform(0.75, 1.0)))
    floor = Paint(draw.choice([*_WOODS, (0.5, 0.5, 0.48)]), (draw.uniform(0, 4), 0.0, draw.uniform(0, 2)), 0.15)
    ceiling = Paint((0.86, 0.86, 0.84))
    faces = [(_WALL, wall), (_WALL, wall), (_FLOOR, floor), (_CEILING, ceiling), (_WALL, wall), (_WALL, wall)]
    camera = Camera(
        (wide * draw.uniform(0.35, 0.65), draw.uniform(1.15, 1.7), draw.uniform(0.15, 0.5)),
        yaw=draw.uniform(-0.5, 0.5),
        pitch=math.radians(draw.uniform(-16, 2)),
        view=math.radians(draw.uniform(58, 74)),
    )
    light = Light(
        (wide * draw.uniform(0.3, 0.7), high - 0.25, long * draw.uniform(0.3, 0.6)), is_sun=False, ambient=0.45
    )
    return put.world(((wide, high, long), faces)), camera, light


def _middle(put: Composer, draw: Random, wide: float, long: float) -> None:
    """What stands away from the walls."""
    put.stand(wide * draw.uniform(0.4, 0.6), 0.0, long * draw.uniform(0.5, 0.68), draw.uniform(-math.pi, math.pi))
    if draw.random() < 0.5:
        _chair(put, draw, x=0.0, z=0.0, yaw=0.0)
    for _ in range(draw.randint(2, 4)):
        x, z = draw.uniform(-1.2, 1.2), draw.uniform(0.4, 1.2) * draw.choice((-1, 1))
        if draw.random() < 0.5:
            r = draw.uniform(0.12, 0.24)
            put.ball(_OBJECT, _bright(draw), (x, r, z), r)
        else:
            side = draw.uniform(0.25, 0.45)
            put.box(_OBJECT, _bright(draw), (x, 0, z), (side, side * draw.uniform(0.6, 1.2), side), yaw=draw.random())
