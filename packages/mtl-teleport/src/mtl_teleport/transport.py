r"""An optimiser's averages carried along a move, by what the move did to the gradient.

The averages of Adam stand for the gradient and its square around the old point. From the new one they are wrong by what
the gradient has changed, which two passes over the probe batches tell: with :math:`g` and :math:`g'` the combined
gradient there before and after the move,

.. math:: \hat v \leftarrow \hat v + (g' - g), \qquad \hat s \leftarrow \hat s\,\frac{\hat s + g'^2}{\hat s + g^2}

per coordinate, where hats stand for the averages after bias correction. The second moment stays positive, is left as it
is where the gradient has not changed, and moves by no more than the change of its square over what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_teleport.adapters.dense import Dense
from mtl_teleport.search_context import Search

__all__ = ["Change", "carry", "probe_gradient"]

Change = dict[str, tuple[Tensor, Tensor]]
"""By parameter name, the combined gradient on the probe batches before a move and after it."""


def probe_gradient(search: Search, weights: Tensor, values: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The combined gradient of the shared parameters, mean over the probe batches, by name.

    Args:
        search: problem, probe batches and conditions.
        weights: ``[m]``, of the tasks' losses.
        values: parameters in place of the model's own, by name; the others stay.
    """
    names = list(search.problem.named_shared)
    total: list[Tensor] = []
    # An adapter that displaces nothing: a session evaluates and differentiates as the search does, ranks and loss scale
    # included.
    with Dense().attach(search.problem, batch=search.batches[0], generator=search.generator) as session:
        search.prepare(session, search.conditions.around)
        for batch in search.batches:
            here = dict(zip(names, session.parameters().values(), strict=True))
            here |= values or {}
            at = {
                key: here[name].detach().requires_grad_() for key, name in zip(session.parameters(), names, strict=True)
            }
            losses = session.evaluate(batch, parameters=at)
            # Of the tasks that this batch has.
            own = weights[list(losses.index)].to(losses.values)
            found = session.differentiate((own * losses.values).sum(), list(at.values()), at=at)
            total = [*found] if not total else [a + b for a, b in zip(total, found, strict=True)]
    return {name: part / len(search.batches) for name, part in zip(names, total, strict=True)}


@torch.no_grad()
def carry(
    optimizer: Optimizer,
    group: dict[str, Any],
    parameter: Tensor,
    change: tuple[Tensor, Tensor],
    undo: list[Callable[[], object]],
) -> None:
    """Carry the averages of one parameter along; those of other kinds of optimisers than these stay as they are.

    Args:
        optimizer: one of Adam and its kin, SGD with momentum, or another.
        group: the parameter's.
        parameter: the parameter.
        change: the combined gradient before and after.
        undo: gets what puts the averages back.
    """
    state = optimizer.state.get(parameter) or {}
    before, after = change
    tensors = [state.get(key) for key in ("exp_avg", "exp_avg_sq", "momentum_buffer")]
    undo.extend(partial(tensor.copy_, tensor.clone()) for tensor in tensors if isinstance(tensor, Tensor))
    if isinstance(state.get("momentum_buffer"), Tensor):
        # A sum of gradients, each times a power of the momentum: that many times the gradient's change.
        momentum = float(group.get("momentum", 0.0))
        if 0.0 < momentum < 1.0:
            rate = (1.0 - float(group.get("dampening", 0.0))) / (1.0 - momentum)
            buffer, added = state["momentum_buffer"], (after - before).to(parameter)
            # That of an embedding's sparse gradients is sparse itself.
            buffer.add_(added.to_sparse(buffer.sparse_dim()) if buffer.is_sparse else added, alpha=rate)
        return
    if "exp_avg" not in state or "step" not in state:
        return
    corrections = [1.0 - float(beta) ** float(state["step"]) for beta in group["betas"]]
    state["exp_avg"].add_((after - before).to(state["exp_avg"]), alpha=corrections[0])
    if "exp_avg_sq" in state:
        squares = state["exp_avg_sq"]
        known = squares / corrections[1]
        # Where average and gradient are zero the quotient is 1, not 0/0.
        tiny = torch.finfo(known.dtype).tiny
        squares.mul_((known + after.to(known).square() + tiny) / (known + before.to(known).square() + tiny))
