"""Pages of the reference: every name that users may import, by the module that they find it in."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import defaultdict
from typing import Any

from docsite.docstrings import public_modules
from docsite.method_page import methods
from mtl_aggregators.registry import method_class

__all__ = ["documented", "reference_pages"]

_TITLES = {
    "mtl_core": "mtl-core",
    "mtl_core.extension": "For packages on top",
    "mtl_core.checks": "Checks of arguments",
    "mtl_core.testing": "Testing methods",
    "mtl_aggregators": "mtl-aggregators",
    "mtl_aggregators.conformance": "Conformance",
    "mtl_teleport": "mtl-teleport",
    "mtl_benchmarks": "mtl-benchmarks",
    "mtl_benchmarks.models": "Models",
}
# Names that belong together, where their modules say it less well: words of a page's title → names.
_TOGETHER = {
    "mtl_core": {
        "Problems and steps": (
            *("Problem", "step", "StepReport", "StepOptions", "Event", "Note", "SkippedUpdate", "MicroBatches"),
            "TaskLosses",
        ),
        "Task gradients": ("collect", "collect_per_task", "accumulate", "TaskGradients"),
        "Conflict": (
            *("ConflictMonitor", "EpochConflict", "cosines", "mean_cosines", "weak_conflict", "dominated_conflict"),
            *("majority_conflict", "conflict_count", "imbalance_ratio", "individual_progress"),
        ),
        "Protocols of a method": ("LossWeighting", "Weighting", "Aggregator", "Method"),
        "Wrappers": ("UpdateEvery", "TaskSampling"),
        "Errors": None,  # what is left and is an exception
        "Modules": ("checks",),
    },
    "mtl_aggregators": {
        "The registry": ("make", "available", "describe"),
        "Facts": ("Facts", "Scale", "RegularisedSolve"),
        "Bases for methods": ("GramianMethod", "JacobianMethod", "LossAwareMethod", "ThreeBatches", "in_threes"),
        "Bilevel weighting": (
            *("Bilevel", "MainTasks", "WorstCaseDecrement", "Outcome", "SoftmaxWeights", "AuxiliaryWeights"),
            "exact_hypergradient",
        ),
        "More than one network": ("GroupedGradVac", "log_transform"),
        "Stationarity": ("plumbline", "stationarity_gap"),
    },
    "mtl_teleport": {
        "COST and its controls": ("COST", "RandomTeleport", "MemoryOnly", "TeleportReport"),
        "Adapters": (
            "Adapter",
            *("AdapterSession", "LoRA", "LoHa", "LoKr", "OFT", "Dense", "PeftAdapter", "PeftLoRA"),
        ),
        "Triggers": ("Trigger", "DominatedConflict", "WeakConflict", "MajorityConflict", "AnyMeanConflict", "Always"),
        "The optimiser's memory": ("modulated", "trajectory_cosine"),
    },
    "mtl_benchmarks": {
        "Runs": (
            *("run", "run_all", "RunConfig", "RunResult", "RunDirectory", "Collection", "load_result", "Progress"),
            *("own_baselines", "single_task_configs"),
        ),
        "Protocols of training": (
            *("Training", "OptimizerChoice", "Clip", "Constant", "Cosine", "StepDecay", "Plateau", "Span"),
            *("EarlyStopping", "Last", "MeanOfLast", "Best", "Choice"),
        ),
        "Metrics": ("Metric", "Baseline", "delta_m", "mean_rank", "ranks"),
        "Published tables": (
            *("PublishedTable", "PublishedValue", "published_table", "published_values", "printed_baselines"),
        ),
        "Benchmarks": (
            *("Benchmark", "Toy", "Digits", "CTR", "NYUv2", "CityScapes", "CelebA", "QM9", "MT10", "Yeast"),
            "MovieLens",
        ),
        "Data": ("Batches", "LoadedBatches", "Loading", "DataSource", "ReadsFiles", "Rooms", "Streets"),
        "Watching a run": ("Observer", "ObserverError", "RunStart", "StepSeen", "EvaluationSeen"),
    },
}


def _groups(module: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Title → names; what no group names comes under its own module's first line."""
    left = [name for name in names if name not in _with_their_own_page(module)]
    found: dict[str, list[str]] = defaultdict(list)
    table: dict[str, tuple[str, ...] | None] = _TOGETHER.get(module, {})  # type: ignore[assignment]
    for title, members in table.items():
        for name in list(left):
            if (members is None and _is_error(module, name)) or (members is not None and name in members):
                found[title].append(name)
                left.remove(name)
    for name in left:
        found["Further names" if table else _TITLES[module]].append(name)
    return dict(found)


def _with_their_own_page(module: str) -> set[str]:
    return {method_class(name).__name__ for name in methods()} if module == "mtl_aggregators" else set()


def _is_error(module: str, name: str) -> bool:
    value = getattr(importlib.import_module(module), name)
    return isinstance(value, type) and issubclass(value, Exception)


def reference_pages() -> tuple[dict[str, str], list[Any]]:
    """Page → Markdown, and the part of the navigation that lists them."""
    pages: dict[str, str] = {"reference/index.md": _index()}
    navigation: list[Any] = ["reference/index.md"]
    for package in ("mtl_core", "mtl_aggregators", "mtl_teleport", "mtl_benchmarks"):
        listed: list[Any] = []
        for module, names in public_modules().items():
            if module.partition(".")[0] != package:
                continue
            for title, members in _groups(module, names).items():
                slug = (title if module == package else module.rpartition(".")[2]).lower().replace(" ", "-")
                page = f"reference/{package}/{slug}.md"
                pages[page] = _page(title, module, members)
                listed.append({title: page})
        navigation.append({_TITLES[package]: listed})
    return pages, navigation


def _page(title: str, module: str, names: list[str]) -> str:
    package = importlib.import_module(module)
    parts = [f"# {title}"]
    for name in names:
        value = getattr(package, name)
        if inspect.ismodule(value):
            parts.append(f"`{module}.{name}`: see [its own page](../{module}/{name}.md).")
        else:
            parts.append(f"::: {module}.{name}")
    return "\n\n".join([parts[0], f"`from {module} import …`", *parts[1:]]) + "\n"


def _index() -> str:
    lines = [
        "# Reference",
        "Every name that may be imported. What is not listed here is internal and may change without notice.",
    ]
    for module, names in public_modules().items():
        lines.append(f"## `{module}`")
        lines.append((sys.modules[module].__doc__ or "").partition("\n\n")[0].replace("\n", " "))
        package = importlib.import_module(module)
        links = [
            f"`{name}`" if inspect.ismodule(getattr(package, name)) else f"[`{name}`][{module}.{name}]"
            for name in names
        ]
        lines.append(", ".join(links))
    return "\n\n".join(lines) + "\n"


def documented() -> list[str]:
    """Every public name, dotted; each must be an anchor of the site and have a docstring."""
    found = []
    for module, names in public_modules().items():
        package = importlib.import_module(module)
        found += [f"{module}.{name}" for name in names if not inspect.ismodule(getattr(package, name))]
    return found
