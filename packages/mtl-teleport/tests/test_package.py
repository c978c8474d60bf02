from __future__ import annotations

import subprocess
import sys

import mtl_teleport


def test_public_names() -> None:
    assert mtl_teleport.__all__ == [
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
    assert all(hasattr(mtl_teleport, name) for name in mtl_teleport.__all__)


def test_importing_loads_neither_peft_nor_a_sibling() -> None:
    code = (
        "import sys, mtl_teleport; mtl_teleport.PeftLoRA(); "
        "print([m for m in ('peft', 'transformers', 'mtl_aggregators', 'mtl_benchmarks', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
