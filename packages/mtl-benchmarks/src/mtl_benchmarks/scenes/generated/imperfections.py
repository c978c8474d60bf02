"""What real sensors and annotators leave out of a scene: invalid depth and normals, unlabelled borders, noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["blotches", "edges", "framed"]


def blotches(height: int, width: int, generator: torch.Generator, *, cells: int = 8) -> Tensor:
    """A smooth random field ``[h, w]``, about standard normal at its knots.

    Args:
        height: of the picture.
        width: of the picture.
        generator: of the values at the knots.
        cells: knots along the shorter side.
    """
    short = min(height, width)
    knots = [max(2, round(side * cells / short)) for side in (height, width)]
    # Knots in proportion to the picture, so that blotches look alike at every resolution.
    coarse = torch.randn(1, 1, *knots, generator=generator)
    return functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)[0, 0]


def edges(values: Tensor, above: float) -> Tensor:
    """Pixels of ``values [h, w]`` that differ by more than ``above`` from the one to the right or below, ``[h, w]``."""
    found = torch.zeros(values.shape, dtype=torch.bool)
    found[:, :-1] |= (values[:, 1:] - values[:, :-1]).abs() > above
    found[:-1] |= (values[1:] - values[:-1]).abs() > above
    return found


def framed(height: int, width: int, border: int) -> Tensor:
    """Pixels less than ``border`` from the rim, ``[h, w]``."""
    found = torch.ones(height, width, dtype=torch.bool)
    found[border : height - border, border : width - border] = False
    return found
