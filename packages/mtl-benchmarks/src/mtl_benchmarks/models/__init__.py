"""Models, one file each."""

from mtl_benchmarks.models.overlay_cnn import OverlayCNN

__all__ = ["OverlayCNN"]
