"""What a teleporting method is given, checked where it is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from mtl_core import InvalidInputError, InvalidParameterError, MicroBatches, Problem, TaskGradients, checks
from mtl_core.extension import FixedWeights, check_method
from mtl_teleport.adapters.protocol import Adapter

__all__ = [
    "adapter",
    "probe_batches",
    "teleport_batches",
    "teleported",
    "whole",
    "wrapped_method",
]


def wrapped_method(method: Any) -> Any:
    """Return what is to be wrapped if it is a method of some kind, the plain sum of the losses for ``None``.

    Raises:
        InvalidInputError: it is not.
    """
    return FixedWeights() if method is None else check_method(method)


def adapter(value: Any) -> Adapter:
    """Return an adapter.

    Raises:
        InvalidInputError: it is none.
    """
    checks.instance("adapter", value)
    if not isinstance(value, Adapter):
        raise InvalidInputError(
            f"`adapter` must have attach(problem, batch=, generator=), got {type(value).__name__}. Give "
            "mtl_teleport.LoRA(), or PeftAdapter(config) for a configuration of the PEFT library."
        )
    return value


def probe_batches(value: Any) -> Iterable[Any] | None:
    """Return batches that can be iterated at every teleport anew.

    Raises:
        InvalidInputError: they cannot.
    """
    if value is None:
        return None
    way_out = "Give a list of batches or a loader."
    if isinstance(value, Iterator):
        raise InvalidInputError(
            f"`probe_batches` must be iterable again at every teleport, got {type(value).__name__}, which is used up "
            f"by the first. {way_out}"
        )
    if isinstance(value, Tensor | Mapping | str) or not (isinstance(value, Iterable) or hasattr(value, "__getitem__")):
        raise InvalidInputError(
            f"`probe_batches` must be a collection of batches, got {type(value).__name__}. {way_out}"
        )
    if isinstance(value, Sized) and len(value) == 0:
        raise InvalidInputError(f"`probe_batches` must hold at least one batch, got none. {way_out}")
    batches: Iterable[Any] = value
    return batches


def teleport_batches(value: Any) -> tuple[Any, ...]:
    """Return the probe batches of one teleport by hand.

    Raises:
        InvalidInputError: they are no collection of batches, or there is none, or one is several.
    """
    way_out = "Give a list of batches or a loader."
    if isinstance(value, Tensor | Mapping | str) or not (isinstance(value, Iterable) or hasattr(value, "__getitem__")):
        raise InvalidInputError(f"`batches` must be a collection of batches, got {type(value).__name__}. {way_out}")
    batches = tuple(value)
    if not batches:
        raise InvalidInputError(f"`batches` must hold at least one probe batch, got none. {way_out}")
    if any(isinstance(batch, MicroBatches) for batch in batches):
        raise InvalidInputError("`batches` must hold batches, got MicroBatches among them. Give its parts one by one.")
    return batches


def teleported(problem: Any, gradients: Any) -> None:
    """Make sure that gradients are those of a problem, and that they can be taken anew.

    Raises:
        InvalidInputError: naming what is something else.
    """
    if not torch.is_grad_enabled():
        where = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise InvalidInputError(f"gradients must be enabled for a teleport, got {where}. Teleport outside of it.")
    if not isinstance(problem, Problem):
        raise InvalidInputError(f"`problem` must be an mtl_core.Problem, got {type(problem).__name__}.")
    if not isinstance(gradients, TaskGradients):
        raise InvalidInputError(
            f"`gradients` must be TaskGradients at the present point, got {type(gradients).__name__}. Take them by "
            "mtl_core.collect(problem.losses(batch).values, problem.shared)."
        )
    if gradients.n_tasks != problem.n_tasks or [*map(id, gradients.parameters)] != [*map(id, problem.shared)]:
        raise InvalidInputError(
            f"`gradients` must be of the problem's {problem.n_tasks} tasks by its {len(problem.shared)} shared "
            f"parameters, in their order, got {gradients.n_tasks} tasks by {len(gradients.parameters)} parameters"
            f"{'' if gradients.n_tasks != problem.n_tasks else ', not the same'}. Collect them from this problem as it "
            "is now."
        )


def whole(name: str, value: Any, least: int) -> int:
    """Return a whole number that is large enough.

    Raises:
        InvalidParameterError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidParameterError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
    return value
