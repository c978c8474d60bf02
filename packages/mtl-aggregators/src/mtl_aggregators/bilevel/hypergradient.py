"""The exact first-order hypergradient of a step of gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, optim

from mtl_aggregators.bilevel.objectives import Outcome, Upper
from mtl_core import InvalidInputError, MicroBatches, Problem, StepOptions, TaskLosses
from mtl_core.extension import (
    RandomState,
    check_finite_losses,
    placed,
    plain_kernels,
    preserved,
    refuse_once_differentiable,
    twice_or_told,
)

__all__ = ["exact_hypergradient", "refuse_inexact"]

_SETTING = "hypergradient='exact'"
_WAY_OUT = "Use hypergradient='zeroth_order', which differentiates once."


def exact_hypergradient(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    weights: Tensor,
    upper: Upper,
    *,
    options: StepOptions | None = None,
) -> tuple[Tensor, Outcome]:
    r"""The derivative of an upper objective by the task weights, through one plain step of gradient descent.

    .. math:: \nabla_\lambda R(\lambda, \theta), \qquad A(\lambda, \theta) = \theta - \alpha \nabla_\theta \sum_i
        \lambda_i f_i(\theta)

    with the learning rate :math:`\alpha` that the optimiser has for each parameter; momentum and the like are left
    out. It costs two forward passes, one backward pass and one backward pass through it, whatever ``m`` is.

    Args:
        problem: the problem; its parameters, buffers and torch's random state are left as they are.
        batch: the batch on which both losses are evaluated, with the same random numbers.
        optimizer: says the learning rates.
        weights: :math:`\lambda` ``[m]``.
        upper: the objective :math:`R`.
        options: ``heads``, ``max_norm`` and ``clip`` are part of the step.

    Returns:
        the hypergradient ``[m]``, float64, and the outcome.

    Raises:
        InvalidInputError: the batch comes in parts, the options ask for a process group or clip by a callable, a
            learning rate is not known, or an operation of the model cannot be differentiated twice.
    """
    options = StepOptions() if options is None else options
    refuse_inexact(batch, options)
    named = {name: p for name, p in problem.model.named_parameters() if p.requires_grad}
    rates = {id(p): group.get("lr") for group in optimizer.param_groups for p in group["params"]}
    shared = {id(p) for p in problem.shared}
    # The one leaf that all is differentiated by in the end. In float64, as the weights are.
    leaf = weights.detach().to(torch.float64).clone().requires_grad_()
    with (
        preserved(problem.model),
        torch.enable_grad(),
        plain_kernels(problem.model),
        twice_or_told(_SETTING, _WAY_OUT),
    ):
        random = RandomState(problem.model)
        losses = problem.losses(batch)
        before = _full(losses)
        check_finite_losses(before.detach(), problem.tasks, losses.index)  # a NaN would pass for an absent task
        inputs = tuple(named.values())
        lower = (before.nan_to_num() * leaf.to(before)).sum()
        refuse_once_differentiable(lower, _SETTING, _WAY_OUT)
        # With their graph: the step moves with the weights through these gradients.
        found = torch.autograd.grad(lower, inputs, create_graph=True, allow_unused=True)
        gradients = dict(zip(named, found, strict=True))
        if options.heads == "unit":
            heads = {name: p for name, p in named.items() if id(p) not in shared}
            if heads:
                total = losses.values.sum()
                # Constants as far as the weights are concerned, hence no graph of their own.
                own = torch.autograd.grad(total, tuple(heads.values()), retain_graph=True, allow_unused=True)
                gradients.update(zip(heads, own, strict=True))
        clipped = shared if options.clip == "shared" else {id(p) for p in named.values()}
        factor = _clip([g for name, g in gradients.items() if g is not None and id(named[name]) in clipped], options)
        moved: dict[str, Tensor] = {}
        for name, p in named.items():
            gradient = gradients[name]
            if gradient is None or id(p) not in rates:
                continue
            rate = rates[id(p)]
            if rate is None:
                raise InvalidInputError(f"`optimizer` must have a learning rate for {name!r}, got none.")
            step = gradient * factor if id(p) in clipped else gradient
            moved[name] = p.detach() - rate * step
        # The second evaluation is to draw the same dropout masks as the first.
        random.restore()
        problem.check_functional()
        # The heads' own step does not depend on the weights where heads='unit'.
        points = {name: value.detach().requires_grad_(value.requires_grad) for name, value in moved.items()}
        weighed = [name for name, value in moved.items() if value.requires_grad]
        # Two backward passes, each with the parameters of its own graph in place: a model that recomputes activations
        # reads them again, and in one pass would read the same ones for both graphs.
        with placed(problem.model, points):
            after = _full(problem.losses(batch))
            known = before.detach().to("cpu", torch.float64)
            outcome = Outcome(problem.tasks, known, after.to("cpu", torch.float64), leaf.detach())
            if not weighed:
                return torch.zeros_like(leaf), outcome
            slopes = torch.autograd.grad(upper(outcome), [points[name] for name in weighed], materialize_grads=True)
        (hyper,) = torch.autograd.grad([moved[name] for name in weighed], leaf, slopes, materialize_grads=True)
    return hyper, Outcome(outcome.tasks, outcome.before, outcome.after.detach(), outcome.weights)


def refuse_inexact(batch: Any, options: StepOptions) -> None:
    """Refuse what an exact hypergradient cannot be taken over.

    Raises:
        InvalidInputError: the batch comes in parts, or the options ask for a process group or clip by a callable.
    """
    if options.group is not None or isinstance(batch, MicroBatches):
        raise InvalidInputError(
            "`hypergradient='exact'` needs one batch on one process, got "
            f"{'a process group' if options.group is not None else 'micro-batches'}. Use 'zeroth_order'."
        )
    if callable(options.clip):
        raise InvalidInputError(
            "`hypergradient='exact'` needs a clipping that can be differentiated, max_norm with clip='shared' or "
            f"'all', got the callable {options.clip!r}. Use 'zeroth_order'."
        )


def _full(losses: TaskLosses) -> Tensor:
    return losses.full(float("nan"))


def _clip(gradients: list[Tensor], options: StepOptions) -> Tensor | float:
    """The factor by which ``clip_grad_norm_`` shortens, differentiable."""
    if options.max_norm is None:
        return 1.0
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    factor: Tensor = (options.max_norm / (norm + 1e-6)).clamp(max=1.0)
    return factor
