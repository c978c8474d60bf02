"""The step that the method and the optimiser are about to take, as a function of where it is taken from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["NextStep", "next_step"]


@dataclass(frozen=True)
class NextStep:
    r"""A step :math:`\theta' \mapsto \theta' - \eta P \sum_i w_i g_i(\theta')` with everything but the gradients held.

    Attributes:
        lr: :math:`\eta`.
        weights: w, ``[m]``, float64 on the CPU.
        scales: the diagonal of P by parameter name; 1 where a name is missing.
    """

    lr: float
    weights: Tensor
    scales: Mapping[str, Tensor] = field(default_factory=dict)


def next_step(
    shared: Mapping[str, Tensor], weights: Tensor | None, n_tasks: int, lr: float | None, optimizer: Optimizer | None
) -> NextStep | None:
    r"""The step to come, as far as it can be told; ``None`` where the learning rate is not known.

    Of Adam and its kin P is :math:`1 / (\sqrt{\hat s} + \epsilon)` by the second moment that is there, of RMSprop
    likewise; of any other optimiser it is 1. Momentum is left out: what it adds does not depend on the new point.

    Args:
        shared: the shared parameters by name.
        weights: the method's weights ``[m]`` at the present point; ``None`` for a method without any, which counts as
            the mean of the tasks.
        n_tasks: m.
        lr: the learning rate of the shared parameters.
        optimizer: theirs, not a wrapper of it.
    """
    if lr is None:
        return None
    known = torch.full((n_tasks,), 1.0 / n_tasks, dtype=torch.float64, device="cpu") if weights is None else weights
    if known.ndim > 1:  # one row per group of parameters: their mean stands for them
        known = known.mean(dim=0)
    scales: dict[str, Tensor] = {}
    for group in () if optimizer is None else optimizer.param_groups:
        inside = {id(p) for p in group["params"]}
        for name, parameter in shared.items():
            if id(parameter) in inside:
                found = _scale(group, optimizer.state.get(parameter, {}) if optimizer is not None else {})
                if found is not None:
                    scales[name] = found
    return NextStep(lr, known.detach().to("cpu", torch.float64), scales)


def _scale(group: Mapping[str, object], state: Mapping[str, object]) -> Tensor | None:
    eps = group.get("eps", 0.0)
    assert isinstance(eps, float | int)
    squares, step, betas = state.get("exp_avg_sq"), state.get("step"), group.get("betas")
    if isinstance(squares, Tensor) and isinstance(betas, tuple | list) and isinstance(step, Tensor | float | int):
        # The bias correction of the last step. Before the first step it is 0, and the scale is not known.
        corrected = 1.0 - float(betas[1]) ** float(step)
        return 1.0 / (squares.sqrt() / math.sqrt(corrected) + eps) if corrected > 0 else None
    average = state.get("square_avg")
    return 1.0 / (average.sqrt() + eps) if isinstance(average, Tensor) else None
