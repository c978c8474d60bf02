"""Symmetry teleportation for multi-task optimisation: COST, trajectory reuse, adapters and triggers."""

from mtl_teleport.adapters import OFT, Adapter, AdapterSession, Dense, LoHa, LoKr, LoRA, PeftAdapter, PeftLoRA
from mtl_teleport.cost import COST
from mtl_teleport.history import modulated, trajectory_cosine
from mtl_teleport.memory_only import MemoryOnly
from mtl_teleport.random_teleport import RandomTeleport
from mtl_teleport.report import TeleportReport
from mtl_teleport.triggers import Always, AnyMeanConflict, DominatedConflict, MajorityConflict, Trigger, WeakConflict

__version__ = "0.2.0"

__all__ = [
    "COST",
    "OFT",
    "Adapter",
    "AdapterSession",
    "Always",
    "AnyMeanConflict",
    "Dense",
    "DominatedConflict",
    "LoHa",
    "LoKr",
    "LoRA",
    "MajorityConflict",
    "MemoryOnly",
    "PeftAdapter",
    "PeftLoRA",
    "RandomTeleport",
    "TeleportReport",
    "Trigger",
    "WeakConflict",
    "modulated",
    "trajectory_cosine",
]
