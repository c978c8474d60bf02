"""From names to objects: which benchmarks, methods and teleports there are, and how a run makes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from mtl_aggregators import registry
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import benchmark_class, own_benchmarks
from mtl_benchmarks.options import Choice, PartTable, construct, option_defaults, resolve
from mtl_core import InvalidInputError, Method, Weighting
from mtl_core.extension import find_plugin, is_loss_weighting, is_spec, offers, plain_name, plugin_names
from mtl_teleport import (
    COST,
    OFT,
    AnyMeanConflict,
    Dense,
    DominatedConflict,
    LoHa,
    LoKr,
    LoRA,
    MajorityConflict,
    PeftLoRA,
    RandomTeleport,
    WeakConflict,
)

__all__ = [
    "PARTS",
    "TELEPORTS",
    "TELEPORT_GROUP",
    "make_benchmark",
    "make_method",
    "method_class",
    "resolve_benchmark",
    "resolve_method",
    "resolve_teleport",
    "teleport_class",
    "teleports",
]

TELEPORTS: Mapping[str, type] = {"cost": COST, "random": RandomTeleport}
"""What of this package may move the parameters when gradients conflict."""

TELEPORT_GROUP = "mtl.teleports"
"""The entry point group under which other packages bring teleports."""

PARTS: PartTable = {
    "adapter": {"lora": LoRA, "loha": LoHa, "lokr": LoKr, "oft": OFT, "dense": Dense, "peft-lora": PeftLoRA},
    "trigger": {
        "dominated": DominatedConflict,
        "weak": WeakConflict,
        "any-mean": AnyMeanConflict,
        "majority": MajorityConflict,
    },
}
"""Options that are objects, by the names of their classes."""


def teleports() -> list[str]:
    """Names of the teleports: of this package, then of those that bring some under ``mtl.teleports``."""
    return [*TELEPORTS, *(name for name in plugin_names(TELEPORT_GROUP) if name not in TELEPORTS)]


def method_class(name: str) -> type:
    """The class of a weighting method, by its name or as ``package.module:Class``.

    Raises:
        UnknownNameError: there is no such method; lists those that exist.
        InvalidInputError: another package brings it, and it cannot be imported or is no class.
    """
    found = registry.method_class(name)
    if not isinstance(found, type):
        raise InvalidInputError(f"method {name!r} must be a class, got {found!r}. Its options are its constructor's.")
    return found


def teleport_class(name: str) -> type:
    """The class of a teleport, by its name or as ``package.module:Class``.

    Raises:
        UnknownNameError: there is no such teleport; lists those that exist.
        InvalidInputError: another package brings it, and it cannot be imported or wraps no method.
    """
    own = None if is_spec(name) else TELEPORTS.get(plain_name(name))
    if own is not None:
        return own
    found = find_plugin("teleport", name, TELEPORT_GROUP, [*TELEPORTS, "none"])
    if not isinstance(found, type) or "method" not in inspect.signature(found).parameters:
        raise InvalidInputError(
            f"teleport {name!r} must be a class whose constructor takes the wrapped method as `method`, got {found!r}. "
            "mtl_core.extension.Wrapper is such a class."
        )
    return found


def _registered(name: str, own: Mapping[str, Callable[..., Any]], cls: type) -> str:
    """One name for one class, so that a run is the same however its parts were spelt."""
    for known, each in own.items():
        if each is cls:
            return known
    return name if is_spec(name) else plain_name(name)


def resolve_benchmark(choice: Choice) -> Choice:
    """The benchmark with all its options, under its registered name."""
    cls = benchmark_class(choice.name)
    return resolve("benchmark", Choice(_registered(choice.name, own_benchmarks(), cls), choice.options), cls)


def resolve_method(choice: Choice) -> Choice:
    """The method with all its options, under its registered name."""
    cls = method_class(choice.name)
    return resolve("method", Choice(_registered(choice.name, registry.own_methods(), cls), choice.options), cls)


def resolve_teleport(choice: Choice, benchmark: Choice) -> Choice:
    """The teleport with all its options; those not given are the benchmark's, then the class's own."""
    cls = teleport_class(choice.name)
    known = option_defaults(cls, PARTS)
    own = {name: value for name, value in benchmark_class(benchmark.name).teleport_options.items() if name in known}
    name = _registered(choice.name, TELEPORTS, cls)
    return resolve("teleport", Choice(name, {**own, **choice.options}), cls, PARTS)


def make_benchmark(choice: Choice) -> Benchmark:
    """A benchmark from its options."""
    benchmark: Benchmark = construct(benchmark_class(choice.name), choice.options)
    return benchmark


def make_method(
    method: Choice,
    teleport: Choice | None = None,
    *,
    seed: int,
    device: str = "cpu",
    probe_batches: Iterable[Any] | None = None,
) -> Any:
    """A method from its options, inside its teleport if it has one.

    Args:
        method: the weighting method.
        teleport: what moves the parameters when gradients conflict.
        seed: of what the two draw.
        device: where the method keeps what it trains.
        probe_batches: what a teleport holds the losses on; see ``Benchmark.probe_batches``.

    Raises:
        InvalidInputError: the method's objects are none that a step takes.
    """
    found = construct(method_class(method.name), method.options, seed=seed)
    if not (callable(found) or offers(found, Method) or offers(found, Weighting)):
        raise InvalidInputError(
            f"method {method.name!r} must have `step`, `weights` or be callable, got {type(found).__name__} with none "
            "of these. See the protocols of mtl_core."
        )
    if is_loss_weighting(found) and isinstance(found, nn.Module):
        found.to(device)
    if teleport is None:
        return found
    cls = teleport_class(teleport.name)
    return construct(cls, teleport.options, PARTS, method=found, seed=seed, probe_batches=probe_batches)
