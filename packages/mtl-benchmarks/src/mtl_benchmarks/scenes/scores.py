"""The papers' metrics for NYUv2 and CityScapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.scenes.layout import SceneLayout, Scenes, valid_pixels
from mtl_core.checks import one_of

__all__ = ["SceneScores", "scene_metrics"]

_WITHIN = (11.25, 22.5, 30.0)


def scene_metrics(layout: SceneLayout) -> tuple[Metric, ...]:
    """The metrics of a data set, in the papers' order and under the names of their tables."""
    found = [
        Metric("mIoU", "semantic", "%", higher_is_better=True),
        Metric("PixAcc", "semantic", "%", higher_is_better=True),
        Metric("AbsErr", "depth", layout.depth_unit, higher_is_better=False),
        Metric("RelErr", "depth", "", higher_is_better=False),
    ]
    if layout.normals:
        found += [
            Metric("NormalMean", "normal", "°", higher_is_better=False),
            Metric("NormalMedian", "normal", "°", higher_is_better=False),
            *(Metric(f"Within{bound:g}", "normal", "%", higher_is_better=True) for bound in _WITHIN),
        ]
    return tuple(found)


class SceneScores:
    r"""Metrics over a split, batch by batch.

    Segmentation, always over all pixels whose class is known: the share that is right, and the mean over classes of
    :math:`\mathrm{diag} / (\mathrm{row} + \mathrm{column} - \mathrm{diag})` of the confusion matrix. Depth: mean of
    :math:`|p - t|` and of :math:`|p - t| / t` over the measured pixels. Normals: angle between prediction and target in
    degrees over the measured pixels: its mean, its median, and the share below three bounds.

    Args:
        layout: which data set it is.
        metrics: ``"pixel"`` takes depth and normals over all pixels of the split as well. ``"released"`` takes the
            plain mean of what each batch gives, so that a median is a mean of medians and a short last batch counts as
            much as the others: that is how the papers' numbers came about.

    Note:
        A class that neither occurs nor is predicted anywhere is left out of the mean over classes; the released code
        gives NaN then. A batch without a measured pixel is left out; the released code gives NaN then. With
        ``"pixel"`` the angles of the whole split are held until the end, 290 MB for NYUv2, for the exact median.

    Example:
        >>> from mtl_benchmarks.scenes.layout import CITYSCAPES
        >>> labels = torch.tensor([[[0, 1], [1, -1]]])
        >>> scenes = Scenes.of(torch.zeros(1, 3, 2, 2), labels, torch.tensor([[[[1.0, 2.0], [0.0, 4.0]]]]))
        >>> scores = SceneScores(CITYSCAPES)
        >>> right_but_one = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [0, 0]]]), 7).movedim(-1, 1).log()
        >>> scores.update({"semantic": right_but_one, "depth": torch.full((1, 1, 2, 2), 2.0)}, scenes)
        >>> {name: round(value, 4) for name, value in scores.values().items()}
        {'mIoU': 50.0, 'PixAcc': 66.6667, 'AbsErr': 1.0, 'RelErr': 0.5}
    """

    def __init__(self, layout: SceneLayout, *, metrics: Literal["pixel", "released"] = "pixel") -> None:
        self.layout = layout
        self.metrics = one_of("metrics", metrics, ("pixel", "released"))
        self._confusion = torch.zeros(layout.n_classes, layout.n_classes, dtype=torch.float64)
        # Per batch with a valid pixel: the sums of both errors and how many pixels there were.
        self._depth: list[tuple[float, float, int]] = []
        self._angles: list[Tensor] = []

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Tensor], scenes: Scenes) -> None:
        """Take in one batch; tasks that were not predicted are left as they are."""
        if "semantic" in outputs:
            self._confusion += self._confused(outputs["semantic"].argmax(1), scenes.labels).cpu()
        if "depth" in outputs and "depth" in scenes.present:
            mask = valid_pixels(scenes.depth)
            target = scenes.depth[mask].double()
            error = (outputs["depth"][mask].double() - target).abs()
            self._depth.append((float(error.sum()), float((error / target).sum()), target.numel()))
        if "normal" in outputs and scenes.normals is not None and "normal" in scenes.present:
            mask = valid_pixels(scenes.normals)
            cosines = (outputs["normal"] * scenes.normals).sum(1, keepdim=True)[mask].clamp(-1, 1)
            angles = torch.rad2deg(torch.acos(cosines)).float().cpu()
            self._angles.append(angles if self.metrics == "pixel" else self._summary(angles)[None])

    def _confused(self, predicted: Tensor, labels: Tensor) -> Tensor:
        n = self.layout.n_classes
        known = (labels >= 0) & (labels < n)
        pairs = labels[known] * n + predicted[known]
        return torch.bincount(pairs, minlength=n * n).view(n, n)

    @staticmethod
    def _summary(angles: Tensor) -> Tensor:
        """Mean, median and shares of some angles; the median is the lower one of two in the middle, as torch's is."""
        shares = [(angles < bound).double().mean() for bound in _WITHIN]
        return torch.stack([angles.double().mean(), angles.median().double(), *shares])

    def values(self) -> dict[str, float]:
        """Every metric by its name, in its unit; NaN where no pixel of its task was seen."""
        both = self._confusion.diagonal()
        either = self._confusion.sum(0) + self._confusion.sum(1) - both
        total = float(self._confusion.sum())
        overlap = float((both / either)[either > 0].mean()) if total else math.nan
        found = {"mIoU": 100 * overlap, "PixAcc": 100 * float(both.sum()) / total if total else math.nan}
        found |= dict(zip(("AbsErr", "RelErr"), self._depth_errors(), strict=True))
        if self.layout.normals:
            names = [metric.name for metric in scene_metrics(self.layout) if metric.task == "normal"]
            found |= dict(zip(names, self._normal_errors(), strict=True))
        return found

    def _depth_errors(self) -> tuple[float, float]:
        if not self._depth:
            return math.nan, math.nan
        absolute, relative, counts = zip(*self._depth, strict=True)
        if self.metrics == "pixel":
            return sum(absolute) / sum(counts), sum(relative) / sum(counts)
        n = len(counts)
        return (
            sum(a / c for a, c in zip(absolute, counts, strict=True)) / n,
            sum(r / c for r, c in zip(relative, counts, strict=True)) / n,
        )

    def _normal_errors(self) -> list[float]:
        if not self._angles:
            return [math.nan] * (2 + len(_WITHIN))
        together = torch.cat(self._angles)
        mean, median, *shares = (self._summary(together) if self.metrics == "pixel" else together.mean(0)).tolist()
        return [mean, median, *(100 * share for share in shares)]
