# %% [markdown]
# # A physics-informed network: losses that differentiate, and ConFIG
#
# A network u(x, t) is to solve the heat equation u_t = 0.05 u_xx on an interval, starting from a sine, with the value 0 at both ends. There are three losses: the residual of the equation, whose evaluation differentiates the network itself; the initial condition; the boundary. All parameters are shared; there are no heads. The gradients of the three differ in length, and they conflict.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import mtl_core
from mtl_aggregators import LS, ConFIG

KAPPA = 0.05


def exact(x, t):
    return torch.exp(torch.tensor(-KAPPA * math.pi**2) * t) * torch.sin(math.pi * x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def losses_fn(model, batch):
    inside, start, ends = batch
    inside = inside.requires_grad_()
    u = model(inside)
    first = torch.autograd.grad(u.sum(), inside, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 0].sum(), inside, create_graph=True)[0][:, 0]
    return {
        "equation": (first[:, 1] - KAPPA * second).square().mean(),
        "start": (model(start) - exact(start[:, :1], start[:, 1:])).square().mean(),
        "boundary": model(ends).square().mean(),
    }


def draw(n=128):
    start = torch.cat([torch.rand(n, 1), torch.zeros(n, 1)], dim=1)
    ends = torch.cat([torch.randint(2, (n, 1)).float(), 2 * torch.rand(n, 1)], dim=1)
    return torch.rand(n, 2) * torch.tensor([1.0, 2.0]), start, ends


# %% [markdown]
# ConFIG takes the direction that makes the same angle with all gradients, as long as they allow one. Every step lowers all three losses to first order, whatever their sizes.

# %%
grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, 41), torch.linspace(0, 2, 41), indexing="ij"), dim=-1)
truth = exact(grid[..., :1], grid[..., 1:])[..., 0]
curves, conflicts = {}, {}
for name, method in (("sum of the losses", LS()), ("ConFIG", ConFIG())):
    model = network()
    problem = mtl_core.Problem(model, losses_fn, shared=model, tasks=("equation", "start", "boundary"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(1)
    error = []
    for step in range(600):
        report = mtl_core.step(problem, draw(), optimizer, method)
        if step % 20 == 0:
            with torch.no_grad():
                error.append(float((model(grid)[..., 0] - truth).norm() / truth.norm()))
    curves[name] = error
    with torch.no_grad():
        found = model(grid)[..., 0]
    losses = problem.losses(draw())
    gradients = mtl_core.collect(dict(zip(problem.tasks, losses.outputs, strict=True)), problem.shared)
    print(f"{name}: relative error {error[-1]:.3f}; smallest cosine now {float(mtl_core.cosines(gradients).min()):.2f}, "
          f"imbalance {float(mtl_core.imbalance_ratio(gradients)):.1f}")  # fmt: skip

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for (name, error), colour, dashes in zip(curves.items(), ("#0072B2", "#D55E00"), ((1, 0), (6, 2)), strict=True):
    left.plot(range(0, 600, 20), error, color=colour, dashes=dashes, label=name)
left.set(xlabel="step", ylabel="relative error", yscale="log")
left.legend(frameon=False)
image = right.imshow(found.numpy(), origin="lower", extent=(0, 2, 0, 1), aspect="auto", cmap="cividis")
right.set(xlabel="t", ylabel="x", title="the network's solution, ConFIG")
figure.colorbar(image, ax=right)

# %% [markdown]
# Six hundred steps of one seed show that losses which contain derivatives can be given to `step` as they are, under every method. They are not enough to rank methods.
#
# What to know: second derivatives need smooth activations (`Tanh`, not `ReLU`). Methods that evaluate the losses besides the step (FAMO's second look, a teleport's probe batches) keep gradients enabled where your loss needs them. In single precision second derivatives are noisy; double precision costs little at this size.
