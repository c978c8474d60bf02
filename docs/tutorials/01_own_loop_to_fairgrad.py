# %% [markdown]
# # From your own loop to FairGrad
#
# An ordinary training loop on scikit-learn's handwritten digits, with three tasks: which digit it is, how much ink it has, and the picture itself again. Then the same loop with one line changed, and the test loss of each task in both.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import mtl_core
from mtl_aggregators import FairGrad

digits = load_digits()
order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
pixels = torch.tensor(digits.data, dtype=torch.float32)[order] / 16.0
labels = torch.tensor(digits.target)[order]
ink = pixels.mean(1, keepdim=True)
train, test = slice(0, 1200), slice(1200, None)
tasks = ("digit", "ink", "picture")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.digit, self.ink, self.picture = nn.Linear(24, 10), nn.Linear(24, 1), nn.Linear(24, 64)

    def heads(self):
        return [*self.digit.parameters(), *self.ink.parameters(), *self.picture.parameters()]


def losses_of(model, rows):
    z = model.trunk(pixels[rows])
    losses = {
        "digit": nn.functional.cross_entropy(model.digit(z), labels[rows]),
        "ink": (model.ink(z) - ink[rows]).square().mean(),
        "picture": (model.picture(z) - pixels[rows]).square().mean(),
    }
    return losses, z


# %% [markdown]
# ## The loop you have
#
# The losses are summed and differentiated at once.


# %%
def trained(write_gradients, epochs=12):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    curve = []
    for _ in range(epochs):
        for rows in torch.arange(1200)[torch.randperm(1200)].split(64):
            losses, z = losses_of(model, rows)
            optimizer.zero_grad()
            write_gradients(model, losses, z)
            optimizer.step()
        with torch.no_grad():
            curve.append([float(loss) for loss in losses_of(model, test)[0].values()])
    return model, curve


def plain(model, losses, z):
    sum(losses.values()).backward()


model, before = trained(plain)
print(dict(zip(tasks, (round(value, 4) for value in before[-1]), strict=True)))

# %% [markdown]
# The cross-entropy is far larger than the ink's loss, and so is its gradient: it decides the direction of the sum, and the trunk learns what is good for the digits.
#
# ## One line changed
#
# `collect` differentiates each loss by itself, with respect to the shared part. FairGrad combines these gradients into one update, and `assign` writes it into `.grad` of the trunk. `collect` has already written the gradients of the heads, each from its own loss, as before.

# %%
method = FairGrad(alpha=1.0)


def fair(model, losses, z):
    gradients = mtl_core.collect(losses, model.trunk.parameters(), features=z, heads=model.heads())
    gradients.assign(method(gradients))


model, after = trained(fair)
print(dict(zip(tasks, (round(value, 4) for value in after[-1]), strict=True)))

# %% [markdown]
# ## What became of the tasks

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
for k, (panel, task) in enumerate(zip(axes, tasks, strict=True)):
    panel.plot([row[k] for row in before], color="#0072B2", label="sum of the losses")
    panel.plot([row[k] for row in after], color="#D55E00", dashes=(6, 2), label="FairGrad")
    panel.set(title=task, yscale="log", xlabel="epoch")
axes[0].set_ylabel("test loss")
axes[0].legend(frameon=False)

# %% [markdown]
# This is one seed of a small problem: it shows what the line does, not which method is better. To compare methods there are [benchmarks](../evidence.md), with seeds, intervals and baselines.
#
# `mtl_core.step` does the same without writing gradients yourself, and also clips, allows for missing tasks and several processes, and takes any other method: [into the loop you have](../adoption.md).
