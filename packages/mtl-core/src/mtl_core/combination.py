"""From task gradients to an update, by whichever of the protocols a method keeps to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_core import checks
from mtl_core.collecting.flat import flat_size
from mtl_core.collecting.gramian import gramian_of, weighted_sum
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.collecting.writing import own
from mtl_core.errors import InvalidInputError
from mtl_core.problem import Problem
from mtl_core.protocols import (
    HasMemory,
    TakesAbsentTasks,
    TakesLosses,
    WeighsJacobian,
    Weighting,
    is_loss_weighting,
    offers,
)

__all__ = ["aggregate", "combine", "combine_per_group", "gramian_weights", "loss_weights", "weigh"]


def weigh(method: Any, gradients: TaskGradients, gramian: Tensor) -> Tensor | None:
    """The weights ``[m]`` of a method without a step of its own; ``None`` if it gives an update only.

    Args:
        method: a weighting, loss weighting, aggregator or callable.
        gradients: the task gradients.
        gramian: their Gramian on the CPU.
    """
    # In this order, as a method may offer several of these: the losses need no gradients, weights of the Gramian `[m,
    # m]`, weights of the Jacobian all of `[m, d]`.
    if is_loss_weighting(method):
        return loss_weights(method, gradients.losses, gradients.present_somewhere)
    if offers(method, Weighting):
        return gramian_weights(method, gramian, gradients.losses)
    if offers(method, WeighsJacobian):
        matrix = gradients.whole_matrix.detach()
        return _one_per_task(method.jacobian_weights(matrix), gradients.n_tasks, "jacobian_weights")
    return None


def combine(method: Any, gradients: TaskGradients, gramian: Tensor) -> tuple[Tensor, Tensor | None]:
    """The update ``[d]`` of a method without a step of its own, and its weights ``[m]`` if it has any.

    Args:
        method: a weighting, loss weighting, aggregator or callable.
        gradients: the task gradients.
        gramian: their Gramian on the CPU.
    """
    weights = weigh(method, gradients, gramian)
    if weights is None:
        return aggregate(method, gradients.whole_matrix), None
    return gradients.combine(weights), weights


def combine_per_group(
    problem: Problem, method: Any, gradients: TaskGradients, per: Literal["layer", "parameter"]
) -> tuple[Tensor, Tensor | None]:
    """As ``combine``, with the method applied to each group of parameters by itself; weights are ``[n_groups, m]``.

    A loss weighting has one weight per loss, the same for every group.

    Args:
        problem: the problem.
        method: a weighting, an aggregator or a loss weighting.
        gradients: of the step, with their Jacobian.
        per: what a group is: the parameters of a ``"layer"``, or one ``"parameter"``.

    Raises:
        InvalidInputError: the method remembers something from step to step, which each group would go on from.
    """
    if is_loss_weighting(method):
        return combine(method, gradients, gradients.host_gramian)
    names = problem.shared_names
    matrix = gradients.whole_matrix
    # The module that owns a parameter is what its name says before the last point.
    owners = [name.rpartition(".")[0] if per == "layer" else name for name in names]
    # Columns of parameter k are bounds[k] to bounds[k + 1].
    bounds = list(accumulate((flat_size(p) for p in gradients.parameters), initial=0))
    # A module's parameters need not lie side by side in the model's order, so that a group is a list of positions.
    groups = {owner: [k for k, other in enumerate(owners) if other == owner] for owner in dict.fromkeys(owners)}
    parts = [torch.cat([matrix[:, bounds[k] : bounds[k + 1]] for k in members], dim=1) for members in groups.values()]
    if offers(method, HasMemory) and method.has_memory:
        raise InvalidInputError(
            f"`per` must be 'model' for a method that remembers something from step to step, got {per!r}: each group "
            "of parameters would go on from what another one left. Use per='model', or a setting without memory."
        )
    weights: Tensor | None = None
    if offers(method, Weighting):
        # All groups' Gramians in one copy from the device.
        gramians = torch.stack([gramian_of(part) for part in parts]).cpu()
        for owner, part, gramian in zip(groups, parts, gramians, strict=True):
            checks.refuse_lost(part, gramian, name=f"jacobian of {owner!r}", whose=gradients.tasks)
        weights = torch.stack([gramian_weights(method, gramian, gradients.losses) for gramian in gramians])
        updates = [weighted_sum(part, row, known) for part, row, known in zip(parts, weights, gramians, strict=True)]
    else:
        updates = [aggregate(method, part) for part in parts]
    vector = torch.empty_like(matrix[0])
    for members, update in zip(groups.values(), updates, strict=True):
        pieces = update.split([bounds[k + 1] - bounds[k] for k in members])
        for k, piece in zip(members, pieces, strict=True):
            vector[bounds[k] : bounds[k + 1]] = piece
    return vector, weights


def aggregate(aggregator: Callable[[Tensor], Tensor], jacobian: Tensor) -> Tensor:
    """The update ``[d]`` of an aggregator, of the right shape and in memory of its own."""
    vector = aggregator(jacobian)
    _check_result(vector, jacobian.shape[1:], "`method` must return an update")
    return own(vector)


def _check_result(found: Any, shape: tuple[int, ...], must: str) -> None:
    """Make sure that a method has returned real numbers of a shape."""
    if not isinstance(found, Tensor) or found.shape != shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInputError(f"{must} of shape {tuple(shape)}, got {got}.")
    if found.layout != torch.strided or found.is_meta or found.is_complex():
        kind = (
            "complex" if found.is_complex() else "meta" if found.is_meta else str(found.layout).removeprefix("torch.")
        )
        raise InvalidInputError(f"{must} of real numbers, dense, got a {kind} tensor. Return plain values.")


def _takes_losses(weighting: object) -> bool:
    return offers(weighting, TakesLosses) and weighting.takes_losses


def gramian_weights(weighting: Any, gramian: Tensor, losses: Tensor) -> Tensor:
    """The weights that a weighting gives, with the losses handed on if it takes them."""
    weights: Any
    if _takes_losses(weighting):
        weights = weighting.weights(gramian, losses=losses.detach().to(gramian))
    else:
        weights = weighting.weights(gramian)
    return _one_per_task(weights, len(gramian), "weights")


def _one_per_task(weights: Any, n_tasks: int, name: str) -> Tensor:
    _check_result(weights, (n_tasks,), f"`method.{name}` must return weights")
    found: Tensor = weights.detach()
    return found


def loss_weights(weighting: Any, losses: Tensor, present: Sequence[int]) -> Tensor:
    r"""The weight of each loss in a loss weighting's scalar, ``[m]``: :math:`\lambda_i = \partial S / \partial L_i`.

    The gradient of the scalar is then :math:`\sum_i \lambda_i \nabla L_i`, so that nothing else of its graph is needed.
    """
    leaf = losses.detach()
    if leaf.dtype in (torch.float16, torch.bfloat16):
        leaf = leaf.float()  # eight bits are too few for the weights of losses that are near to each other
    mask: Tensor | None = None
    if len(present) < len(leaf):
        if not (offers(weighting, TakesAbsentTasks) and weighting.takes_present):
            raise InvalidInputError(
                f"every task must be present for {type(weighting).__name__}, which cannot leave one out, got tasks "
                f"at {list(present)} of {len(leaf)}. "
                "Give every task some data in each batch."
            )
        mask = torch.zeros_like(leaf, dtype=torch.bool)
        mask[list(present)] = True
        # NaN marks an absent task, and NaN times a weight of 0 is NaN.
        leaf = torch.where(mask, leaf, torch.zeros_like(leaf))
    # A leaf of its own: m numbers are differentiated, not the network.
    leaf = leaf.detach().requires_grad_()
    # A caller may have switched gradients off around the step; these m numbers are the method's own affair.
    with torch.enable_grad():
        # What the method gets is none: tools that hang a hook on whatever enters a module, as torch's FlopCounterMode,
        # cannot follow autograd.grad() to a leaf.
        seen = leaf.clone()
        scalar = weighting(seen) if mask is None else weighting(seen, present=mask)
        if not isinstance(scalar, Tensor) or scalar.numel() != 1:
            found = tuple(scalar.shape) if isinstance(scalar, Tensor) else type(scalar).__name__
            raise InvalidInputError(
                f"{type(weighting).__name__} must return one scalar for losses of shape {tuple(leaf.shape)}, got "
                f"{found}."
            )
        weights: Tensor | None = None
        if scalar.requires_grad and not scalar.is_complex():
            (weights,) = torch.autograd.grad(scalar, leaf, allow_unused=True)
        if weights is None:
            got = f"{scalar.dtype}" if scalar.is_complex() else "one that none of them reaches"
            raise InvalidInputError(
                f"{type(weighting).__name__} must return a real scalar that is computed from the losses, got {got}. "
                "Its derivative by each loss is that task's weight: look for .detach() or .item() on the way."
            )
    return weights if mask is None else torch.where(mask, weights, torch.zeros_like(weights))
