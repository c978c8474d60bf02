"""CelebA in its own files: reading, checking, and what to fetch."""

from mtl_benchmarks.faces.folder import ATTRIBUTES, COUNTS, FaceFolder, Faces, folder_problems
from mtl_benchmarks.faces.source import OfficialCelebA

__all__ = ["ATTRIBUTES", "COUNTS", "FaceFolder", "Faces", "OfficialCelebA", "folder_problems"]
