# %% [markdown]
# # A recommender: shared embeddings, sparse gradients, labels that are missing
#
# Users and items are embedded; a tower predicts a click and, where there was one, a purchase and a rating. Embeddings have many rows, of which a batch touches few, so that `nn.Embedding(sparse=True)` and `SparseAdam` matter; and most labels are missing, so that a batch may have no purchase at all.

# %%
import torch
from torch import nn

import mtl_core
from mtl_aggregators import MGDA, UPGrad

torch.manual_seed(0)
N_USERS, N_ITEMS, WIDTH = 20_000, 5_000, 16


class Recommender(nn.Module):
    def __init__(self):
        super().__init__()
        self.users = nn.Embedding(N_USERS, WIDTH, sparse=True)
        self.items = nn.Embedding(N_ITEMS, WIDTH, sparse=True)
        nn.init.normal_(self.users.weight, std=0.1)
        nn.init.normal_(self.items.weight, std=0.1)
        self.tower = nn.Sequential(nn.Linear(2 * WIDTH, 32), nn.ReLU())
        self.click, self.purchase, self.rating = nn.Linear(32, 1), nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, user, item):
        return self.tower(torch.cat([self.users(user), self.items(item)], dim=1))


taste, appeal = torch.randn(N_USERS, 4), torch.randn(N_ITEMS, 4)


def draw(n=256):
    user, item = torch.randint(N_USERS, (n,)), torch.randint(N_ITEMS // 50, (n,))
    affinity = (taste[user] * appeal[item]).sum(1)
    clicked = torch.rand(n) < torch.sigmoid(affinity - 1)
    bought = clicked & (torch.rand(n) < torch.sigmoid(affinity - 2))
    return user, item, clicked, bought, affinity


# %% [markdown]
# A task without labels in a batch is **left out of the mapping** that the losses function returns. Its gradient is then zero, it has no influence on the update, and its head does not move.


# %%
def losses_fn(model, batch):
    user, item, clicked, bought, affinity = batch
    z = model(user, item)
    bce = nn.functional.binary_cross_entropy_with_logits
    losses = {"click": bce(model.click(z)[:, 0], clicked.float())}
    if clicked.any():
        losses["purchase"] = bce(model.purchase(z)[clicked, 0], bought[clicked].float())
    if bought.any():
        losses["rating"] = (model.rating(z)[bought, 0] - affinity[bought]).square().mean()
    return losses


model = Recommender()
problem = mtl_core.Problem(
    model, losses_fn, shared=["users.*", "items.*", "tower.*"], tasks=("click", "purchase", "rating")
)
sparse = torch.optim.SparseAdam([model.users.weight, model.items.weight], lr=5e-3)
dense = torch.optim.Adam(
    [p for name, p in model.named_parameters() if not name.startswith(("users", "items"))], lr=5e-3
)

# %% [markdown]
# ## Two optimisers
#
# `step` takes one optimiser. With two, collect and write the gradients, and step both yourself. The gradients of the embeddings stay sparse, since a weighted sum of them is zero outside of the rows that the batch touched:

# %%
method = UPGrad()
shared = [model.users.weight, model.items.weight, *model.tower.parameters()]
heads = [*model.click.parameters(), *model.purchase.parameters(), *model.rating.parameters()]
for step in range(60):
    losses = losses_fn(model, draw())
    for optimizer in (sparse, dense):
        optimizer.zero_grad()
    gradients = mtl_core.collect(losses, shared, heads=heads, tasks=problem.tasks)
    gradients.assign(method(gradients))
    for optimizer in (sparse, dense):
        optimizer.step()
    if step % 20 == 0:
        print(step, {task: round(loss.item(), 3) for task, loss in losses.items()})
print("sparse:", model.users.weight.grad.is_sparse, "rows:", model.users.weight.grad.coalesce().indices().numel())

# %% [markdown]
# ## With one optimiser
#
# Without `sparse=True` one optimiser can hold all parameters, and `step` can be used. In a batch without any click or purchase two tasks are absent: their losses in the report are NaN, and their weights 0:

# %%
model = Recommender()
for table in (model.users, model.items):
    table.sparse = False
problem = mtl_core.Problem(
    model, losses_fn, shared=["users.*", "items.*", "tower.*"], tasks=("click", "purchase", "rating")
)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
user, item, clicked, bought, affinity = draw()
nothing_bought = (user, item, torch.zeros_like(clicked), torch.zeros_like(bought), affinity)
report = mtl_core.step(problem, nothing_bought, optimizer, MGDA())
print("losses:", report.losses, "weights:", report.weights)

# %% [markdown]
# The benchmark `ctr` is a simulated log of this kind whose true probabilities are known: `mtl-bench run ctr --method fairgrad`. Experts and gates (MMoE, PLE, DSelect-k) are in `mtl_benchmarks.models`.
