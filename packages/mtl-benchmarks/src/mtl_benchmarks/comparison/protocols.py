"""What two runs must have in common before their numbers may stand in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.published import PublishedTable

__all__ = ["differing", "flat", "own_protocol", "printed_protocol", "protocol_of", "short_name"]

_NOT_PROTOCOL = frozenset({"seed", "method", "teleport", "tasks", "threads", "ranks"})
"""What a comparison is about (method, teleport), what it averages over (seed), what it is told apart by beside the rest
(tasks), and what changes nothing but the order of sums (threads, ranks)."""


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys.

    Example:
        >>> flat({"a": {"b": 1, "c": [2]}, "d": None})
        {'a.b': 1, 'a.c': [2], 'd': None}
    """
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    parts = [flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}


def protocol_of(config: RunConfig) -> dict[str, Any]:
    """Everything but method, teleport, seed and tasks: benchmark with its options, training, precision, device.

    Runs compare only where all of it is equal. Devices count by their kind.

    Example:
        >>> one, other = (
        ...     protocol_of(RunConfig.resolve("toy", method, seed=s)) for method, s in (("ls", 0), ("mgda", 1))
        ... )
        >>> one == other
        True
    """
    data = {key: value for key, value in config.as_dict().items() if key not in _NOT_PROTOCOL}
    data["device"] = torch.device(config.device).type
    return flat(data)


def own_protocol(config: RunConfig) -> dict[str, Any]:
    """The protocol that the benchmark has unless a run says otherwise, for the same case of it."""
    problem = make_benchmark(config.benchmark)
    return protocol_of(RunConfig.resolve(Choice(config.benchmark.name, _given(config, problem.case_options()))))


_WHERE = frozenset({"device", "benchmark.options.root"})
"""Where something is computed and where its data lie, which a printed table does not say."""


def printed_protocol(config: RunConfig, table: PublishedTable) -> dict[str, Any]:
    """The protocol behind a published table, for the same case of the benchmark and wherever ``config`` runs."""
    problem = make_benchmark(config.benchmark)
    options = {**_given(config, problem.case_options()), **table.options}
    found = protocol_of(RunConfig.resolve(Choice(config.benchmark.name, options), training=table.training))
    here = protocol_of(config)
    return {key: here.get(key) if key in _WHERE else value for key, value in found.items()}


def _given(config: RunConfig, case: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the case, and those without a default, which no protocol can do without."""
    from mtl_benchmarks.benchmarks import benchmark_class
    from mtl_benchmarks.components.options import option_defaults
    from mtl_benchmarks.components.signatures import REQUIRED

    required = {k for k, v in option_defaults(benchmark_class(config.benchmark.name)).items() if v is REQUIRED}
    return {k: v for k, v in config.benchmark.options.items() if k in case or k in required}


def differing(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all of ``protocols``, in order of appearance."""
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    # Not None: a key that is missing differs from one whose value is None.
    absent = object()
    return [key for key in keys if any(p.get(key, absent) != protocols[0].get(key, absent) for p in protocols)]


def short_name(key: str) -> str:
    """A dotted key as a reader would say it.

    Example:
        >>> short_name("benchmark.options.n_train"), short_name("training.epochs")
        ('n_train', 'epochs')
    """
    for prefix in ("benchmark.options.", "training.", "benchmark."):
        if key.startswith(prefix):
            return key.removeprefix(prefix).replace(".options.", ".")
    return key.replace(".options.", ".")
