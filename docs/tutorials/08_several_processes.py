# %% [markdown]
# # Several processes
#
# With several processes each rank has its part of the batch. `DistributedDataParallel` averages the gradients of *one* `backward()`; here there is one per task, and averaging after weighting would be wrong: weights computed from a part of the batch are other weights. So the model stays unwrapped, and `step` is given the process group: task gradients are averaged first, then weighed, and every rank takes the same step, bit for bit.
#
# The program that `torchrun` starts is a file of its own:

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
import mtl_core
from mtl_aggregators import FairGrad

alone = "RANK" not in os.environ
if not alone:
    dist.init_process_group("gloo")
rank, size = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
torch.set_num_threads(1)
torch.manual_seed(0)  # the same start on every rank
model = nn.ModuleDict({"trunk": nn.Linear(8, 16), "a": nn.Linear(16, 1), "b": nn.Linear(16, 1)}).double()


def losses_fn(model, x):
    z = torch.tanh(model["trunk"](x))
    return {"a": (model["a"](z) - x[:, :1]).square().mean(), "b": 9 * (model["b"](z) + x[:, 1:2]).square().mean()}


problem = mtl_core.Problem(model, losses_fn, shared="trunk", tasks=("a", "b"))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
group = None if alone else dist.group.WORLD
data = torch.randn(10, 32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
for batch in data:
    mine = batch[rank::size]  # this rank's part, all of equal size
    report = mtl_core.step(problem, mine, optimizer, FairGrad(), group=group)

total = sum(p.double().sum() for p in model.parameters())
line = f"rank {rank} of {size}: losses {report.losses.tolist()}, sum of all parameters {total.item():.12f}"
sys.stdout.write(line + "\\n")  # in one piece: the ranks share the terminal
if not alone:
    dist.barrier()  # nobody leaves while another still talks to it
    sys.stdout.flush()
    os._exit(0)  # gloo's threads now and then abort a process that ends in the usual way
"""

file = Path(tempfile.mkdtemp()) / "train.py"
file.write_text(PROGRAM)

# %% [markdown]
# Alone, and on two ranks with half of each batch:


# %%
def printed(*arguments):
    done = subprocess.run([sys.executable, *arguments, str(file)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return sorted(done.stdout.strip().splitlines())


alone = printed()
together = printed("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
print("\n".join([*alone, *together]))

sums = {line.rsplit(" ", 1)[1] for line in [*alone, *together]}
assert max(map(float, sums)) - min(map(float, sums)) < 1e-9
print("one process and two made the same model")

# %% [markdown]
# What to know:
#
# - An error on one rank (a NaN, a missing task, an exception in the losses) is raised on all of them, naming rank and task: nobody waits for a timeout.
# - Parts of unequal size: a mean over ranks is not the mean over samples. Make the parts equal, or weigh the losses.
# - A task may be absent on one rank and present on another.
# - Models under `fully_shard` need no `group`: their own ranks are used.
# - `torchrun --nproc-per-node 2 -m mtl_benchmarks run digits --method fairgrad` runs whole benchmarks this way.
