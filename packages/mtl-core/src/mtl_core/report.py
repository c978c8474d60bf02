"""How a step is asked for and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import checks
from mtl_core.errors import InvalidParameterError
from mtl_core.gradients import Keep
from mtl_core.protocols import Event

__all__ = ["Note", "SkippedUpdate", "StepOptions", "StepReport"]


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How a step treats what its method leaves open; the same for every method.

    Attributes:
        heads: ``"unit"``: each head follows its own loss. ``"weighted"``: it follows its loss times the method's
            weight.
        max_norm: the combined gradient of the shared parameters is clipped to this norm, after it is written.
        keep: what to keep of the gradients, as for ``collect``.
        chunk_size: how many tasks are differentiated at once, as for ``collect``.
        group: a process group over whose ranks losses and gradients are averaged.
        per: ``"model"``: one weight per task. ``"layer"`` or ``"parameter"``: the method is applied to the gradients of
            each module that owns parameters, or of each parameter, by itself.
        scaler: a gradient scaler. Losses are scaled before and gradients unscaled after differentiation, so that every
            method sees true gradients; the scaler then takes the optimiser's step, and skips it at an overflow.
    """

    heads: Literal["unit", "weighted"] = "unit"
    max_norm: float | None = None
    scaler: torch.amp.GradScaler | None = None
    keep: Keep = "jacobian"
    chunk_size: int | None = None
    group: dist.ProcessGroup | None = None
    per: Literal["model", "layer", "parameter"] = "model"

    def __post_init__(self) -> None:
        checks.one_of("heads", self.heads, ("unit", "weighted"))
        checks.one_of("keep", self.keep, get_args(Keep))
        checks.one_of("per", self.per, ("model", "layer", "parameter"))
        if self.max_norm is not None:
            checks.positive("max_norm", self.max_norm)
        if self.chunk_size is not None:
            checks.positive_int("chunk_size", self.chunk_size)
        if self.per != "model" and (self.keep != "jacobian" or self.heads == "weighted"):
            raise InvalidParameterError(
                f"`per={self.per!r}` gives each group of parameters weights of its own, which needs keep='jacobian' "
                f"and heads='unit', got keep={self.keep!r} and heads={self.heads!r}."
            )


@dataclass(frozen=True)
class StepReport:
    """What a step saw and did.

    Attributes:
        losses: the losses ``[m]`` before the update; NaN for a task that was absent.
        weights: the method's weights ``[m]``, if it has any; ``[n_groups, m]`` where each group of parameters has its
            own.
        gramian: the Gramian ``[m, m]`` that the weights were computed from, if it was.
        tasks: the tasks' names.
        events: what else happened, in order.
        skipped: names of the shared parameters that took no part: the frozen ones, and those no present task touches.
    """

    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    tasks: tuple[str, ...]
    events: tuple[Event, ...] = ()
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """Something was done otherwise than asked for."""

    text: str
    kind: str = "note"

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return {"kind": self.kind, "text": self.text}


@dataclass(frozen=True)
class SkippedUpdate:
    """The gradients overflowed under a gradient scaler: parameters were left alone and the scale was lowered."""

    scale: float
    kind: str = "skipped_update"

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return {"kind": self.kind, "scale": self.scale}
