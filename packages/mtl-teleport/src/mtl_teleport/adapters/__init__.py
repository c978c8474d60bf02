"""Adapters: trainable displacements of the shared parameters."""

from mtl_teleport.adapters.dense import Dense
from mtl_teleport.adapters.hadamard import LoHa
from mtl_teleport.adapters.kronecker import LoKr
from mtl_teleport.adapters.low_rank import LoRA
from mtl_teleport.adapters.orthogonal import OFT
from mtl_teleport.adapters.peft import PeftAdapter, PeftLoRA
from mtl_teleport.adapters.protocol import Adapter, AdapterSession

__all__ = ["OFT", "Adapter", "AdapterSession", "Dense", "LoHa", "LoKr", "LoRA", "PeftAdapter", "PeftLoRA"]
