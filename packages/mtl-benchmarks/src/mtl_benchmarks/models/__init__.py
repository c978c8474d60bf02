"""Models, one file each."""

from mtl_benchmarks.models.overlay_cnn import OverlayCNN
from mtl_benchmarks.models.shared_tower import SharedTower

__all__ = ["OverlayCNN", "SharedTower"]
