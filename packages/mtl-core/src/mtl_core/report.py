"""How a step is asked for and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from mtl_core import checks
from mtl_core.errors import InvalidParameterError

__all__ = ["Clip", "Event", "Keep", "Note", "SkippedUpdate", "StepOptions", "StepReport"]

Keep = Literal["jacobian", "scattered", "gramian", "features"]
"""What ``collect`` keeps of the gradients."""

Clip = Literal["shared", "all"] | Callable[[Sequence[Tensor]], object]
"""Which gradients ``max_norm`` is about, or what clips in its place."""


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How a step treats what its method leaves open; the same for every method.

    Attributes:
        heads: ``"unit"``: each head follows its own loss. ``"weighted"``: it follows its loss times the method's
            weight.
        max_norm: gradients are clipped to this norm, after they are written and unscaled.
        clip: what is clipped. ``"shared"``: the combined gradient of the shared parameters. ``"all"``: that and the
            heads', to one common norm, as ``clip_grad_norm_(model.parameters())`` does. Or a callable in place of
            ``max_norm``: it is given the trainable parameters that have a gradient, between writing and updating, e.g.
            ``functools.partial(torch.nn.utils.clip_grad_value_, clip_value=1.0)``. Trial steps of bilevel methods are
            clipped by it too. One that remembers something, such as a mean of norms, should offer ``state_dict()`` and
            ``load_state_dict(state)``, as a method does: then neither a trial step nor a step that fails leaves a trace
            in it. Without these two it sees every trial as if it were a step.
        keep: what to keep of the gradients, as for ``collect``.
        chunk_size: how many tasks are differentiated at once, as for ``collect``.
        group: a process group over whose ranks losses and gradients are averaged.
        per: ``"model"``: one weight per task. ``"layer"`` or ``"parameter"``: the method is applied to the gradients of
            each module that owns parameters, or of each parameter, by itself.
        scaler: a gradient scaler. Losses are scaled before and gradients unscaled after differentiation, so that every
            method sees true gradients; the scaler then takes the optimiser's step, and skips it at an overflow.
        check_gradients: whether gradients, those of the heads included, must be finite. They are looked at before
            anything is written, by one flag that travels with the one small copy of a step. Without it a gradient that
            is not finite is written where its loss is finite; losses are checked always.
        reversible: whether the update itself can be taken back too. What comes after it, a second look at the losses,
            may fail when the parameters have moved already. ``True`` keeps a copy of the parameters and of the
            optimiser's state during the update, so that such an error leaves everything as it was.
        measure_progress: whether the report tells, of a method that gives an update and no weights, how each task fares
            by it. That reads all gradients once more; where there are weights, the Gramian tells.

    Raises:
        InvalidParameterError: a value is none of those named above, two do not go together, or ``scaler`` or ``group``
            is of another class.
    """

    heads: Literal["unit", "weighted"] = "unit"
    max_norm: float | None = None
    clip: Clip = "shared"
    scaler: torch.amp.GradScaler | None = None
    keep: Keep = "jacobian"
    chunk_size: int | None = None
    group: dist.ProcessGroup | None = None
    per: Literal["model", "layer", "parameter"] = "model"
    check_gradients: bool = True
    reversible: bool = False
    measure_progress: bool = False

    def __post_init__(self) -> None:
        checks.one_of("heads", self.heads, ("unit", "weighted"))
        checks.one_of("keep", self.keep, get_args(Keep))
        checks.one_of("per", self.per, ("model", "layer", "parameter"))
        if not callable(self.clip):
            checks.one_of("clip", self.clip, ("shared", "all"))
        elif self.max_norm is not None:
            raise InvalidParameterError(
                f"`max_norm` must be None where `clip` is a callable, which clips in its place, got {self.max_norm!r}. "
                "Give one of the two."
            )
        if self.max_norm is not None:
            checks.positive("max_norm", self.max_norm)
        # By their classes: a half that fits would fail in the middle of the step.
        if self.scaler is not None and not isinstance(self.scaler, torch.amp.GradScaler):
            raise InvalidParameterError(f"`scaler` must be a torch.amp.GradScaler, got {self.scaler!r}.")
        if self.group is not None and not (dist.is_available() and isinstance(self.group, dist.ProcessGroup)):
            raise InvalidParameterError(
                f"`group` must be a torch.distributed.ProcessGroup, got {self.group!r}. For example dist.group.WORLD, "
                "or a device mesh's get_group()."
            )
        if self.chunk_size is not None:
            checks.positive_int("chunk_size", self.chunk_size)
        if self.per != "model" and (self.keep != "jacobian" or self.heads == "weighted"):
            raise InvalidParameterError(
                f"`per={self.per!r}` gives each group of parameters weights of its own, which needs keep='jacobian' "
                f"and heads='unit', got keep={self.keep!r} and heads={self.heads!r}."
            )

    @property
    def is_scaled(self) -> bool:
        """Whether losses are scaled, so that an overflow of the gradients is skipped and no error."""
        return self.scaler is not None and self.scaler.is_enabled()


@runtime_checkable
class Event(Protocol):
    """Something worth telling that happened in a step: a teleport, a regularised solve, a skipped update."""

    @property
    def kind(self) -> str:
        """What kind of event it is, one word."""

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data that JSON can hold, its ``kind`` included."""


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
        progress: the cosine of each task's gradient with the update ``[m]``, 0 for a zero gradient, of a method that
            gives an update and no weights, where ``StepOptions.measure_progress`` asks for it; with weights,
            ``individual_progress(None, weights, gramian=gramian)`` is it.
    """

    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    tasks: tuple[str, ...]
    events: tuple[Event, ...] = ()
    skipped: tuple[str, ...] = ()
    progress: Tensor | None = None


@dataclass(frozen=True)
class Note:
    """Something was done otherwise than asked for.

    Attributes:
        text: what was done, and why.
    """

    text: str
    kind: str = "note"

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return {"kind": self.kind, "text": self.text}


@dataclass(frozen=True)
class SkippedUpdate:
    """The gradients overflowed under a gradient scaler: parameters were left alone and the scale was lowered.

    Attributes:
        scale: the loss scale after it was lowered.
    """

    scale: float
    kind: str = "skipped_update"

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return {"kind": self.kind, "scale": self.scale}
