"""From names to objects: which benchmarks, methods and teleports there are, and how a run makes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import nn

from mtl_aggregators import available as available_methods
from mtl_aggregators import registry
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.options import Choice, PartTable, construct, option_defaults, resolve
from mtl_core import UnknownNameError
from mtl_core.extension import is_loss_weighting
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
    "make_benchmark",
    "make_method",
    "method_class",
    "resolve_benchmark",
    "resolve_method",
    "resolve_teleport",
    "teleport_class",
]

TELEPORTS: Mapping[str, type] = {"cost": COST, "random": RandomTeleport}
"""What may move the parameters when gradients conflict."""

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


def method_class(name: str) -> type:
    """The class of a weighting method.

    Raises:
        UnknownNameError: there is no such method; lists those that exist.
    """
    return cast(type, registry.method_class(name))


def teleport_class(name: str) -> type:
    """The class of a teleport.

    Raises:
        UnknownNameError: there is no such teleport; lists those that exist.
    """
    if name not in TELEPORTS:
        raise UnknownNameError("teleport", name, [*TELEPORTS, "none"])
    return TELEPORTS[name]


def resolve_benchmark(choice: Choice) -> Choice:
    """The benchmark with all its options."""
    return resolve("benchmark", choice, benchmark_class(choice.name))


def resolve_method(choice: Choice) -> Choice:
    """The method with all its options, under its registered name."""
    cls = method_class(choice.name)
    name = next(each for each in available_methods() if method_class(each) is cls)
    return resolve("method", Choice(name, choice.options), cls)


def resolve_teleport(choice: Choice, benchmark: Choice) -> Choice:
    """The teleport with all its options; those not given are the benchmark's, then the class's own."""
    cls = teleport_class(choice.name)
    known = option_defaults(cls, PARTS)
    own = {name: value for name, value in benchmark_class(benchmark.name).teleport_options.items() if name in known}
    return resolve("teleport", Choice(choice.name, {**own, **choice.options}), cls, PARTS)


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
    """
    found = construct(method_class(method.name), method.options, seed=seed)
    if is_loss_weighting(found) and isinstance(found, nn.Module):
        found.to(device)
    if teleport is None:
        return found
    cls = teleport_class(teleport.name)
    return construct(cls, teleport.options, PARTS, method=found, seed=seed, probe_batches=probe_batches)
