"""The recipe for FSDP2 in docs/recipes.md, on two processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
AROUND = """
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

{page}
from mtl_core.testing import leave

dist.init_process_group("gloo")
torch.set_num_threads(1)
torch.manual_seed(0)
model = Net()
data = torch.Generator().manual_seed(7 + dist.get_rank())


def next_batch():
    return (
        torch.randn(16, 8, generator=data),
        torch.randint(5, (16,), generator=data),
        torch.randn(16, 1, generator=data),
    )


{recipe}
whole = [p.full_tensor() for p in model.parameters()]
line = f"sum {{float(sum(p.double().sum() for p in whole))}} losses {{report.losses.tolist()}}\\n"
sys.stdout.write(line)  # in one piece: torchrun leaves the ranks' output unbuffered, and they share the pipe
leave()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_both_ranks_take_the_same_steps(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
    marked = re.search(r"<!-- recipe: fsdp2 -->\n```py\n(.*?)^```$", PAGE, flags=re.M | re.S)
    assert marked is not None
    program = tmp_path / "program.py"
    page = blocks[0].partition("model = Net()")[0]
    program.write_text(AROUND.format(page=page, recipe=marked[1]), encoding="utf-8")

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=600, check=False)

    assert done.returncode == 0, done.stderr[:3000]
    said = re.findall(r"sum (\S+) losses (\[[^\]]*\])", done.stdout)
    assert len(said) == 2
    assert said[0] == said[1]
