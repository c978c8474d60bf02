# %% [markdown]
# # COST by hand: one teleport, before and after
#
# [COST](../cost.md) moves the shared weights, where tasks conflict, to a point with nearly the same losses and less conflict: a teleport. Here one is made by hand, and what it did is measured: losses, gradients and cosines, on the batches on which the losses were held and on others.

# %%
import copy

import matplotlib.pyplot as plt
import torch

import mtl_core
from mtl_aggregators import LS
from mtl_benchmarks import Digits
from mtl_teleport import COST, LoRA

torch.manual_seed(0)
benchmark = Digits(n_train=2000, n_test=100)  # two overlaid digits: left, right, and the picture again
model = benchmark.build()
problem = benchmark.problem(model, tasks=benchmark.tasks)
batches = benchmark.batches(batch_size=64, seed=0, device=torch.device("cpu"))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


def gradients_of(batch):
    losses = problem.losses(batch)
    return losses, mtl_core.collect(dict(zip(problem.tasks, losses.outputs, strict=True)), problem.shared)


# %% [markdown]
# ## Train until the tasks conflict
#
# Plain training on the sum of the losses, until the gradient of the task with the shortest one has a negative cosine with the mean gradient.

# %%
for step in range(500):
    batch = batches.batch(*divmod(step, len(batches)))
    _, gradients = gradients_of(batch)
    if step > 60 and mtl_core.dominated_conflict(gradients) and mtl_core.mean_cosines(gradients).min() < -0.1:
        break
    mtl_core.step(problem, batch, optimizer, LS())
cosines = mtl_core.mean_cosines(gradients).tolist()
print(
    f"step {step}: cosines with the mean gradient",
    dict(zip(problem.tasks, (round(c, 2) for c in cosines), strict=True)),
)

# %% [markdown]
# ## Teleport
#
# The losses are held on this batch and three more. `teleport` makes a move without asking a trigger, and reports what it did.

# %%
held = [batch, *(batches.batch(90, k) for k in range(3))]
others = [batches.batch(91, k) for k in range(12)]
before = copy.deepcopy(model.state_dict())
method = COST(LS(), adapter=LoRA(rank=5), probe_batches=held)
report = method.teleport(problem, held, gradients, optimizer=optimizer)
after = copy.deepcopy(model.state_dict())
print(
    f"accepted: {report.accepted}; {report.reason}; length {report.length:.3f}; drift of the losses {report.drift:.2%}"
)


# %% [markdown]
# ## Before and after, on the held batches and on others


# %%
def measured(state, batches):
    model.load_state_dict(state)
    rows = []
    for each in batches:
        losses, gradients = gradients_of(each)
        norm = float(gradients.mean.norm())
        rows.append([*losses.values.tolist(), float(mtl_core.mean_cosines(gradients).min()), norm])
    return torch.tensor(rows)


names = (*problem.tasks, "smallest cosine with the mean", "norm of the mean gradient")
figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
for batches, shift, colour, said in ((held, 0.0, "#D55E00", "held"), (others, 3.0, "#0072B2", "others")):
    old, new = measured(before, batches), measured(after, batches)
    print(said, *(f"{name}: {a:.3f} -> {b:.3f};" for name, a, b in zip(names, old.mean(0), new.mean(0), strict=True)))
    for k, panel in enumerate(axes):
        for one, other in zip(old[:, k], new[:, k], strict=True):
            panel.plot([shift, shift + 1], [one, other], color=colour, alpha=0.35, marker="o", markersize=3)
for panel, name in zip(axes, names, strict=True):
    panel.set_title(name, fontsize=9)
    panel.set_xticks([0, 1, 3, 4], ["before", "after"] * 2, fontsize=7)
    panel.text(0.25, -0.32, "held", transform=panel.transAxes, ha="center", color="#D55E00", fontsize=8)
    panel.text(0.75, -0.32, "others", transform=panel.transAxes, ha="center", color="#0072B2", fontsize=8)

# %% [markdown]
# The losses stay nearly the same, the smallest cosine rises, and the mean gradient grows: at this point the teleport does what it is meant to. Whether the model that is trained on from here becomes better is another question. According to [the evidence](../evidence.md) so far it does not become better than after a random move of equal length. Compare with `RandomTeleport` before you believe in a gain.
#
# In a training loop COST decides by itself when: `method = COST(FairGrad(), probe_batches=...)` in `mtl_core.step`, and `method.start_epoch(epoch)` at the start of each epoch. [Settings](../cost.md).
