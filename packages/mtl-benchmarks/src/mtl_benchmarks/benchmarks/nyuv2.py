"""NYUv2: segmentation, depth and surface normals of rooms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mtl_benchmarks.benchmarks.dense_prediction import DensePrediction
from mtl_benchmarks.data_files import DataSource
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.segnet import NYUV2_OUTPUTS
from mtl_benchmarks.protocol import papers
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.published import PUBLISHED_METRICS, PublishedTable
from mtl_benchmarks.scenes.layout import NYUV2
from mtl_benchmarks.scenes.scores import scene_metrics
from mtl_benchmarks.scenes.sources import OfficialNYUv2, Rooms

__all__ = ["NYUv2"]

_ROUNDED = "which are rounded to two decimals of depth: 0.12 to 0.15 points apart"
_RECOMPUTED = "Δm of IMTL-G is -0.60 (printed -0.76) and that of FAMO's rerun -2.91 (printed -3.27)"
_NAMES = {metric.name: metric.name for metric in PUBLISHED_METRICS["NYUv2"]}

_COST_ERRORS = (
    "Known errors of this table: its row FAMO is MoCo's; FAMO's own is in MARIGOLD, Table 1.",
    f"Its Δm of FairGrad and COST is against other baselines than that of the rest, {_ROUNDED}.",
)
_MARIGOLD_ERRORS = (f"Known errors of this table: from the printed rows, {_RECOMPUTED}.",)
_TABLES = (
    PublishedTable("COST", "Table 2", "NYUv2", _NAMES, _COST_ERRORS),
    PublishedTable("MARIGOLD", "Table 7", "NYUv2", _NAMES, _MARIGOLD_ERRORS),
)


class NYUv2(DensePrediction):
    """Thirteen classes, depth and surface normals of rooms, from one picture each.

    Reads the papers' folders, whoever wrote them: ``mtl-bench data nyuv2`` says where the official ones come from, and
    ``mtl-bench data rooms --root DIR`` generates rooms in the same form. Losses are the papers': log-likelihood over
    labelled pixels, absolute error of depth and one minus the cosine of normals over measured ones.

    On the official pictures (795 and 654 of 288 × 384) the defaults are the papers' protocol: SegNet-MTAN at full
    width, 200 epochs, batches of 2, mean of the last ten epochs. Elsewhere they are for two CPU cores: a quarter of the
    width, 10 epochs in batches of 4, a rate that falls to zero along half a cosine, the last epoch.

    Args:
        root: folder of the data set, with ``train`` and ``val``.
        model: the network: ``segnetmtan``, ``segnetsplit``, ``segnetcrossstitch``, or one of your own from ``outputs``
            and ``width``.
        width: factor on its channels; None: 1 on the official pictures, 1/4 elsewhere.
        family: whose released protocol is followed: ``"nash"`` clips and calls all but the heads shared, ``"cagrad"``
            does not clip and goes with ``model.attention=task``.
        augment: whether training pictures are cropped and flipped at random.
        metrics: over all pixels of the test set (``"pixel"``), or as plain means over batches of two (``"released"``).

    References:
        Silberman et al., *Indoor Segmentation and Support Inference from RGBD Images*, ECCV 2012; protocol: Liu et
        al., *End-to-End Multi-Task Learning with Attention*, CVPR 2019, and Navon et al., ICML 2022.
    """

    name: ClassVar[str] = "nyuv2"
    layout = NYUV2
    outputs = NYUV2_OUTPUTS
    tasks: ClassVar[tuple[str, ...]] = NYUV2.tasks
    metrics: ClassVar[tuple[Metric, ...]] = scene_metrics(NYUV2)
    tables = _TABLES

    def papers_training(self) -> Training:
        """The papers' protocol."""
        return papers.nyuv2(family=self.family)

    @staticmethod
    def data_sources() -> Mapping[str, type[DataSource]]:
        """The official files, and generated rooms."""
        return {"nyuv2": OfficialNYUv2, "rooms": Rooms}
