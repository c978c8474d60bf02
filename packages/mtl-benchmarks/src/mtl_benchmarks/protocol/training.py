"""The protocol of a training run, as data: everything that a paper says about how it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import REPORTED, EarlyStopping, Last, Reported
from mtl_benchmarks.protocol.plain_data import PlainData, entry, read_fields, read_kind
from mtl_benchmarks.protocol.schedules import SCHEDULES, Constant, Schedule, Span
from mtl_core import InvalidParameterError
from mtl_core.checks import one_of, positive, positive_int
from mtl_core.extension import is_spec, load_spec

__all__ = ["Clip", "Precision", "Training"]

Precision = Literal["float32", "tf32", "bf16", "fp16"]
"""``"float32"``: every layer in the model's own dtype, matrix products included. ``"tf32"``: those on TensorFloat-32
units. ``"bf16"``, ``"fp16"``: forward passes under autocast, ``"fp16"`` with a gradient scaler."""


@dataclass(frozen=True)
class Clip(PlainData):
    """How gradients are clipped between writing and updating.

    Args:
        max_norm: to this norm.
        scope: ``"shared"``: the combined gradient of the shared parameters; ``"all"``: that and the heads', together.
        function: in place of the two, ``package.module:callable``, given the parameters that have a gradient.

    Raises:
        InvalidParameterError: neither or both of ``max_norm`` and ``function``, or a value out of range.
    """

    max_norm: float | None = None
    scope: Literal["shared", "all"] = "shared"
    function: str | None = None

    def __post_init__(self) -> None:
        one_of("scope", self.scope, ("shared", "all"))
        if (self.max_norm is None) == (self.function is None):
            raise InvalidParameterError(
                f"`clip` must have one of `max_norm` and `function`, got {self.max_norm!r} and {self.function!r}."
            )
        if self.max_norm is not None:
            positive("max_norm", self.max_norm)
        elif not isinstance(self.function, str) or not is_spec(self.function):
            raise InvalidParameterError(f"`function` must be 'package.module:callable', got {self.function!r}.")
        super().__post_init__()

    def for_step(self) -> dict[str, Any]:
        """The arguments of ``mtl_core.step``.

        Raises:
            UnknownNameError: the module of ``function`` has no such callable.
            InvalidInputError: it cannot be imported.
        """
        if self.function is None:
            return {"max_norm": self.max_norm, "clip": self.scope}
        return {"clip": load_spec("function", self.function)}


@dataclass(frozen=True, kw_only=True)
class Training(PlainData):
    """The protocol by which a benchmark is trained unless a run says otherwise.

    Args:
        batch_size: samples per step, over all micro-batches and all processes.
        epochs: passes over the training set; or
        steps: updates. One of the two.
        optimizer: one of torch's, with its options; weight decay is one of these.
        schedule: of the learning rate.
        clip: of the gradients; None: none.
        precision: of forward passes; see :data:`Precision`.
        accumulate: micro-batches per step, each with its own forward pass.
        evaluate_every: from one evaluation to the next; there is always one at the end.
        early_stopping: when to end before the end; None: never.
        reported: which evaluations stand for the run.
        sharding: ``"fsdp"``: parameters are spread over the processes by ``fully_shard``; ``"none"``: each has all.

    Raises:
        InvalidParameterError: a value out of range or of another type, or both or neither of ``epochs`` and ``steps``.

    Example:
        >>> training = Training(batch_size=2, epochs=200, optimizer=OptimizerChoice("adam", {"lr": 1e-4}))
        >>> Training.from_dict(training.as_dict()) == training
        True
    """

    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    optimizer: OptimizerChoice = field(default_factory=OptimizerChoice)
    schedule: Schedule = Constant()
    clip: Clip | None = None
    precision: Precision = "float32"
    accumulate: int = 1
    evaluate_every: Span = Span(1, "epochs")
    early_stopping: EarlyStopping | None = None
    reported: Reported = Last()
    sharding: Literal["none", "fsdp"] = "none"

    def __post_init__(self) -> None:
        positive_int("batch_size", self.batch_size)
        if (self.epochs is None) == (self.steps is None):
            raise InvalidParameterError(
                f"`training` must have one of `epochs` and `steps`, got {self.epochs!r} and {self.steps!r}."
            )
        positive_int("epochs" if self.steps is None else "steps", self._length)
        for name, kind in self._parts().items():
            if not isinstance(getattr(self, name), kind):
                raise InvalidParameterError(f"`{name}` must be a {kind.__name__}, got {getattr(self, name)!r}.")
        one_of("precision", self.precision, get_args(Precision))
        one_of("sharding", self.sharding, ("none", "fsdp"))
        if self.batch_size % positive_int("accumulate", self.accumulate):
            raise InvalidParameterError(
                f"`accumulate` must divide `batch_size`, got {self.accumulate} micro-batches for {self.batch_size} "
                "samples."
            )
        if self.sharding == "fsdp" and self.accumulate > 1:
            raise InvalidParameterError(
                f"`accumulate` must be 1 with sharding='fsdp', got {self.accumulate}: gradients of shards are averaged "
                "by whole backward passes."
            )
        super().__post_init__()

    @property
    def _length(self) -> Any:
        return self.epochs if self.steps is None else self.steps

    def _parts(self) -> dict[str, type]:
        parts = {"optimizer": OptimizerChoice, "schedule": Constant, "evaluate_every": Span, "reported": Last}
        optional = {"clip": Clip, "early_stopping": EarlyStopping}
        return {**parts, **{name: kind for name, kind in optional.items() if getattr(self, name) is not None}}

    @property
    def lr(self) -> float:
        """The optimiser's learning rate."""
        return self.optimizer.lr

    def in_words(self) -> str:
        """The protocol on one line, what is as usual left out.

        Example:
            >>> from mtl_benchmarks.protocol.schedules import StepDecay
            >>> Training(batch_size=2, epochs=200, schedule=StepDecay(every=Span(100), gamma=0.5)).in_words()
            '200 epochs, batches of 2, adam with lr 0.001, schedule step, reported: last'
        """
        length = f"{self.epochs} epochs" if self.epochs is not None else f"{self.steps} steps"
        words = [length, f"batches of {self.batch_size}", f"{self.optimizer.name} with lr {self.lr:g}"]
        if self.schedule != Constant():
            words.append(f"schedule {self.schedule.kind}")
        if self.clip is not None:
            words.append(f"clipping by {self.clip.function or f'norm {self.clip.max_norm:g} ({self.clip.scope})'}")
        words += [each for each in (self.precision, self.sharding) if each not in ("float32", "none")]
        return ", ".join([*words, f"reported: {self.reported.kind}"])

    @property
    def watched(self) -> dict[str, str]:
        """Setting → the validation metric that it watches."""
        found = {"schedule": self.schedule.metric, "reported": self.reported.metric}
        if self.early_stopping is not None:
            found["early_stopping"] = self.early_stopping.metric
        return {setting: metric for setting, metric in found.items() if metric is not None}

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        return self.epochs * steps_per_epoch if self.epochs is not None else int(self._length)

    def altered(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        optimizer: str | OptimizerChoice | None = None,
        precision: Precision | None = None,
        max_norm: float | None = None,
    ) -> Training:
        """The same but for what is given.

        Args:
            epochs: in place of the length, in epochs or steps.
            steps: likewise.
            batch_size: samples per step.
            lr: learning rate of all parameters that no group gives their own.
            optimizer: a name keeps the learning rate and nothing else of the optimiser before.
            precision: of forward passes.
            max_norm: clip the gradient of the shared parameters to this norm.
        """
        chosen = self.optimizer
        if isinstance(optimizer, str):
            chosen = OptimizerChoice(optimizer, {"lr": self.lr})
        elif optimizer is not None:
            chosen = optimizer
        if lr is not None:
            chosen = replace(chosen, options={**chosen.options, "lr": positive("lr", lr)})
        given: dict[str, Any] = {"optimizer": chosen.resolved()}
        if epochs is not None or steps is not None:
            given |= {"epochs": epochs, "steps": steps}
        if batch_size is not None:
            given["batch_size"] = batch_size
        if precision is not None:
            given["precision"] = precision
        if max_norm is not None:
            given["clip"] = Clip(max_norm=max_norm)
        return replace(self, **given)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Training:
        """What :meth:`as_dict` gave."""
        values = read_fields(cls, data)
        readers: dict[str, type[PlainData]] = {
            "optimizer": OptimizerChoice,
            "clip": Clip,
            "evaluate_every": Span,
            "early_stopping": EarlyStopping,
        }
        for name, kind in readers.items():
            if values.get(name) is not None:
                with entry(name):
                    values[name] = kind.from_dict(values[name])
        for name, kinds in (("schedule", SCHEDULES), ("reported", REPORTED)):
            if name in values:
                with entry(name):
                    values[name] = read_kind(name, kinds, values[name])
        return cls(**values)
