"""Parameters on which an optimiser starts anew, while it goes on with the others of their group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["effective_gradient", "start_anew"]


def start_anew(
    optimizer: Optimizer, group: dict[str, Any], parameters: list[Tensor], undo: list[Callable[[], object]]
) -> None:
    """Drop the state of these parameters of a group, so that the optimiser starts on them anew."""
    for parameter in parameters:
        if parameter in optimizer.state:
            state = optimizer.state.pop(parameter)
            undo.append(partial(optimizer.state.__setitem__, parameter, state))
    momentum = group.get("momentum")
    if not (isinstance(optimizer, torch.optim.SGD) and group.get("fused") and momentum):
        return
    # The fused kernel takes momentum from all parameters of a group or from none.
    if any(optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in group["params"]):
        for parameter in parameters:
            if parameter.grad is not None:
                # Of which the ordinary step, βv + (1 − dampening) g, makes the g of a first one.
                gradient = effective_gradient(group, parameter)
                start = gradient * (group["dampening"] / momentum) if group["dampening"] else gradient.new_zeros(())
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter).copy_(start)
                undo.append(partial(optimizer.state.pop, parameter, None))


def effective_gradient(group: dict[str, Any], parameter: Tensor) -> Tensor:
    """The gradient as the averages see it: with its sign and coupled weight decay, complex as pairs of reals."""
    assert parameter.grad is not None
    gradient = parameter.grad.neg() if group.get("maximize") else parameter.grad
    decoupled = group.get(
        "decoupled_weight_decay", "ns_steps" in group
    )  # Muon's decay is decoupled, and it has no such key
    if group.get("weight_decay") and not decoupled:
        gradient = gradient.add(parameter.detach(), alpha=group["weight_decay"])
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
