"""One training step of any method: forward, gradients, update."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, optim

from mtl_core.backward import check_attached, check_finite_losses
from mtl_core.errors import InvalidInputError, InvalidJacobianError, InvalidParameterError
from mtl_core.gradients import TaskGradients, differentiate
from mtl_core.problem import Problem, TaskLosses
from mtl_core.protocols import Aggregator, Event, LossWeighting, Method, Weighting
from mtl_core.report import SkippedUpdate, StepOptions, StepReport

__all__ = ["AnyMethod", "collect_problem", "finish", "is_loss_weighting", "step"]

AnyMethod = Method | Weighting | LossWeighting | Aggregator
"""What ``step`` accepts as a method."""


def step(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    *,
    heads: Literal["unit", "weighted"] = "unit",
    max_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> StepReport:
    """One training step: evaluate the losses, differentiate, combine by ``method``, clip, update.

    The optimiser's gradients are cleared first. The cheapest route that the method allows is taken: a loss weighting
    costs one backward pass, everything else one per task through the shared part.

    Args:
        problem: the model and its losses.
        batch: what the problem's losses take.
        optimizer: any ``torch.optim`` optimiser over the problem's parameters.
        method: a ``Method``, ``Weighting``, ``LossWeighting`` or ``Aggregator``, or any callable from a Jacobian
            ``[m, d]`` to an update ``[d]``, such as the aggregators of other libraries.
        heads: ``"unit"``: each head follows its own loss; ``"weighted"``: its loss times the method's weight.
        max_norm: clip the combined gradient of the shared parameters to this norm.
        scaler: a gradient scaler, for mixed precision.

    Returns:
        losses, weights and events of the step, as plain detached tensors.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; nothing was updated. With a scaler too: an overflow of the
            gradients is then skipped, but a loss that is itself not finite is an error.
        DetachedLossError: a loss does not depend on the shared parameters.
        InvalidInputError: the method does not fit one of the four protocols, or returns the wrong shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 2, bias=False)
        >>> problem = Problem(model, lambda model, x: model(x).square().mean(0), shared=model, tasks=("a", "b"))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> report = step(problem, torch.eye(2), optimizer, lambda jacobian: jacobian.mean(0))
        >>> report.losses.shape
        torch.Size([2])
    """
    options = StepOptions(heads=heads, max_norm=max_norm, scaler=scaler)
    own = getattr(method, "step", None)
    if callable(own):
        return _delegate(own, problem, batch, optimizer, options)
    if not callable(method) and not callable(getattr(method, "weights", None)):
        raise InvalidInputError(
            f"`method` must have step(), weights() or be callable on a Jacobian [m, d], got {type(method).__name__}. "
            "See mtl_core.protocols."
        )
    optimizer.zero_grad(set_to_none=True)
    losses = problem.losses(batch)
    if is_loss_weighting(method):
        return _loss_step(problem, batch, optimizer, method, losses, options)
    gradients = collect_problem(problem, losses, options=options)
    return finish(problem, batch, optimizer, method, gradients, options=options)


def is_loss_weighting(method: object) -> bool:
    """Whether a method works on losses alone."""
    return getattr(method, "needs", None) == "losses" and not callable(getattr(method, "step", None))


def collect_problem(
    problem: Problem, losses: TaskLosses, *, options: StepOptions | None = None, retain_graph: bool = False
) -> TaskGradients:
    """The first half of a gradient-based step: the task gradients of evaluated losses.

    Args:
        problem: the problem.
        losses: what ``problem.losses(batch)`` returned.
        options: the step's options; its scaler, if any, is applied and undone.
        retain_graph: keep the losses' graph for another backward pass.

    Returns:
        the gradients, with those of the heads kept inside for ``finish``.
    """
    scaler = None if options is None else options.scaler
    outputs = losses.outputs
    if scaler is not None:
        # A half-precision loss would overflow by the scale itself.
        single = outputs.float() if isinstance(outputs, Tensor) else tuple(out.float() for out in outputs)
        outputs = scaler.scale(single)  # type: ignore[assignment]
    gradients = differentiate(
        outputs,
        problem.tasks,
        losses.index,
        problem.shared,
        features=losses.features,
        heads=problem.heads,
        chunk_size=None,
        group=None,
        keep="jacobian",
        retain_graph=retain_graph,
    )
    if scaler is not None:
        gradients.rescale(1.0 / scaler.scale(torch.ones((), device=gradients.matrix.device)))
    return gradients


def finish(
    problem: Problem,
    batch: Any,
    optimizer: optim.Optimizer,
    method: AnyMethod | Callable[[Tensor], Tensor],
    gradients: TaskGradients,
    *,
    options: StepOptions | None = None,
) -> StepReport:
    """The second half of a gradient-based step: combine, write, clip, update.

    Args:
        problem: the problem.
        batch: the batch, for methods that look at the losses again after the update.
        optimizer: the optimiser, its gradients cleared.
        method: a weighting, loss weighting, aggregator or callable (a ``Method`` owns its step and has no second half).
        gradients: from ``collect_problem``.
        options: the step's options.

    Returns:
        the step's report.
    """
    options = StepOptions() if options is None else options
    host: Tensor | None = None
    weights: Tensor | None = None
    try:
        host = gradients.host_gramian
    except InvalidJacobianError:
        if options.scaler is None or not options.scaler.is_enabled():
            raise
        return _skip(problem, gradients, optimizer, options.scaler)
    if is_loss_weighting(method):
        weights = loss_weights(method, gradients.losses, gradients.present)
        vector = gradients.combine(weights)
    elif callable(getattr(method, "weights", None)):
        weights = gramian_weights(method, host, gradients.losses)
        vector = gradients.combine(weights)
    else:
        if options.heads == "weighted":
            raise InvalidParameterError(
                f"`heads='weighted'` needs a method that gives weights, got {type(method).__name__}, which gives "
                "only an update. Use heads='unit'."
            )
        vector = method(gradients.matrix)  # type: ignore[operator]
        if not isinstance(vector, Tensor) or vector.shape != gradients.matrix.shape[1:]:
            found = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise InvalidInputError(
                f"`method` must return an update of shape {tuple(gradients.matrix.shape[1:])}, got {found}."
            )
    if options.scaler is not None:
        scale = options.scaler.scale(torch.ones((), device=vector.device))
        vector = vector * scale
        gradients.rescale_heads(scale)
    gradients.assign(vector.detach())
    gradients.assign_heads(weights if options.heads == "weighted" else None)
    _update(problem, optimizer, options)
    _look_back(method, problem, batch, gradients.losses)
    return StepReport(gradients.losses, weights, host, problem.tasks, _events(method))


def gramian_weights(weighting: Any, gramian: Tensor, losses: Tensor) -> Tensor:
    """The weights that a weighting gives, with the losses handed on if it takes them."""
    if getattr(weighting, "takes_losses", False):
        weights = weighting.weights(gramian, losses=losses.detach().to(gramian))
    else:
        weights = weighting.weights(gramian)
    if not isinstance(weights, Tensor) or weights.shape != gramian.shape[:1]:
        found = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise InvalidInputError(f"`method.weights` must return shape {tuple(gramian.shape[:1])}, got {found}.")
    return weights.detach()


def loss_weights(weighting: Any, losses: Tensor, present: Sequence[int]) -> Tensor:
    r"""The weight of each loss in a loss weighting's scalar, ``[m]``: :math:`\lambda_i = \partial S / \partial L_i`.

    The gradient of the scalar is then :math:`\sum_i \lambda_i \nabla L_i`, so that nothing else of its graph is needed.
    """
    leaf = losses.detach()
    mask: Tensor | None = None
    if len(present) < len(leaf):
        if not getattr(weighting, "takes_present", False):
            raise InvalidInputError(
                f"every task must be present for {type(weighting).__name__}, which cannot leave one out, got tasks "
                f"at {list(present)} of {len(leaf)}. "
                "Give every task some data in each batch."
            )
        mask = torch.zeros_like(leaf, dtype=torch.bool)
        mask[list(present)] = True
        leaf = torch.where(mask, leaf, torch.zeros_like(leaf))
    leaf = leaf.clone().requires_grad_()
    with torch.enable_grad():
        scalar = weighting(leaf) if mask is None else weighting(leaf, present=mask)
        if not isinstance(scalar, Tensor) or scalar.numel() != 1:
            found = tuple(scalar.shape) if isinstance(scalar, Tensor) else type(scalar).__name__
            raise InvalidInputError(
                f"{type(weighting).__name__} must return one scalar for losses of shape {tuple(leaf.shape)}, got "
                f"{found}."
            )
        (weights,) = torch.autograd.grad(scalar, leaf)
    return weights if mask is None else torch.where(mask, weights, torch.zeros_like(weights))


def _loss_step(
    problem: Problem, batch: Any, optimizer: optim.Optimizer, method: Any, losses: TaskLosses, options: StepOptions
) -> StepReport:
    """A step of a loss weighting: one backward pass through the shared part."""
    if not problem.graph_checked:
        check_attached(losses.outputs, losses.tasks, problem.shared)
        problem.graph_checked = losses.is_complete
    values = losses.values
    full = losses.full(float("nan")).detach()
    weights = loss_weights(method, full, losses.index)
    # One small copy: losses must be finite before anything is written, and unit weights save a pass over the heads.
    host = torch.stack([full, weights.to(full)]).cpu()
    check_finite_losses(host[0], problem.tasks, losses.index)
    own = weights if losses.is_complete else weights[list(losses.index)]
    ones = torch.ones_like(values)
    if options.scaler is not None:
        own, ones = options.scaler.scale(own), options.scaler.scale(ones)
    heads = list(problem.heads)
    if not heads or options.heads == "weighted" or bool((host[1, list(losses.index)] == 1).all()):
        torch.autograd.backward([values], [own], inputs=[*problem.shared, *heads])
    else:
        torch.autograd.backward([values], [ones], inputs=heads, retain_graph=True)
        torch.autograd.backward([values], [own], inputs=list(problem.shared))
    _update(problem, optimizer, options)
    _look_back(method, problem, batch, full)
    return StepReport(full, weights, None, problem.tasks, _events(method))


def _update(problem: Problem, optimizer: optim.Optimizer, options: StepOptions) -> None:
    """Unscale, clip and step, in this order, from gradients that are written."""
    if options.scaler is not None:
        options.scaler.unscale_(optimizer)
    if options.max_norm is not None:
        torch.nn.utils.clip_grad_norm_(problem.shared, options.max_norm)
    if options.scaler is None:
        optimizer.step()
    else:
        options.scaler.step(optimizer)
        options.scaler.update()


def _skip(
    problem: Problem, gradients: TaskGradients, optimizer: optim.Optimizer, scaler: torch.amp.GradScaler
) -> StepReport:
    """Let the scaler see the overflow, so that it leaves the parameters alone and lowers its scale."""
    gradients.assign(torch.full_like(gradients.matrix[0], float("inf")))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return StepReport(gradients.losses, None, None, problem.tasks, (SkippedUpdate(scaler.get_scale()),))


def _look_back(method: object, problem: Problem, batch: Any, before: Tensor) -> None:
    after_step = getattr(method, "after_step", None)
    if not callable(after_step):
        return

    def after() -> Tensor:
        with torch.no_grad():
            return problem.losses(batch).full(float("nan"))

    after_step(before, after)


def _events(method: object) -> tuple[Event, ...]:
    pop: Callable[[], tuple[Event, ...]] | None = getattr(method, "pop_events", None)
    return () if pop is None else tuple(pop())


def _delegate(
    own: Callable[..., StepReport], problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions
) -> StepReport:
    """Hand the step to a ``Method``; options only where it takes them."""
    if options == StepOptions():
        return own(problem, batch, optimizer)
    if "options" not in inspect.signature(own).parameters:
        raise InvalidInputError(
            f"`method.step` must take `options` for heads, max_norm or scaler to have an effect, got {options} for "
            f"{own.__qualname__}. "
            "Add the keyword, or call step() without these settings."
        )
    return own(problem, batch, optimizer, options=options)
