"""Adapters: trainable displacements of the shared parameters."""

from mtl_teleport.adapters.dense import Dense
from mtl_teleport.adapters.low_rank import LoRA
from mtl_teleport.adapters.peft import PeftAdapter, PeftLoRA
from mtl_teleport.adapters.protocol import Adapter, AdapterSession

__all__ = ["Adapter", "AdapterSession", "Dense", "LoRA", "PeftAdapter", "PeftLoRA"]
