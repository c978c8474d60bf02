"""torch's optimisers by name, with options that are checked before a run begins."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn, optim

from mtl_benchmarks.components.reading import checked
from mtl_benchmarks.components.signatures import Argument, arguments_of
from mtl_benchmarks.protocol.plain_data import PlainData, is_plain
from mtl_core import InvalidParameterError, NoMatchError, Problem, UnknownNameError
from mtl_core.checks import non_negative

__all__ = ["OptimizerChoice", "optimizer_names"]

_HOW_IT_COMPUTES = frozenset({"params", "foreach", "fused", "capturable", "differentiable", "maximize"})
"""Arguments about the implementation; they stand in a configuration only where they are given."""


def optimizer_names() -> list[str]:
    """Names of torch's optimisers that take a step without a closure, in lower case, sorted.

    Example:
        >>> {"adam", "adamw", "sgd"} <= set(optimizer_names())
        True
    """
    return sorted(_classes())


def _classes() -> dict[str, type[optim.Optimizer]]:
    found = {
        name.lower(): cls
        for name, cls in vars(optim).items()
        if isinstance(cls, type) and issubclass(cls, optim.Optimizer)
    }
    # LBFGS evaluates the losses several times a step, which a step of mtl_core refuses.
    return {name: cls for name, cls in found.items() if name not in ("optimizer", "lbfgs")}


@dataclass(frozen=True)
class OptimizerChoice(PlainData):
    """One of torch's optimisers, with its options; weight decay is one of them.

    Args:
        name: the class's name in lower case, such as ``"adam"`` or ``"sgd"``.
        options: what its constructor takes beside the parameters, as plain data.
        groups: name pattern → options of the parameters that match it and no pattern before it, as ``Problem``'s
            ``shared`` takes patterns: ``"trunk"`` is everything in the module of that name, ``"*.bias"`` every bias.

    Raises:
        UnknownNameError: an optimiser or option that does not exist; lists those that do.
        InvalidParameterError: a value that the optimiser refuses.

    Example:
        >>> OptimizerChoice("adam", {"lr": 1e-4}).resolved().options["betas"]
        [0.9, 0.999]
    """

    name: str = "adam"
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in _classes():
            raise UnknownNameError("optimizer", str(self.name), optimizer_names())
        for what in ("options", "groups"):
            if not isinstance(getattr(self, what), Mapping):
                raise InvalidParameterError(f"`{what}` must be a mapping, got {getattr(self, what)!r}.")
        # Lists in the place of tuples, as a file gives them back, so that equal choices compare equal.
        options = {name: self._as_default(name, value) for name, value in self._checked(self.options).items()}
        object.__setattr__(self, "options", options)
        for pattern, own in self.groups.items():
            if not isinstance(own, Mapping):
                raise InvalidParameterError(f"`groups[{pattern!r}]` must be a mapping, got {own!r}.")
        object.__setattr__(self, "groups", {pattern: self._checked(each) for pattern, each in self.groups.items()})
        self._try({**self.options}, "options")
        for pattern, own in self.groups.items():
            self._try({**self.options, **own}, f"groups[{pattern!r}]")

    @property
    def cls(self) -> type[optim.Optimizer]:
        """The optimiser's class."""
        return _classes()[self.name]

    @property
    def lr(self) -> float:
        """The learning rate of what no group says otherwise about."""
        return float(self.options.get("lr", self._defaults()["lr"]))

    def resolved(self) -> OptimizerChoice:
        """The same with every option set, but for those about the implementation."""
        # About the implementation, what is as usual is left out like what was not given.
        usual = {
            name: _with_lists(each.default) for name, each in self._arguments().items() if name in _HOW_IT_COMPUTES
        }
        given = {name: value for name, value in self.options.items() if name not in usual or value != usual[name]}
        return replace(self, options={**self._defaults(), **given})

    def build(self, problem: Problem) -> optim.Optimizer:
        """The optimiser over a problem's trainable parameters, the shared ones first.

        Raises:
            NoMatchError: a pattern of ``groups`` matches no parameter that a pattern before it has left.
        """
        names = {id(p): name for name, p in problem.named_trainable.items()}
        rest = [*problem.shared, *problem.heads]
        groups: list[dict[str, Any]] = []
        for pattern, own in self.groups.items():
            inside = [p for p in rest if _matches(names[id(p)], pattern)]
            if not inside:
                raise NoMatchError(
                    f"`groups` pattern {pattern!r} must match a trainable parameter, got none. Names: "
                    f"{', '.join(names.values())}."
                )
            taken = {id(p) for p in inside}
            rest = [p for p in rest if id(p) not in taken]
            groups.append({"params": inside, **_with_tuples(own)})
        return self._make([{"params": rest}, *groups] if rest else groups, self.options)

    def _make(self, groups: Any, options: Mapping[str, Any]) -> optim.Optimizer:
        make: Any = self.cls
        made: optim.Optimizer = make(groups, **_with_tuples(options))
        return made

    def _arguments(self) -> Mapping[str, Argument]:
        cls: Any = self.cls
        return {name: each for name, each in arguments_of(cls).items() if name != "params"}

    def _defaults(self) -> dict[str, Any]:
        arguments = self._arguments()
        return {name: _with_lists(each.default) for name, each in arguments.items() if name not in _HOW_IT_COMPUTES}

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        known = self._arguments()
        found = {}
        for name, value in options.items():
            if name not in known:
                raise UnknownNameError(f"option of optimizer {self.name!r}", name, list(known))
            if not is_plain(value):
                raise InvalidParameterError(f"`{name}` of optimizer {self.name!r} must be plain data, got {value!r}.")
            found[name] = checked(name, known[name].annotation, value)
            # Torch takes infinity, and asks only whether a value is below zero, which NaN is not.
            if not all(map(math.isfinite, _numbers(value))):
                raise InvalidParameterError(f"`{name}` of optimizer {self.name!r} must be finite, got {value!r}.")
        return found

    def _as_default(self, name: str, value: Any) -> Any:
        """A value that equals the default, in the default's form.

        Some defaults of torch are whole numbers where the type is that of others. So they stand in every configuration.
        """
        default = _with_lists(self._arguments()[name].default)
        return default if value == default else value

    def _try(self, options: Mapping[str, Any], where: str) -> None:
        """Let torch look at the values, on a parameter that nobody uses."""
        # Not where there is so little to look at: with its first optimiser torch imports its compiler, which takes
        # longer than all else that describing a benchmark does.
        if set(options) <= {"lr", "weight_decay"}:
            for name, value in options.items():
                non_negative(name, value)
            return
        try:
            self._make([nn.Parameter(torch.zeros(2, 2))], options)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise InvalidParameterError(
                f"`{where}` must be what torch.optim.{self.cls.__name__} takes, got {dict(options)!r}: {error}"
            ) from None


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, float) else []


def _with_lists(value: Any) -> Any:
    return [_with_lists(each) for each in value] if isinstance(value, list | tuple) else value


def _with_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
