"""The papers' losses for NYUv2 and CityScapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from mtl_benchmarks.scenes.layout import Scenes, valid_pixels

__all__ = ["depth_loss", "normal_loss", "scene_losses", "semantic_loss"]


def semantic_loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood over the pixels whose class is known; NaN if there is none.

    Args:
        log_probabilities: [b, classes, h, w].
        labels: [b, h, w] int64, −1 where unknown.
    """
    return functional.nll_loss(log_probabilities, labels, ignore_index=-1)


def depth_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the measured pixels of the batch; NaN if there is none.

    Args:
        prediction: [b, 1, h, w].
        target: [b, 1, h, w], 0 where not measured.
    """
    mask = valid_pixels(target)
    return ((prediction - target).abs() * mask).sum() / mask.sum()


def normal_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the mean scalar product over the measured pixels of the batch; NaN if there is none.

    Args:
        prediction: [b, 3, h, w], of length 1 at each pixel.
        target: [b, 3, h, w], zero where not measured.
    """
    mask = valid_pixels(target)
    return 1 - ((prediction * target).sum(1, keepdim=True) * mask).sum() / mask.sum()


def scene_losses(outputs: Mapping[str, Tensor], scenes: Scenes) -> dict[str, Tensor | None]:
    """One loss per task that was predicted; ``None`` for a task without a valid pixel, which is absent in this batch.

    Args:
        outputs: predictions by task: log-probabilities, depth, normals of length 1.
        scenes: pictures with their maps.
    """
    found: dict[str, Tensor | None] = {}
    for task, output in outputs.items():
        if task not in scenes.present:
            found[task] = None
        elif task == "semantic":
            found[task] = semantic_loss(output, scenes.labels)
        elif task == "depth":
            found[task] = depth_loss(output, scenes.depth)
        elif scenes.normals is not None:
            found[task] = normal_loss(output, scenes.normals)
    return found
