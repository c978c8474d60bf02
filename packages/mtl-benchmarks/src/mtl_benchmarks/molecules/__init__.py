"""Molecules as arrays: the real QM9, from the package ``qm9pack`` or from PyG's raw files, without torch-geometric."""

from mtl_benchmarks.molecules.graphs import MoleculeBatch, collate
from mtl_benchmarks.molecules.qm9 import load_qm9
from mtl_benchmarks.molecules.store import TARGETS, Molecules

__all__ = ["TARGETS", "MoleculeBatch", "Molecules", "collate", "load_qm9"]
