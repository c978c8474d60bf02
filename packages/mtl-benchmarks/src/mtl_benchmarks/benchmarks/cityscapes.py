"""CityScapes: segmentation and inverse depth of streets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mtl_benchmarks.benchmarks.dense_prediction import DensePrediction
from mtl_benchmarks.data_files import DataSource
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.segnet import CITYSCAPES_OUTPUTS
from mtl_benchmarks.protocol import papers
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.published import PUBLISHED_METRICS, PublishedTable
from mtl_benchmarks.scenes.layout import CITYSCAPES
from mtl_benchmarks.scenes.scores import scene_metrics
from mtl_benchmarks.scenes.sources import OfficialCityScapes, Streets

__all__ = ["CityScapes"]

_NAMES = {metric.name: metric.name for metric in PUBLISHED_METRICS["CityScapes"]}
_NASH = "Known errors of this table: recomputed from its printed row, Δm of Nash-MTL is 6.72 (printed 6.82)."


class CityScapes(DensePrediction):
    """Seven classes and inverse depth of streets, from one picture each.

    Reads the papers' folders, whoever wrote them: ``mtl-bench data cityscapes`` says where the official ones come from,
    and ``mtl-bench data streets --root DIR`` generates streets in the same form. Losses are the papers':
    log-likelihood over labelled pixels, absolute error of inverse depth over measured ones. The relative error is no
    percentage and is large where inverse depth is tiny.

    On the official pictures (2,975 and 500 of 128 × 256) the defaults are the papers' protocol: SegNet-MTAN at full
    width, 200 epochs, batches of 8, mean of the last ten epochs. Elsewhere they are for two CPU cores: a quarter of the
    width, 10 epochs in batches of 4, a rate that falls to zero along half a cosine, the last epoch.

    Args:
        root: folder of the data set, with ``train`` and ``val``.
        model: the network: ``segnetmtan``, ``segnetsplit``, ``segnetcrossstitch``, or one of your own from ``outputs``
            and ``width``.
        width: factor on its channels; None: 1 on the official pictures, 1/4 elsewhere.
        family: whose released protocol is followed: ``"nash"`` clips and calls all but the heads shared, ``"cagrad"``
            does not clip and goes with ``model.attention=task``.
        augment: whether training pictures are cropped and flipped at random.
        metrics: over all pixels of the test set (``"pixel"``), or as plain means over batches of eight
            (``"released"``).

    References:
        Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding*, CVPR 2016; protocol: Liu et al.,
        *End-to-End Multi-Task Learning with Attention*, CVPR 2019, and Liu et al. (CAGrad), NeurIPS 2021.
    """

    name: ClassVar[str] = "cityscapes"
    layout = CITYSCAPES
    outputs = CITYSCAPES_OUTPUTS
    tasks: ClassVar[tuple[str, ...]] = CITYSCAPES.tasks
    metrics: ClassVar[tuple[Metric, ...]] = scene_metrics(CITYSCAPES)
    tables = (
        PublishedTable("COST", "Table 1", "CityScapes", _NAMES, (_NASH,)),
        PublishedTable("MARIGOLD", "Table 8", "CityScapes", _NAMES, (_NASH,)),
    )

    def papers_training(self) -> Training:
        """The papers' protocol."""
        return papers.cityscapes(family=self.family)

    @staticmethod
    def data_sources() -> Mapping[str, type[DataSource]]:
        """The official files, and generated streets."""
        return {"cityscapes": OfficialCityScapes, "streets": Streets}
