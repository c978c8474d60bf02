# %% [markdown]
# # Eleven tasks on real molecules
#
# QM9 has 130,831 small molecules with properties of each, computed by quantum chemistry. Here eleven of these properties are predicted by one message-passing network. Joint training is known to lose on them: every property is learned better alone. This tutorial shows how the tasks conflict, and what a weighting changes, in a minute on one core.
#
# The molecules come with the package `qm9pack` (`pip install qm9pack==1.0.3`, 104 MB). The first use reads its text, three quarters of a minute; later ones take the arrays from your cache folder.

# %%
import time

import matplotlib.pyplot as plt
import torch

import mtl_core
from mtl_aggregators import FAMO, LS, FairGrad
from mtl_benchmarks import QM9

torch.set_num_threads(1)
benchmark = QM9(n_train=1200, n_validation=0, n_test=600, width=16, hidden=16)
batches = benchmark.batches(batch_size=60, seed=0, device="cpu")
print(len(batches), "batches of 60 molecules;", len(benchmark.tasks), "tasks:", ", ".join(benchmark.tasks))

# %% [markdown]
# A benchmark gives models, batches and a `Problem`: the losses, and which parameters the tasks share. Everything below works with any `Problem` of your own.


# %%
def begin():
    torch.manual_seed(0)
    model = benchmark.build()
    return model, benchmark.problem(model, tasks=benchmark.tasks)


model, problem = begin()
n_shared = sum(parameter.numel() for parameter in problem.shared)
print(f"{n_shared} shared parameters of {sum(parameter.numel() for parameter in model.parameters())}")

# %% [markdown]
# ## Who pulls against whom
#
# A hundred steps of plain training first, so that what is seen is not the random start. Then one gradient per task, on one batch.

# %%
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for number in range(100):
    mtl_core.step(problem, batches.batch(*divmod(number, len(batches))), optimizer, LS())

losses = problem.losses(batches.batch(5, 0))
gradients = mtl_core.collect(dict(zip(losses.tasks, losses.values, strict=True)), problem.shared)
cosines, norms = mtl_core.cosines(gradients), gradients.norms

figure, (pairs, lengths) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", width_ratios=(1.4, 1))
picture = pairs.imshow(cosines.numpy(), cmap="RdBu", vmin=-1, vmax=1)
pairs.set_xticks(range(11), benchmark.tasks, rotation=90)
pairs.set_yticks(range(11), benchmark.tasks)
pairs.set_title("cosine of two tasks' gradients")
figure.colorbar(picture, ax=pairs, shrink=0.8)
lengths.barh(benchmark.tasks, norms.numpy(), color="#4477AA")
lengths.invert_yaxis()
lengths.set_title("length of each gradient")
print(f"longest over shortest gradient: {mtl_core.imbalance_ratio(gradients):.1f}")
print("cosine with the mean:", " ".join(f"{c:.2f}" for c in mtl_core.mean_cosines(gradients).tolist()))

# %% [markdown]
# The four energies `u0`, `u`, `h` and `g` are nearly the same quantity, and their gradients nearly the same vector, so that the energies count four times in the sum of the losses. Tasks whose gradients point against them, or are short, have little influence.
#
# ## Three weightings
#
# The same start, the same batches, the same optimiser. `LS` adds the losses up, one backward pass. `FAMO` weighs the losses by how fast they fall, for one more forward pass. `FairGrad` looks at all eleven gradients, eleven backward passes.


# %%
def trained(method, steps=100):
    model, problem = begin()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = mtl_core.ConflictMonitor()
    began = time.process_time()
    for number in range(steps):
        report = mtl_core.step(problem, batches.batch(*divmod(number, len(batches))), optimizer, method)
        if report.gramian is not None:
            monitor.update(report)
    seconds = time.process_time() - began
    return benchmark.evaluate(model, device="cpu")["test"], seconds / steps, monitor


results = {name: trained(method) for name, method in (("LS", LS()), ("FAMO", FAMO()), ("FairGrad", FairGrad(alpha=2)))}
base, own, _ = results["LS"]
print("error against LS, in %; time of a step against LS")
for name, (errors, seconds, _) in results.items():
    change = [100 * (errors[key] / base[key] - 1) for key in base]
    print(f"{name:9}", *(f"{x:6.1f}" for x in change), f"   {seconds / own:4.1f} ×")
print(" " * 9, *(f"{task:>6}" for task in benchmark.tasks))

# %% [markdown]
# ## What to make of it
#
# A hundred steps of a narrow network show how to look, and not which method is best; [benchmarks](../benchmarks.md#qm9) has longer runs beside single-task ones, over several seeds. The same from the command line, with everything that a comparison needs (own single-task runs, Δm, figures, resuming):
#
# ```console
# $ mtl-bench run qm9 --method fairgrad --seeds 3
# $ mtl-bench compare runs
# ```
#
# With eleven tasks the cost of a method matters: one gradient per task is eleven backward passes, while methods on losses make one. [Which method for me](../choosing.md) says when to take which.
