"""The training protocol on the command line: every part of ``Training``, and what was typed laid over a protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.components.signatures import REQUIRED, arguments_of
from mtl_benchmarks.protocol.optimizers import OptimizerChoice, optimizer_names
from mtl_benchmarks.protocol.outcome import REPORTED, EarlyStopping, Reported
from mtl_benchmarks.protocol.schedules import SCHEDULES, Schedule, Span
from mtl_benchmarks.protocol.training import Clip, Precision, Training
from mtl_core import InvalidParameterError, UnknownNameError
from mtl_core.checks import positive
from mtl_core.extension import is_spec

__all__ = ["TrainingWords", "read_span"]

_SCHEDULES = {cls.kind: cls for cls in SCHEDULES}
_REPORTED = {cls.kind: cls for cls in REPORTED}
_SAME = {"--optimizer.lr": "--lr"}
_SPAN = re.compile(r"(\d+)\s*(epochs?|steps?)?")


def read_span(flag: str, text: str) -> Span | None:
    """``"5"`` or ``"5epochs"`` → five epochs, ``"100steps"`` → a hundred steps, ``"none"`` → None.

    Raises:
        InvalidParameterError: it is none of these.

    Example:
        >>> read_span("--evaluate_every", "100steps")
        Span(count=100, unit='steps')
    """
    if text.lower() == "none":
        return None
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None or int(found[1]) < 1:
        raise InvalidParameterError(f"`{flag}` must be a length such as 5epochs or 100steps, got {text!r}.")
    return Span(int(found[1]), "steps" if (found[2] or "").startswith("step") else "epochs")


@dataclass(frozen=True)
class TrainingWords:
    """The options of a protocol whose optimiser, schedule and reporting are known by name.

    Attributes:
        base: the protocol that the options are laid over.
        optimizer: name of the optimiser.
        schedule: kind of the schedule.
        reported: kind of the reporting.
    """

    base: Training | None
    optimizer: str
    schedule: str
    reported: str

    @classmethod
    def of(cls, given: Mapping[str, Sequence[str]], base: Training | None) -> TrainingWords:
        """The options that belong to the names that were given, and to those of the protocol where none was.

        Raises:
            UnknownNameError: a name that does not exist.
            InvalidParameterError: a name is missing behind its option.
        """
        own = Training(batch_size=1, epochs=1) if base is None else base
        return cls(
            base,
            _named(given, "--optimizer", own.optimizer.name, optimizer_names()),
            _named(given, "--schedule", own.schedule.kind, list(_SCHEDULES)),
            _named(given, "--reported", own.reported.kind, list(_REPORTED)),
        )

    @staticmethod
    def spelt_out(flag: str) -> str:
        """The flag under which an option stands in the table."""
        return _SAME.get(flag, flag)

    def options(self) -> list[Option]:
        """All of them."""
        base = self.base
        stopping = None if base is None else base.early_stopping
        clip = None if base is None else base.clip
        found = [
            Option("--epochs", int, "length, as passes over the training set", base and base.epochs),
            Option("--steps", int, "length, as updates, in place of --epochs", base and base.steps),
            Option("--batch_size", int, "samples per step", base and base.batch_size),
            Option("--lr", float, "learning rate", base and base.lr),
            _by_name("--optimizer", "one of torch's", self.optimizer, optimizer_names()),
            *self._optimizer_options(),
            _by_name("--schedule", "of the learning rate", self.schedule, list(_SCHEDULES)),
            *_options_of("--schedule", _SCHEDULES[self.schedule], base and base.schedule),
            Option("--max_norm", float | None, "clip the gradient to this norm", (clip and clip.max_norm) or "none"),
            Option(
                "--clip",
                str,
                "what --max_norm clips; or a function of one's own",
                (clip and (clip.function or clip.scope)) or "shared",
                shown="shared|all|PACKAGE.MODULE:FUNCTION",
            ),
            Option("--precision", Precision, "of forward passes", (base and base.precision) or "float32"),
            Option("--accumulate", int, "micro-batches per step", (base and base.accumulate) or 1),
            _span("--evaluate_every", "from one evaluation to the next", None if base is None else base.evaluate_every),
            Option(
                "--early_stopping",
                str,
                "end when this validation metric no longer improves",
                (stopping and stopping.metric) or "none",
                shown="METRIC",
            ),
            *_options_of("--early_stopping", EarlyStopping, stopping, without=("metric",)),
            _by_name("--reported", "which evaluations stand for the run", self.reported, list(_REPORTED)),
            *_options_of("--reported", _REPORTED[self.reported], base and base.reported),
            Option(
                "--sharding",
                Literal["none", "fsdp"],
                "spread parameters over processes",
                (base and base.sharding) or "none",
            ),
        ]
        return found

    def _optimizer_options(self) -> list[Option]:
        own = None if self.base is None or self.base.optimizer.name != self.optimizer else self.base.optimizer.options
        shown = {**OptimizerChoice(self.optimizer).resolved().options, **(own or {})}
        cls: Any = OptimizerChoice(self.optimizer).cls
        return [
            Option(
                f"--optimizer.{name}",
                argument.annotation,
                argument.help,
                "none" if shown.get(name) is None else shown[name],
                hidden=name not in shown,
            )
            for name, argument in arguments_of(cls).items()
            if name not in ("params", "lr")
        ]

    def applied(self, base: Training, values: Mapping[str, Any]) -> Training:
        """The protocol with what was given.

        Args:
            base: the protocol.
            values: flag → value.

        Raises:
            InvalidParameterError: a value out of range, or two that exclude each other.
        """
        if "--epochs" in values and "--steps" in values:
            raise InvalidParameterError(
                f"`--steps` must stand without --epochs, got {values['--steps']} and {values['--epochs']}."
            )
        given: dict[str, Any] = {"optimizer": self._optimizer(base, values)}
        if "--epochs" in values or "--steps" in values:
            given |= {"epochs": values.get("--epochs"), "steps": values.get("--steps")}
        for name in ("batch_size", "precision", "accumulate", "evaluate_every", "sharding"):
            if f"--{name}" in values:
                given[name] = values[f"--{name}"]
        given["schedule"] = _made("--schedule", _SCHEDULES[self.schedule], base.schedule, values)
        given["reported"] = _made("--reported", _REPORTED[self.reported], base.reported, values)
        given["clip"] = _clip(base.clip, values)
        given["early_stopping"] = _early_stopping(base.early_stopping, values)
        return replace(base, **given)

    def _optimizer(self, base: Training, values: Mapping[str, Any]) -> OptimizerChoice:
        before = base.optimizer
        # Another optimiser keeps the learning rate and nothing else of the one before.
        kept = before if before.name == self.optimizer else OptimizerChoice(self.optimizer, {"lr": before.lr})
        own = {f.removeprefix("--optimizer."): v for f, v in values.items() if f.startswith("--optimizer.")}
        if "--lr" in values:
            own["lr"] = positive("--lr", values["--lr"])
        return replace(kept, options={**kept.options, **own}).resolved()


def _named(given: Mapping[str, Sequence[str]], flag: str, default: str, valid: Sequence[str]) -> str:
    if flag not in given:
        return default
    if not given[flag]:
        raise InvalidParameterError(f"`{flag}` must be followed by a name, got none. Valid: {', '.join(valid)}.")
    name = given[flag][0].lower()
    if name not in valid:
        raise UnknownNameError(flag.removeprefix("--"), given[flag][0], valid)
    return name


def _by_name(flag: str, about: str, default: str, names: Sequence[str]) -> Option:
    return Option(flag, str, about, default, shown="NAME", names=lambda: names)


def _span(flag: str, about: str, default: Span | None) -> Option:
    shown = "none" if default is None else f"{default.count}{default.unit}"
    return Option(flag, str, about, shown, shown="LENGTH", reads=read_span)


def _options_of(flag: str, cls: type, base: Any, *, without: Sequence[str] = ()) -> list[Option]:
    found = []
    for name, argument in arguments_of(cls).items():
        if name in without:
            continue
        value = vars(base)[name] if type(base) is cls else argument.default
        default = None if value is REQUIRED else value
        if Span in (argument.annotation, *get_args(argument.annotation)):
            found.append(_span(f"{flag}.{name}", argument.help, default))
        else:
            found.append(Option(f"{flag}.{name}", argument.annotation, argument.help, default))
    return found


def _given(flag: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {each.removeprefix(f"{flag}."): value for each, value in values.items() if each.startswith(f"{flag}.")}


def _made(flag: str, cls: type[Any], base: Schedule | Reported, values: Mapping[str, Any]) -> Any:
    own = _given(flag, values)
    # Of the kind that the protocol has: its other options stay. Of another kind: they are that kind's defaults.
    return replace(base, **own) if type(base) is cls else cls(**own)


def _clip(base: Clip | None, values: Mapping[str, Any]) -> Clip | None:
    if "--clip" not in values and "--max_norm" not in values:
        return base
    what = values.get("--clip", base.scope if base is not None else "shared")
    if is_spec(what):
        return Clip(function=what)
    norm = values.get("--max_norm", None if base is None else base.max_norm)
    if norm is None and "--max_norm" in values:
        return None
    if norm is None:
        raise InvalidParameterError(f"`--clip {what}` must come with --max_norm, got none.")
    return Clip(max_norm=norm, scope=what)


def _early_stopping(base: EarlyStopping | None, values: Mapping[str, Any]) -> EarlyStopping | None:
    own = _given("--early_stopping", values)
    if base is not None and "--early_stopping" not in values:
        return replace(base, **own)
    metric = values.get("--early_stopping")
    if metric is None or metric.lower() == "none":
        if own:
            raise InvalidParameterError(f"`--early_stopping.{next(iter(own))}` must come with --early_stopping METRIC.")
        return None
    if base is not None:
        return replace(base, metric=metric, **own)
    if "patience" not in own:
        raise InvalidParameterError(
            f"`--early_stopping {metric}` must come with --early_stopping.patience, got none: after how many "
            "evaluations without a new best the run ends."
        )
    return EarlyStopping(metric, **own)
