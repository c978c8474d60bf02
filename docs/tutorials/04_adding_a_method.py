# %% [markdown]
# # Adding a method
#
# A method of your own is a class with one function. It need not be registered: `step` takes its objects, and on the command line `package.module:Class` names it.
#
# ## A weighting
#
# It sees the Gramian, all inner products of the task gradients, and returns one number per task. Here: weigh each task by how much the others agree with it.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import mtl_core
from mtl_aggregators import MGDA


class Agreement:
    """Weights that grow with a task's mean cosine to all tasks, of mean 1."""

    def __init__(self, *, sharpness: float = 2.0):
        self.sharpness = sharpness

    def weights(self, gramian: torch.Tensor) -> torch.Tensor:
        cosines = mtl_core.cosines(gramian)
        return len(gramian) * torch.softmax(self.sharpness * cosines.mean(1), dim=0)

    def __call__(self, jacobian: torch.Tensor) -> torch.Tensor:
        return self.weights(jacobian @ jacobian.T).to(jacobian.dtype) @ jacobian


jacobian = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.2]])
print(Agreement().weights(jacobian @ jacobian.T))

# %% [markdown]
# ## In a step
#
# Clipping, micro-batches, missing tasks and several processes are settings of `step`; the method need not know of them.

# %%
torch.manual_seed(0)
model = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(6, 32), nn.Tanh()), "heads": nn.Linear(32, 3)})


def losses_fn(model, x):
    wanted = torch.stack([x[:, 0] * x[:, 1], x[:, 0] * x[:, 1] + 0.3 * x[:, 2], -x[:, 0]], dim=1)
    return (model["heads"](model["trunk"](x)) - wanted).square().mean(0)


problem = mtl_core.Problem(model, losses_fn, shared="trunk", tasks=("product", "nearly", "other"))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
weights = []
for _ in range(150):
    report = mtl_core.step(problem, torch.randn(64, 6), optimizer, Agreement(), max_norm=1.0)
    weights.append(report.weights.tolist())

figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
for task, line, colour in zip(
    problem.tasks, zip(*weights, strict=True), ("#4477AA", "#EE6677", "#228833"), strict=True
):
    axes.plot(line, color=colour, label=task)
axes.set(xlabel="step", ylabel="weight")
axes.legend(frameon=False)

# %% [markdown]
# ## Held to laws
#
# A law is a property that holds for all gradients. `check_aggregator` takes the laws that you claim and looks for counterexamples among drawn Jacobians (zero, repeated, opposed, nearly parallel rows, norms many decades apart). A false claim fails with a small Jacobian that breaks it:

# %%
from mtl_aggregators.conformance import check_aggregator

check_aggregator(lambda: MGDA(), {"non_conflicting", "simplex"}, max_examples=20)
print("MGDA never conflicts: no counterexample")
check_aggregator(lambda: Agreement(), {"permutation", "homogeneous"}, max_examples=20)
print("Agreement treats tasks alike and has degree 1: no counterexample")
try:
    check_aggregator(lambda: Agreement(), {"non_conflicting"}, max_examples=50)
except AssertionError as error:
    print("Agreement may conflict:", str(error).splitlines()[0][:110])

# %% [markdown]
# ## For others
#
# - On the command line: `mtl-bench run digits --method mine:Agreement --method.sharpness 3`.
# - In this repository: two files, and the registry, the tables and the laws follow: [contributing](../../CONTRIBUTING.md#adding-a-method).
# - From an installed package: the entry point group `mtl.methods`: [extending](../extending.md).
