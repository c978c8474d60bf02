r"""Historical trajectory reuse (HTR): how much of an optimiser's memory survives a teleport.

With :math:`\sigma = \cos(\Delta\theta, g')`, :math:`g'` the gradient before the teleport, the next step of the
shared parameters uses

.. math::
    v_t = \sigma\beta_1 v_{t-1} + (1 - \sigma\beta_1) g_t, \qquad s_t = \sigma\beta_2 s_{t-1} + (1 - \sigma\beta_2)
    g_t^2,

and every later step uses the usual :math:`\beta_1, \beta_2` again.

**Bias correction.** A moving average :math:`v_t = b_t v_{t-1} + (1 - b_t) g_t` from zero has weights of sum
:math:`c_t = 1 - \prod_{k \le t} b_k`, so :math:`v_t / c_t` is the unbiased estimate. One changed factor :math:`b_t =
\sigma\beta` gives :math:`c_t = 1 - \sigma\beta^t`, now *and in every later step*, while an optimiser divides by
:math:`1 - \beta^t` (or, if its ``betas`` were overwritten for the step, by :math:`1 - (\sigma\beta)^t`). Here the
stored average is therefore equation 13's times :math:`a = (1 - \beta^t) / (1 - \sigma\beta^t)`: the optimiser's own
division then yields exactly :math:`v_t / (1 - \sigma\beta^t)`, and since the weights again sum to :math:`1 -
\beta^t`, every later step is unbiased too. For large t, a is 1.

That stored average is reached with the optimiser's own ``betas``: just before the step, when :math:`g_t` is known,
its memory is set to the affine image of itself and :math:`g_t` from which the ordinary update arrives there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_core import InvalidInputError, checks
from mtl_core.extension import inner_optimizer
from mtl_teleport.fresh_start import effective_gradient, start_anew
from mtl_teleport.inner_product import inner_product
from mtl_teleport.transport import carry

__all__ = ["HTR", "Reuse", "modulated", "trajectory_cosine"]

HTR = Literal["paper", "released", "betas", "descent", "reset", "keep", "transported"]
"""What becomes of the optimiser's memory of the shared parameters; see ``modulated``."""

_AVERAGED = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.Muon)
_ACCUMULATED = (torch.optim.SGD, torch.optim.RMSprop)
_TINY = 1e-12  # stands in for a momentum of zero, for which some optimisers skip their buffer instead of clearing it


def trajectory_cosine(
    delta: Mapping[str, Tensor], gradient: Mapping[str, Tensor], *, start: Mapping[str, Tensor] | None = None
) -> float:
    r"""The cosine :math:`\sigma = \cos(\Delta\theta, g')` over the shared parameters, in float64.

    Args:
        delta: the displacement by parameter name; a missing parameter did not move.
        gradient: the gradient before the teleport by parameter name, for all shared parameters.
        start: if given, ``delta`` holds where the parameters went, and this where they came from.

    Returns:
        A number in [-1, 1]; 1 if nothing moved (the memory is as good as before), else 0 if the gradient is zero.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equation 12.

    Example:
        >>> import torch
        >>> trajectory_cosine({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([1.0, 0.0])})
        0.6
    """
    moved, inner = 0.0, 0.0
    for name, value in delta.items():
        less = None if start is None else start[name]
        moved += float(inner_product(value, less=less))
        inner += float(inner_product(value, gradient[name], less=less))
    length = sum(float(inner_product(g)) for g in gradient.values())
    if moved == 0.0:
        return 1.0
    if length == 0.0:
        return 0.0
    return float(max(-1.0, min(1.0, inner / math.sqrt(moved) / math.sqrt(length))))


@dataclass
class Reuse:
    """What came of a ``modulated`` block.

    Attributes:
        is_done: whether the optimiser has made an update, or there was nothing to do. An update that a gradient scaler
            leaves out is none: the memory is as it was, and still to be treated.
    """

    is_done: bool = False


@contextmanager
def modulated(
    optimizer: Optimizer,
    sigma: float,
    parameters: Iterable[Tensor],
    *,
    mode: HTR = "paper",
    changes: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Iterator[Reuse]:
    r"""Let the first ``optimizer.step()`` inside the block reuse its memory of ``parameters`` in part.

    ============ ==============================================================================================
    ``paper``    equation 13 with :math:`\sigma`
    ``released`` :math:`\sigma > 0`: equation 13; :math:`\sigma \le 0`: as ``reset``
    ``descent``  equation 13 with :math:`-\sigma = \cos(\Delta\theta, -g')`, the cosine with the direction of descent
    ``betas``    the released code to the letter: :math:`\sigma > 0`: ``betas`` and ``momentum`` of every group that
                 holds one of ``parameters`` times :math:`\sigma`, bias correction included; :math:`\sigma \le 0`: the
                 whole optimiser forgets everything
    ``reset``    forget everything, step counters included
    ``keep``     change nothing
    ``transported`` add what the move did to the gradient, whatever :math:`\sigma` is; see ``mtl_teleport.transport``
    ============ ==============================================================================================

    But for ``betas`` only ``parameters`` are concerned, whatever group they are in. Adam, AdamW, NAdam, RAdam, Adamax,
    SGD, RMSprop and Muon follow the equations to rounding, weight decay, ``maximize`` and clipping included; momentum
    that is no average (SGD, RMSprop) is :math:`\sigma\beta v + g`. For any other optimiser with ``betas`` or
    ``momentum`` in its groups these are scaled for that one step, in a group of their own. An optimiser with neither is
    left alone.

    Args:
        optimizer: the optimiser of the step, or a wrapper that holds it: the one within is acted on.
        sigma: :math:`\cos(\Delta\theta, g')`, in [-1, 1].
        parameters: the shared parameters.
        mode: one of the forms above.
        changes: for ``transported``, the combined gradient of each parameter before the move and after it.

    Yields:
        what comes of it: whether an update was made.

    Raises:
        InvalidParameterError: ``sigma`` or ``mode`` is out of range.
        InvalidInputError: ``optimizer`` is none and holds none, or ``changes`` are missing.

    Note:
        If the block or the step raises, the optimiser's memory is put back as it was. For :math:`\sigma < 0` a
        second moment by equation 13 could become negative, so it uses :math:`\max(\sigma, 0)`; the first moment
        keeps the sign. That second moment is then of a single gradient and no bias correction can tell, so that an
        entry whose gradient happened to be small takes steps several times too long until the average has recovered
        (about :math:`1/(1-\beta_2)` steps): ``released`` and ``reset`` are safe from this, ``paper`` and ``descent``
        are not. ``amsgrad`` keeps its maximum. The released code overwrites the ``betas`` of whole groups,
        which corrupts the bias correction, and skips the step they were meant for; ``released`` here is its rule for
        :math:`\sigma`, done right.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equation 13.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.5)
        >>> for sigma in (1.0, 0.0):
        ...     p.grad = torch.ones(1)
        ...     with modulated(optimizer, sigma, [p]):
        ...         optimizer.step()
        >>> p.data, optimizer.state[p]["momentum_buffer"]
        (tensor([-2.]), tensor([1.]))
    """
    checks.one_of("mode", mode, get_args(HTR))
    sigma = checks.in_interval("sigma", sigma, -1.0, 1.0)
    inner = inner_optimizer(optimizer)
    moved = list(parameters)
    wanted = {id(p) for p in moved}
    carried: dict[int, tuple[Tensor, Tensor]] = {}
    if mode == "transported":
        if changes is None or len(changes) != len(moved):
            found = "none" if changes is None else str(len(changes))
            raise InvalidInputError(
                f"`changes` must hold the gradients of each of {len(moved)} parameters for mode='transported', got "
                f"{found}."
            )
        carried = {id(p): change for p, change in zip(moved, changes, strict=True)}
    if mode == "descent":
        sigma = -sigma
    forget = mode == "reset" or (mode in ("released", "betas") and sigma <= 0)
    reuse = Reuse()
    if mode == "keep" or (sigma == 1.0 and not forget and not carried):
        reuse.is_done = True
        yield reuse
        return
    memory: list[Callable[[], object]] = []
    groups: list[Callable[[], object]] = []

    def before_step(*_: object) -> None:
        # Sigma is for the first update after the move; every later one has the usual factors.
        if reuse.is_done or _is_left_out(inner):
            return
        reuse.is_done = True
        for group in list(inner.param_groups):
            inside = [p for p in group["params"] if id(p) in wanted]
            if mode == "betas" and (inside or forget):
                # The released code overwrites the betas of a whole group, and resets all of the optimiser.
                inside = group["params"]
            if inside and forget:
                start_anew(inner, group, inside, memory)
            elif carried:
                for parameter in inside:
                    carry(inner, group, parameter, carried[id(parameter)], memory)
            elif inside and mode != "betas" and isinstance(inner, (*_AVERAGED, *_ACCUMULATED)):
                for parameter in inside:
                    _reuse(inner, group, parameter, sigma, memory)
            elif inside:
                _scale_factors(inner, group, inside, sigma, groups)

    def after_step(*_: object) -> None:
        memory.clear()  # the step is done: from here on nothing is to be put back
        _undo(groups)

    # By a hook, at the last moment: g_t is known only when gradients are unscaled and clipped.
    handle = inner.register_step_pre_hook(before_step)
    after = inner.register_step_post_hook(after_step)
    try:
        yield reuse
    except BaseException:
        _undo(memory)
        raise
    finally:
        handle.remove()
        after.remove()
        _undo(groups)


def _is_left_out(optimizer: Optimizer) -> bool:
    """Whether a step that begins will change nothing: a gradient scaler calls a fused optimiser's all the same."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.any())


def _undo(actions: list[Callable[[], object]]) -> None:
    while actions:
        actions.pop()()


def _reuse(
    optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, sigma: float, undo: list[Callable[[], object]]
) -> None:
    """Set the memory of one parameter to that from which the ordinary step arrives at equation 13."""
    state = optimizer.state.get(parameter)
    if not state or parameter.grad is None:
        return
    memory = [state.get(key) for key in ("exp_avg", "exp_avg_sq", "exp_inf", "momentum_buffer")]
    # Kept until the step is done; one parameter's memory at a time is copied before it is changed.
    undo.extend(partial(tensor.copy_, tensor.clone()) for tensor in memory if isinstance(tensor, Tensor))
    positive = max(sigma, 0.0)  # a second moment is an average of squares, which no negative weight keeps positive
    if isinstance(optimizer, _ACCUMULATED):
        if isinstance(state.get("momentum_buffer"), Tensor):
            # No average: what is kept of it is σ of it, and the gradient comes on top whole.
            state["momentum_buffer"].mul_(sigma)
        return
    gradient = effective_gradient(group, parameter)
    if isinstance(optimizer, torch.optim.Muon):
        # An average without bias correction: a = 1.
        state["momentum_buffer"].mul_(sigma).add_(gradient, alpha=1.0 - sigma)
        return
    # Of the step to come, which the optimiser counts before it corrects its bias.
    step = float(state["step"]) + 1.0
    beta1, beta2 = (float(beta) for beta in group["betas"])
    # Adam's second moment of a complex entry is of its two parts, so that both averages are changed in parts.
    average = torch.view_as_real(state["exp_avg"]) if parameter.is_complex() else state["exp_avg"]
    keep, add = _affine(sigma, beta1, step)
    average.mul_(keep).add_(gradient, alpha=add)
    if "exp_inf" in state:
        state["exp_inf"].mul_(positive)
        return
    squares = torch.view_as_real(state["exp_avg_sq"]) if parameter.is_complex() else state["exp_avg_sq"]
    keep, add = _affine(positive, beta2, step)
    squares.mul_(keep).addcmul_(gradient, gradient, value=add)


def _affine(sigma: float, beta: float, step: float) -> tuple[float, float]:
    r"""The p, q for which :math:`\beta (p v + q g) + (1-\beta) g = a (\sigma\beta v + (1-\sigma\beta) g)`."""
    if beta == 0.0:
        return 1.0, 0.0
    a = (1.0 - beta**step) / (1.0 - sigma * beta**step)
    return a * sigma, (a * (1.0 - sigma * beta) - (1.0 - beta)) / beta


def _scale_factors(
    optimizer: Optimizer,
    group: dict[str, Any],
    inside: list[Tensor],
    sigma: float,
    undo: list[Callable[[], object]],
) -> None:
    """Scale ``betas`` or ``momentum`` for some parameters of a group, if need be in a group of their own."""
    scaled: dict[str, Any] = {}
    if "betas" in group:
        first, *others = group["betas"]
        scaled["betas"] = (sigma * first, *(max(sigma, 0.0) * beta for beta in others))
    if group.get("momentum"):
        scaled["momentum"] = (sigma or _TINY) * group["momentum"]
    if not scaled:
        return
    chosen = {id(p) for p in inside}
    rest = [p for p in group["params"] if id(p) not in chosen]
    if not rest:
        for key, value in scaled.items():
            undo.append(partial(group.__setitem__, key, group[key]))
            group[key] = value
        return
    own = {**group, **scaled, "params": inside}
    everything = group["params"]

    def rejoin() -> None:
        group["params"] = everything
        optimizer.param_groups[:] = [other for other in optimizer.param_groups if other is not own]

    undo.append(rejoin)
    group["params"] = rest
    optimizer.param_groups.append(own)
