"""What a step must know of its optimiser before it relies on it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from torch import Tensor, optim

from mtl_core import checks
from mtl_core.errors import InvalidInputError
from mtl_core.problem import Problem

__all__ = [
    "clear_gradients",
    "inner_optimizer",
    "parameters_of",
    "refuse_closure",
    "refuse_differentiable",
    "refuse_other",
    "refuse_unsynchronised",
    "uncovered",
]


def inner_optimizer(optimizer: Any, *, strict: bool = False) -> optim.Optimizer:
    """The optimiser that makes the update: the one given, or the one within whatever wraps it.

    What looks into an optimiser's state, copies it, or hooks into its step must reach the one that owns them. A wrapper
    is an object, itself an ``Optimizer`` or not, that holds an optimiser in an attribute and hands its step on, such as
    Accelerate's; hooks on it may never be called, its ``state`` may be a copy, and a copy of it goes on stepping the
    original.

    Args:
        optimizer: an optimiser, wrapped any number of times, or not at all.
        strict: refuse wrappers that are not known to hand on and do nothing else, for what takes the inner one's step
            for the whole.

    Raises:
        InvalidInputError: it is no optimiser and holds none, or holds several of which any might make the update, or
            is a wrapper that ``strict`` refuses.
    """
    found = _unwrapped(optimizer)
    seen: list[Any] = []
    # Wrappers may refer to one another in a circle.
    while all(found is not other for other in seen):
        seen.append(found)
        within = _held(found)
        if len(within) > 1:
            raise InvalidInputError(
                f"`optimizer` must hold one optimiser at most, got {type(found).__name__} with {len(within)}. Give the "
                "one that updates the shared parameters."
            )
        if not within:
            break
        name, inside = next(iter(within.items()))
        if strict:
            raise InvalidInputError(
                f"`optimizer` must be the one that updates the parameters, got {type(found).__name__}, which holds "
                f"another in its attribute {name!r} and may do more than that one's step. Give optimizer.{name}."
            )
        found = _unwrapped(inside)
    if not isinstance(found, optim.Optimizer):
        raise InvalidInputError(
            f"`optimizer` must be a torch.optim.Optimizer, or hold one in an attribute, got {type(optimizer).__name__}."
            " Give the optimiser itself."
        )
    return found


def refuse_other(optimizer: Any) -> None:
    """Refuse what has no parameters and no step.

    Raises:
        InvalidInputError: it is no optimiser, whether of PyTorch's class or of its form.
    """
    checks.instance("optimizer", optimizer)
    if isinstance(optimizer, optim.Optimizer):
        return
    if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "step")):
        raise InvalidInputError(
            f"`optimizer` must be a torch.optim.Optimizer or have its param_groups and step(), got "
            f"{type(optimizer).__name__}. Give the optimiser itself."
        )
    if not callable(optimizer.step) or not all(isinstance(g, dict) and "params" in g for g in optimizer.param_groups):
        raise InvalidInputError(
            "`optimizer` must have a method step() and in param_groups dictionaries with 'params', as a "
            f"torch.optim.Optimizer has, got {type(optimizer).__name__} with others. Give the optimiser itself."
        )


def _held(found: Any) -> dict[str, Any]:
    """The optimisers among an object's attributes, each once, by name."""
    attributes = vars(found) if hasattr(found, "__dict__") else {}
    inside = {id(v): (name, v) for name, v in attributes.items() if isinstance(v, optim.Optimizer) and v is not found}
    return dict(inside.values())


def _unwrapped(optimizer: Any) -> Any:
    """What is inside the known wrappers."""
    transparent = _transparent_wrappers()
    found = optimizer
    while isinstance(found, transparent):
        # From the instance's own attributes, past whatever a wrapper makes of names that it does not have itself.
        found = vars(found).get("optimizer") or vars(found)["_optimizer"]
    return found


def _transparent_wrappers() -> tuple[type, ...]:
    """The known wrappers whose step is that of the optimiser within, where their libraries are loaded."""
    found: list[type] = []
    for module, name in (
        ("accelerate.optimizer", "AcceleratedOptimizer"),
        ("lightning.pytorch.core.optimizer", "LightningOptimizer"),
        ("pytorch_lightning.core.optimizer", "LightningOptimizer"),
    ):
        loaded = sys.modules.get(module)
        if loaded is not None:
            found.append(vars(loaded)[name])
    return tuple(found)


def refuse_closure(optimizer: Any) -> None:
    """Make sure that an optimiser takes its step from gradients that are there.

    Raises:
        InvalidInputError: it must evaluate the loss itself, as ``LBFGS`` does.
    """
    found = _unwrapped(optimizer)
    # Of the class, so that the cache holds functions: a bound method would keep its optimiser alive.
    if hasattr(type(found), "step") and _needs_closure(type(found).step):
        raise InvalidInputError(
            f"`optimizer` must make its step from gradients, got {type(found).__name__}, whose step() evaluates "
            "the loss itself by a closure. Use one without, such as Adam or SGD."
        )


def refuse_differentiable(optimizer: Any) -> None:
    """Make sure that an optimiser's step is not to be differentiated itself, which parameters are no tensors for.

    Raises:
        InvalidInputError: it is: ``differentiable=True``.
    """
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise InvalidInputError(
            f"`optimizer` must update the parameters in place, got {type(optimizer).__name__} with "
            "differentiable=True, which torch refuses for trainable parameters. Leave it out."
        )


def clear_gradients(optimizer: Any) -> None:
    """Set ``.grad`` of all that an optimiser holds to ``None``, by its own ``zero_grad`` where it has one."""
    clear: Any = None
    with suppress(AttributeError):
        clear = optimizer.zero_grad
    if clear is not None:
        # Wrappers do more in theirs. An error that is no matter of the argument comes again.
        try:
            clear(set_to_none=True)
        except TypeError:
            clear()
    # One without the argument sets to zero, which weight decay takes for a gradient.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


@cache
def _needs_closure(step: Callable[..., Any]) -> bool:
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def refuse_unsynchronised(optimizer: Any) -> None:
    """Make sure that the optimiser will really clear its gradients and step.

    Within ``accelerator.accumulate`` Accelerate turns both into nothing but for the last micro-batch. A step that
    writes ``.grad`` anew would then drop the gradients of every micro-batch but that one.

    Raises:
        InvalidInputError: it will not.
    """
    # Where nobody has imported Accelerate, nothing is wrapped by it: importing it here would take seconds.
    loaded = sys.modules.get("accelerate.optimizer")
    if loaded is None or not isinstance(optimizer, vars(loaded)["AcceleratedOptimizer"]):
        return
    if not optimizer.gradient_state.sync_gradients:
        raise InvalidInputError(
            "`optimizer` must step whenever it is told to, got one within accelerator.accumulate(), which leaves its "
            "steps out until the last micro-batch: the gradients of the others would be dropped. Give the "
            "micro-batches together, step(problem, MicroBatches(parts), ...), or write .grad yourself by "
            "TaskGradients.assign(..., accumulate=True)."
        )


def uncovered(problem: Problem, optimizer: Any) -> tuple[str, ...]:
    """Names of the trainable parameters of a problem that an optimiser does not hold.

    Raises:
        InvalidInputError: it holds none of them.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = problem.named_trainable
    missing = tuple([name for name, p in trainable.items() if id(p) not in held])
    if missing and len(missing) == len(trainable):
        raise InvalidInputError(
            f"`optimizer` must hold parameters of the problem, got {len(held)} others and none of "
            f"{', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}. Make it from problem.model.parameters(), "
            "after the model was moved or sharded."
        )
    return missing


def parameters_of(problem: Problem, optimizer: Any) -> Sequence[Tensor]:
    """Every tensor whose ``.grad`` a step may touch: the problem's own and the optimiser's others, each once."""
    found: dict[int, Tensor] = {id(p): p for p in problem.named_trainable.values()}
    for group in optimizer.param_groups:
        found.update([(id(p), p) for p in group["params"]])
    return tuple(found.values())
