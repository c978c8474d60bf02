# %% [markdown]
# # Adding a benchmark
#
# A benchmark says what the data are, what the model is, what is shared, and how to score it. `mtl-bench` does the rest: training by any method, resuming, single-task baselines, Δm, tables, figures. Here it is made and run from Python; from a file `mine.py` it would be `mtl-bench run mine:Waves`, as [the page about it](../own_benchmark.md) shows.

# %%
import tempfile
from pathlib import Path

import torch
from torch import nn

from mtl_aggregators import make
from mtl_benchmarks import Batches, Benchmark, Metric, OptimizerChoice, Training
from mtl_core import ConflictMonitor, Problem, step


class Waves(Benchmark):
    """Amplitude, frequency and phase of a noisy wave of 64 samples."""

    name, tasks = "waves", ("amplitude", "frequency", "phase")
    metrics = tuple(Metric(f"error_{task}", task, "", higher_is_better=False) for task in tasks)
    training = Training(epochs=3, batch_size=64, optimizer=OptimizerChoice("adam", {"lr": 0.003}))

    def __init__(self, *, n: int = 1024, noise: float = 0.1):
        generator = torch.Generator().manual_seed(0)
        self.truth = torch.rand(n, 3, generator=generator)
        amplitude, frequency, phase = self.truth.T[..., None]
        time = torch.linspace(0, 1, 64)
        clean = (0.5 + amplitude) * torch.sin(6.28 * ((2 + 3 * frequency) * time + phase))
        self.waves = clean + noise * torch.randn(n, 64, generator=generator)
        self.cut = n * 3 // 4

    def build(self):
        trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        return nn.ModuleDict({"trunk": trunk, **{task: nn.Linear(32, 1) for task in self.tasks}})

    def errors(self, model, rows, tasks):
        z = model["trunk"](self.waves[rows])
        columns = {task: self.truth[rows, self.tasks.index(task)] for task in tasks}
        return {task: (model[task](z)[:, 0] - columns[task]).square().mean() for task in tasks}

    def problem(self, model, *, tasks):
        return Problem(model, lambda model, rows: self.errors(model, rows, tasks), shared=model["trunk"], tasks=tasks)

    def batches(self, *, batch_size, seed, device):
        return Batches(lambda rows, _: rows, self.cut, batch_size=batch_size, seed=seed)

    def evaluate(self, model, *, device):
        rows = torch.arange(self.cut, len(self.waves))
        return {"test": {f"error_{task}": e.item() for task, e in self.errors(model, rows, self.tasks).items()}}


# %% [markdown]
# Before anything else, look at one step of it by hand:

# %%
torch.manual_seed(0)
benchmark = Waves()
model = benchmark.build()
problem = benchmark.problem(model, tasks=benchmark.tasks)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
monitor = ConflictMonitor()
batches = benchmark.batches(batch_size=64, seed=0, device=torch.device("cpu"))
for index in range(len(batches)):
    monitor.update(step(problem, batches.batch(epoch=0, index=index), optimizer, make("fairgrad")))
print(monitor.epochs()[0])
print(benchmark.evaluate(model, device=torch.device("cpu")))

# %% [markdown]
# ## A run: a directory that resumes, and its result

# %%
import sys
import types

from mtl_benchmarks import Choice, Collection, RunConfig, run

# A run names its classes by module, and a notebook is none. With the class in a file, leave these two lines out.
sys.modules["waves"] = types.ModuleType("waves")
sys.modules["waves"].Waves = Waves

out = Path(tempfile.mkdtemp())
for method in ("ls", "fairgrad"):
    config = RunConfig.resolve(Choice("waves:Waves", {}), method, seed=0)
    result = run(config, Collection(out).run_path(config.name))
    print(method, {name: round(value, 4) for name, value in result.values.items()})
print(sorted(path.name for path in next(out.glob("*ls*")).iterdir()))

# %% [markdown]
# From the command line all of that is one line, with single-task runs, seeds and intervals beside it:
#
# ```console
# $ mtl-bench study mine:Waves --methods ls fairgrad famo --seeds 5
# $ mtl-bench report runs/study
# ```
