"""What a picture with its maps is, and how the two data sets lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_core import InvalidInputError

__all__ = ["CITYSCAPES", "NYUV2", "SceneLayout", "Scenes", "valid_pixels"]


@dataclass(frozen=True)
class SceneLayout:
    """How a data set of pictures with dense maps lies on disk.

    Args:
        name: of the data set.
        labels: the folder of the class maps.
        n_classes: classes, numbered from 0; −1 is none.
        depth_unit: unit of the depth maps; empty for inverse depth as a share of the sensor's range.
        normals: whether there are surface normals.
        most_depth: no depth is larger, in that unit: one that is shows another unit.
        size: height and width of the official pictures.
        counts: how many official pictures there are to train and to test on.
    """

    name: str
    labels: str
    n_classes: int
    depth_unit: str
    normals: bool
    most_depth: float
    size: tuple[int, int]
    counts: tuple[int, int]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the papers' order."""
        return ("semantic", "depth", "normal") if self.normals else ("semantic", "depth")

    @property
    def folders(self) -> dict[str, int | None]:
        """Each folder's name, and how many numbers its maps have per pixel; ``None`` for one without that axis."""
        found: dict[str, int | None] = {"image": 3, self.labels: None, "depth": 1}
        return {**found, "normal": 3} if self.normals else found


NYUV2 = SceneLayout("NYUv2", "label", 13, "m", normals=True, most_depth=100.0, size=(288, 384), counts=(795, 654))
"""Rooms, 288 × 384: 795 pictures to train, 654 to test."""

CITYSCAPES = SceneLayout(
    "CityScapes", "label_7", 7, "", normals=False, most_depth=1.0, size=(128, 256), counts=(2975, 500)
)
"""Streets, 128 × 256: 2,975 pictures to train, 500 to test. Depth is inverse depth."""


def valid_pixels(target: Tensor) -> Tensor:
    """Where a depth or normal map ``[b, c, h, w]`` was measured, ``[b, 1, h, w]``: its channels do not add up to 0."""
    # The released code's mask, for the papers' numbers. A normal whose components happen to cancel counts as not
    # measured.
    return target.sum(1, keepdim=True) != 0


@dataclass(frozen=True)
class Scenes:
    """Pictures with their maps.

    Attributes:
        images: [b, 3, h, w] float32 in [0, 1].
        labels: [b, h, w] int64, −1 where no class is known.
        depth: [b, 1, h, w] float32, 0 where not measured.
        normals: [b, 3, h, w] float32, towards the camera, zero where not measured; ``None`` if there are none.
        present: the tasks that have a valid pixel. Found when the pictures are put together, on the host, so that no
            step waits for the device to be told.
    """

    images: Tensor
    labels: Tensor
    depth: Tensor
    normals: Tensor | None
    present: tuple[str, ...]

    @classmethod
    def of(cls, images: Tensor, labels: Tensor, depth: Tensor, normals: Tensor | None = None) -> Scenes:
        """Put maps together and see which tasks have a valid pixel.

        Raises:
            InvalidInputError: the shapes do not belong together.
        """
        b, _, h, w = shape = tuple(images.shape)
        rest = [(labels, (b, h, w)), (depth, (b, 1, h, w))] + ([] if normals is None else [(normals, shape)])
        for tensor, expected in rest:
            if tuple(tensor.shape) != expected:
                raise InvalidInputError(
                    f"maps must belong to images of shape {shape}, got one of shape {tuple(tensor.shape)} where "
                    f"{expected} is due."
                )
        seen = {"semantic": bool((labels >= 0).any()), "depth": bool(valid_pixels(depth).any())}
        if normals is not None:
            seen["normal"] = bool(valid_pixels(normals).any())
        return cls(images, labels, depth, normals, tuple(task for task, valid in seen.items() if valid))

    @classmethod
    def stack(cls, parts: Sequence[Scenes]) -> Scenes:
        """Several batches as one, in their order.

        Raises:
            InvalidInputError: there is none, or some have normals and others do not.
        """
        normals = [part.normals for part in parts if part.normals is not None]
        if not parts or len(normals) not in (0, len(parts)):
            raise InvalidInputError(
                f"`parts` must be scenes that all have normals or none, got {len(normals)} of {len(parts)} with them."
            )
        return cls.of(
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.depth for part in parts]),
            torch.cat(normals) if normals else None,
        )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> Scenes:
        """The same scenes on another device."""
        normals = None if self.normals is None else self.normals.to(device)
        return Scenes(self.images.to(device), self.labels.to(device), self.depth.to(device), normals, self.present)
