"""The papers' metrics for NYUv2 and CityScapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mtl_benchmarks.batching.tally import Rows
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.scenes.layout import SceneLayout, Scenes, valid_pixels
from mtl_core.checks import one_of

__all__ = ["Averaging", "SceneScores", "scene_metrics", "values_from"]

Averaging = Literal["pixel", "released"]
"""How a metric is taken over a split; see :class:`SceneScores`."""

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

    def __init__(self, layout: SceneLayout, *, metrics: Averaging = "pixel") -> None:
        self.layout = layout
        self.metrics = one_of("metrics", metrics, ("pixel", "released"))
        self._confusion = torch.zeros(layout.n_classes, layout.n_classes, dtype=torch.float64)
        # Per batch with a valid pixel: the sums of both errors and how many pixels there were.
        self._depth: list[Tensor] = []
        self._angles: list[Tensor] = []

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Tensor], scenes: Scenes) -> None:
        """Take in one batch; tasks that were not predicted are left as they are."""
        if "semantic" in outputs:
            self._confusion += self._confused(outputs["semantic"].argmax(1), scenes.labels).cpu()
        if "depth" in outputs and "depth" in scenes.present:
            mask = valid_pixels(scenes.depth)
            # In double precision: sums over a split have tens of millions of terms.
            target = scenes.depth[mask].double()
            error = (outputs["depth"][mask].double() - target).abs()
            count = torch.tensor(float(target.numel()), dtype=torch.float64)
            self._depth.append(torch.stack([error.sum().cpu(), (error / target).sum().cpu(), count]))
        if "normal" in outputs and scenes.normals is not None and "normal" in scenes.present:
            mask = valid_pixels(scenes.normals)
            # Of unit vectors, but for rounding: beyond 1 the arc cosine is NaN.
            cosines = (outputs["normal"] * scenes.normals).sum(1, keepdim=True)[mask].clamp(-1, 1)
            angles = torch.rad2deg(torch.acos(cosines)).float().cpu()
            self._angles.append(angles if self.metrics == "pixel" else _summary(angles)[None])

    def _confused(self, predicted: Tensor, labels: Tensor) -> Tensor:
        n = self.layout.n_classes
        known = (labels >= 0) & (labels < n)
        pairs = labels[known] * n + predicted[known]
        return torch.bincount(pairs, minlength=n * n).view(n, n)

    def sums(self) -> dict[str, Tensor | Rows]:
        """What several parts of a split add up to its whole; see :func:`values_from`."""
        depth = torch.stack(self._depth) if self._depth else torch.zeros(0, 3, dtype=torch.float64)
        angles = torch.cat(self._angles) if self._angles else torch.zeros((0, *_shape(self.metrics)))
        by_pixel = self.metrics == "pixel"
        found: dict[str, Tensor | Rows] = {"confusion": self._confusion}
        found["depth"] = depth.sum(0) if by_pixel else Rows(depth[:, :2] / depth[:, 2:])
        return {**found, "angles": Rows(angles)} if self.layout.normals else found

    def values(self) -> dict[str, float]:
        """Every metric by its name, in its unit; NaN where no pixel of its task was seen."""
        return values_from(self.sums(), self.layout)


def values_from(sums: Mapping[str, Tensor | Rows], layout: SceneLayout) -> dict[str, float]:
    """Every metric by its name, from the sums over a whole split; NaN where no pixel of its task was seen."""
    confusion, depth = sums["confusion"], sums["depth"]
    assert isinstance(confusion, Tensor)
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    total = float(confusion.sum())
    overlap = float((both / either)[either > 0].mean()) if total else math.nan
    found = {"mIoU": 100 * overlap, "PixAcc": 100 * float(both.sum()) / total if total else math.nan}
    # The mean of no rows, and 0 / 0 pixels, are NaN.
    errors = depth.values.mean(0) if isinstance(depth, Rows) else depth[:2] / depth[2]
    found |= dict(zip(("AbsErr", "RelErr"), errors.tolist(), strict=True))
    if layout.normals:
        rows = sums["angles"]
        assert isinstance(rows, Rows)
        names = [metric.name for metric in scene_metrics(layout) if metric.task == "normal"]
        found |= dict(zip(names, _normal_errors(rows.values), strict=True))
    return found


def _shape(metrics: Averaging) -> tuple[int, ...]:
    """Of what is kept of the normals, beside the number of rows."""
    return () if metrics == "pixel" else (2 + len(_WITHIN),)


def _summary(angles: Tensor) -> Tensor:
    """Mean, median and shares of some angles; the median is the lower one of two in the middle, as torch's is."""
    shares = [(angles < bound).double().mean() for bound in _WITHIN]
    return torch.stack([angles.double().mean(), angles.median().double(), *shares])


def _normal_errors(rows: Tensor) -> list[float]:
    """From the angles of all pixels ``[n]``, or from the summaries of batches ``[n, 5]``."""
    if not len(rows):
        return [math.nan] * (2 + len(_WITHIN))
    mean, median, *shares = (_summary(rows) if rows.ndim == 1 else rows.mean(0)).tolist()
    return [mean, median, *(100 * share for share in shares)]
