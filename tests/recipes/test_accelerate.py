"""The recipe for Accelerate in docs/adoption.md, on two processes: its loop and its accumulation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="accelerate is not installed (it comes with peft)")
PAGE = (Path(__file__).parents[2] / "docs" / "adoption.md").read_text(encoding="utf-8")
BEFORE = """
import json
import sys

from mtl_core.testing import leave

method, steps = FairGrad(alpha=1.0), []


def say(where):
    whole = float(sum(p.detach().double().sum() for p in model.parameters()))
    ranks = (accelerator.process_index, accelerator.num_processes)
    said = {"where": where, "ranks": ranks, "steps": len(steps), "sum": whole, "losses": report.losses.tolist()}
    sys.stdout.write("said " + json.dumps(said) + "\\n")  # in one piece: the ranks share the pipe
    sys.stdout.flush()
"""
AFTER = """
if accelerator.num_processes > 1:
    leave()
"""


def program(batch_size: int) -> str:
    """The page's model, its loop and its accumulation, each followed by what it came to."""
    running = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)[0]
    section = PAGE.partition("## Accelerate\n")[2].partition("\n## ")[0]
    loop, accumulation = re.findall(r"^```python\n(.*?)^```$", section, flags=re.M | re.S)
    assert loop.count("batch_size=16") == loop.count("\nproblem = ") == 1
    loop = loop.replace("batch_size=16", f"batch_size={batch_size}")
    counted = "\noptimizer.optimizer.register_step_post_hook(lambda *_: steps.append(0))\nproblem = "
    loop = loop.replace("\nproblem = ", counted)
    return "\n".join([running, BEFORE, loop, 'say("loop")', accumulation, 'say("accumulation")', AFTER])


def run(folder: Path, batch_size: int, n_processes: int) -> dict[str, list[dict[str, Any]]]:
    """What each rank says, by where in the program it says it."""
    path = folder / f"on_{n_processes}.py"
    path.write_text(program(batch_size), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    words = [sys.executable, *(launcher if n_processes > 1 else []), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in re.findall(r"said (\{.*\})", done.stdout)]
    return {where: [each for each in said if each["where"] == where] for where in ("loop", "accumulation")}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_ranks_take_the_steps_of_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    together, by_itself = run(tmp_path, 16, 2), run(tmp_path, 32, 1)

    # 64 rows in parts of 16 on two ranks are two steps of 32 rows; then one more, of two micro-batches.
    for where, steps in (("loop", 2), ("accumulation", 3)):
        first, second = together[where]
        (alone,) = by_itself[where]
        assert sorted([first["ranks"], second["ranks"]]) == [[0, 2], [1, 2]]
        assert (first["sum"], first["losses"]) == (second["sum"], second["losses"])
        assert first["steps"] == alone["steps"] == steps
        # In bfloat16, whose rounding depends on which rows are computed together.
        assert first["losses"] == pytest.approx(alone["losses"], rel=1e-2)
