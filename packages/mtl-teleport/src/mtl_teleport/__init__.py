"""Symmetry teleportation for multi-task optimisation: COST, trajectory reuse, adapters and triggers."""

from mtl_teleport.adapters import Adapter, AdapterSession, Dense, LoRA, PeftAdapter, PeftLoRA
from mtl_teleport.control import RandomTeleport
from mtl_teleport.cost import COST
from mtl_teleport.history import modulated, trajectory_cosine
from mtl_teleport.report import TeleportReport
from mtl_teleport.triggers import AnyMeanConflict, DominatedConflict, MajorityConflict, Trigger, WeakConflict

__version__ = "0.1.0"

__all__ = [
    "COST",
    "Adapter",
    "AdapterSession",
    "AnyMeanConflict",
    "Dense",
    "DominatedConflict",
    "LoRA",
    "MajorityConflict",
    "PeftAdapter",
    "PeftLoRA",
    "RandomTeleport",
    "TeleportReport",
    "Trigger",
    "WeakConflict",
    "modulated",
    "trajectory_cosine",
]
