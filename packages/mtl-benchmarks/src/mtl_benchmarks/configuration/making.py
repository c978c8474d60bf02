"""From names to objects: which benchmarks, methods, teleports and parts there are, and how a run makes one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mtl_aggregators import registry
from mtl_benchmarks import models
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import BENCHMARKS, benchmark_class
from mtl_benchmarks.components.options import Choice, Part, PartTable, construct, option_defaults, resolve
from mtl_benchmarks.components.registry import Registry, defines
from mtl_benchmarks.components.signatures import arguments_of
from mtl_benchmarks.components.sizes import refuse_huge
from mtl_core import InvalidInputError, Method, Weighting
from mtl_core.extension import is_loss_weighting, is_spec, offers, plain_name
from mtl_teleport import (
    COST,
    OFT,
    Always,
    AnyMeanConflict,
    Dense,
    DominatedConflict,
    LoHa,
    LoKr,
    LoRA,
    MajorityConflict,
    MemoryOnly,
    PeftLoRA,
    RandomTeleport,
    WeakConflict,
)

__all__ = [
    "ADAPTERS",
    "MODELS",
    "PARTS",
    "TELEPORTS",
    "TRIGGERS",
    "benchmark_parts",
    "make_benchmark",
    "make_method",
    "method_class",
    "resolve_benchmark",
    "resolve_method",
    "resolve_teleport",
    "teleport_class",
]

TELEPORTS = Registry(
    "teleport",
    "mtl.teleports",
    {"cost": COST, "random": RandomTeleport, "memory": MemoryOnly},
    fits=lambda cls: "method" in arguments_of(cls),
    rule="a class whose constructor takes the wrapped method as `method`, such as a mtl_core.extension.Wrapper",
    reserved=("none",),
)
"""What may move the parameters when gradients conflict."""

ADAPTERS = Registry(
    "adapter",
    "mtl.adapters",
    {"lora": LoRA, "loha": LoHa, "lokr": LoKr, "oft": OFT, "dense": Dense, "peft-lora": PeftLoRA},
    fits=lambda cls: defines(cls, "attach"),
    rule="a class with `attach`, a mtl_teleport.Adapter",
)
"""In which directions a teleport may move the parameters."""

TRIGGERS = Registry(
    "trigger",
    "mtl.triggers",
    {
        "dominated": DominatedConflict,
        "weak": WeakConflict,
        "any-mean": AnyMeanConflict,
        "majority": MajorityConflict,
        "always": Always,
    },
    fits=lambda cls: defines(cls, "__call__"),
    rule="a class whose objects are called with the Gramian, a mtl_teleport.Trigger",
)
"""When a teleport happens."""

MODELS = Registry(
    "model",
    "mtl.models",
    {
        name.lower(): cls
        for name, cls in vars(models).items()
        if isinstance(cls, type) and issubclass(cls, models.TaskModel) and cls is not models.TaskModel
    },
    fits=lambda cls: issubclass(cls, nn.Module),
    rule="a subclass of torch.nn.Module",
)
"""Networks, for benchmarks that let theirs be chosen."""

PARTS: PartTable = {"adapter": Part(ADAPTERS), "trigger": Part(TRIGGERS)}
"""Options of a teleport that are objects."""


def benchmark_parts(cls: type[Benchmark]) -> PartTable:
    """Options of a benchmark that are objects: the model, where its constructor takes one."""
    given, offered = cls.model_arguments, cls.offered_to_model
    return {"model": Part(MODELS, made_by_owner=True, given_by_owner=given, offered_by_owner=offered)}


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
    return TELEPORTS.find(name)


def resolve_benchmark(choice: Choice) -> Choice:
    """The benchmark with all its options, under its registered name."""
    cls = benchmark_class(choice.name)
    named = Choice(BENCHMARKS.name_of(choice.name, cls), choice.options)
    return resolve("benchmark", named, cls, benchmark_parts(cls))


def resolve_method(choice: Choice) -> Choice:
    """The method with all its options, under its registered name."""
    cls = method_class(choice.name)
    known = next((name for name, each in registry.own_methods().items() if each is cls), None)
    plain = choice.name if is_spec(choice.name) else plain_name(choice.name)
    return resolve("method", Choice(known or plain, choice.options), cls)


def resolve_teleport(choice: Choice, benchmark: Choice) -> Choice:
    """The teleport with all its options; those not given are the benchmark's, then the class's own."""
    cls = teleport_class(choice.name)
    known = option_defaults(cls, PARTS)
    own = {name: value for name, value in benchmark_class(benchmark.name).teleport_options.items() if name in known}
    return resolve("teleport", Choice(TELEPORTS.name_of(choice.name, cls), {**own, **choice.options}), cls, PARTS)


def make_benchmark(choice: Choice) -> Benchmark:
    """A benchmark from its options.

    Raises:
        InvalidParameterError: an option is out of range, or larger than anything is.
        InvalidInputError: it has two metrics of one name, or evaluates no test set.
    """
    cls = benchmark_class(choice.name)
    refuse_huge(choice.options)
    benchmark: Benchmark = construct(cls, choice.options, benchmark_parts(cls))
    names = [metric.name for metric in benchmark.metrics]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInputError(
            f"`metrics` of benchmark {choice.name!r} must have different names, got {twice!r} more than once. Add the "
            "task to them."
        )
    if "test" not in benchmark.splits:
        raise InvalidInputError(
            f"`splits` of benchmark {choice.name!r} must have 'test', whose values stand for a run, got "
            f"{', '.join(benchmark.splits) or 'none'}."
        )
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
    # Losses stay on the device, and so must what weighs them. Methods of gradients go where the Gramian is.
    if is_loss_weighting(found) and isinstance(found, nn.Module):
        found.to(device)
    if teleport is None:
        return found
    cls = teleport_class(teleport.name)
    return construct(cls, teleport.options, PARTS, method=found, seed=seed, probe_batches=probe_batches)
