# %% [markdown]
# # Seeing conflict in your own model
#
# Before you choose a method, see whether your tasks conflict at all, which of them do, and whether one decides alone. The training does not change; every few steps the task gradients are computed besides.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import mtl_core

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32) / 16.0
labels = torch.tensor(digits.target)
half = pixels.view(-1, 8, 8)[:, :4].sum((1, 2))[:, None] / 8  # ink in the upper half

model = nn.ModuleDict(
    {
        "trunk": nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()),
        "digit": nn.Linear(16, 10),
        "odd": nn.Linear(16, 1),
        "upper": nn.Linear(16, 1),
        "picture": nn.Linear(16, 64),
    }
)
tasks = ("digit", "odd", "upper", "picture")


def losses_of(model, rows):
    z = model["trunk"](pixels[rows])
    odd = (labels[rows] % 2).float()[:, None]
    losses = {
        "digit": nn.functional.cross_entropy(model["digit"](z), labels[rows]),
        "odd": nn.functional.binary_cross_entropy_with_logits(model["odd"](z), odd),
        "upper": (model["upper"](z) - half[rows]).square().mean(),
        "picture": (model["picture"](z) - pixels[rows]).square().mean(),
    }
    return losses, z


# %% [markdown]
# ## Looking while training
#
# The loop is the plain one. Every fifth step the gradients of the same losses are collected first, with `retain_graph=True` so that `backward()` can still walk the graph. `ConflictMonitor` sums up by epoch.

# %%
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
monitor = mtl_core.ConflictMonitor()
seen, step = [], 0
for epoch in range(8):
    monitor.start_epoch(epoch)
    for rows in torch.randperm(len(pixels)).split(64):
        losses, z = losses_of(model, rows)
        if step % 5 == 0:
            gradients = mtl_core.collect(losses, model["trunk"].parameters(), features=z, retain_graph=True)
            monitor.update(gradients)
            seen.append((step, mtl_core.mean_cosines(gradients), mtl_core.cosines(gradients)))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        step += 1

print("epoch  weak  dominated  smallest cosine  imbalance")
for row in monitor.epochs():
    print(f"{row.epoch:5}  {row.weak:4.0%}  {row.dominated:9.0%}  {row.min_cosine:15.2f}  {row.imbalance:9.1f}")

# %% [markdown]
# *Weak*: the share of steps at which some pair of tasks conflicts. *Dominated*: the share at which the task of the shortest gradient has a negative cosine with the mean gradient, so that following the mean makes it worse. *Imbalance*: the longest gradient over the shortest. More on these: [conflict](../concepts/conflict.md), [imbalance](../concepts/imbalance.md).
#
# ## Who against whom, and when

# %%
figure, (over_time, pairs) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", width_ratios=(1.6, 1))
for k, (task, colour) in enumerate(zip(tasks, ("#4477AA", "#EE6677", "#228833", "#CCBB44"), strict=True)):
    over_time.plot([at for at, _, _ in seen], [float(mean[k]) for _, mean, _ in seen], color=colour, label=task)
over_time.axhline(0, color="#8A8A8A", linewidth=0.8)
over_time.set(xlabel="step", ylabel="cosine with the mean gradient", ylim=(-1, 1))
over_time.legend(frameon=False, ncols=2)

average = torch.stack([cosine for _, _, cosine in seen]).mean(0)
image = pairs.imshow(average.numpy(), cmap="RdBu", vmin=-1, vmax=1)
pairs.set_xticks(range(4), tasks, rotation=30)
pairs.set_yticks(range(4), tasks)
for i in range(4):
    for j in range(4):
        colour = "white" if abs(average[i, j]) > 0.6 else "black"
        pairs.text(j, i, f"{average[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour)
figure.colorbar(image, ax=pairs, label="mean cosine")

# %% [markdown]
# ## What follows from it
#
# - No conflict, no imbalance: the sum of the losses is fine. Keep it.
# - Imbalance without conflict: bring the losses to like units, or take a method that does not see the length of gradients.
# - The same task loses, epoch after epoch: [which method for me](../choosing.md).
#
# In your model, only `losses_of` and the name of the trunk differ. Without features leave `features=` out: the same numbers, for more work.
