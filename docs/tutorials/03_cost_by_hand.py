# %% [markdown]
# # COST by hand: one teleport, before and after
#
# A teleport is one call. Here it is made by hand at a step where two tasks conflict, and what it did is measured: losses, gradients, cosines, on the batches on which the losses were held and on others.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

import mtl_core
from mtl_aggregators import LS
from mtl_teleport import COST, LoRA

torch.manual_seed(0)
model = nn.ModuleDict(
    {"trunk": nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 24), nn.Tanh()),
     "a": nn.Linear(24, 1), "b": nn.Linear(24, 1)}
)  # fmt: skip
truth = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).requires_grad_(False)


def draw(n=64):
    x = torch.randn(n, 8)
    return x, 6.0 * truth(x)


def losses_fn(model, batch):
    x, y = batch
    z = model["trunk"](x)
    return {"a": 4 * (model["a"](z) - y[:, :1]).square().mean(), "b": (model["b"](z) + y[:, :1] - y[:, 1:]).abs().mean()}


problem = mtl_core.Problem(model, losses_fn, shared="trunk", tasks=("a", "b"))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


def gradients_of(batch):
    losses = problem.losses(batch)
    return losses, mtl_core.collect(dict(zip(problem.tasks, losses.outputs, strict=True)), problem.shared)


# %% [markdown]
# ## Train until the tasks conflict

# %%
batch = draw()
for step in range(2000):
    _, gradients = gradients_of(batch)
    if step > 20 and mtl_core.dominated_conflict(gradients):
        break
    mtl_core.step(problem, batch, optimizer, LS())
    batch = draw()
print(f"step {step}: cosines with the mean gradient {mtl_core.mean_cosines(gradients).tolist()}")

# %% [markdown]
# ## Teleport
#
# Losses are held on this batch and three more. `teleport` does it whatever the trigger says, and tells what it did.

# %%
held = [batch, draw(), draw(), draw()]
others = [draw() for _ in range(20)]
before = copy.deepcopy(model.state_dict())
method = COST(LS(), adapter=LoRA(rank=5), probe_batches=held, lr=0.02, max_steps=40)
report = method.teleport(problem, held, gradients, optimizer=optimizer)
after = copy.deepcopy(model.state_dict())
print(f"accepted: {report.accepted}; {report.reason}; length {report.length:.3f}; drift of the losses {report.drift:.2%}")


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


names = ("loss a", "loss b", "smallest cosine with the mean", "norm of the mean gradient")
figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
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
# Losses stay, the conflict shrinks, the gradient grows: that is what a teleport promises, at this point. Whether the model that is trained on from here is better is another question, and [the evidence](../evidence.md) so far says: not more than after a random move of equal length. Compare with `RandomTeleport` before you believe in a gain.
#
# In a training loop COST decides by itself when: `method = COST(FairGrad(), probe_batches=...)` in `mtl_core.step`, and `method.start_epoch(epoch)` at the start of each epoch. [Settings](../cost.md).
