"""NYUv2 and CityScapes in their own files: reading, augmentation, losses, metrics; generated scenes read the same."""

from mtl_benchmarks.scenes.augmentation import augmented
from mtl_benchmarks.scenes.folders import SceneFolder, folder_problems
from mtl_benchmarks.scenes.layout import CITYSCAPES, NYUV2, SceneLayout, Scenes
from mtl_benchmarks.scenes.losses import depth_loss, normal_loss, scene_losses, semantic_loss
from mtl_benchmarks.scenes.scores import SceneScores, scene_metrics

__all__ = [
    "CITYSCAPES",
    "NYUV2",
    "SceneFolder",
    "SceneLayout",
    "SceneScores",
    "Scenes",
    "augmented",
    "depth_loss",
    "folder_problems",
    "normal_loss",
    "scene_losses",
    "scene_metrics",
    "semantic_loss",
]
