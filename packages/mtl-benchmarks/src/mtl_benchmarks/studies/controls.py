"""The controls of a run with COST: what else might explain what it gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.studies.matching_lengths import lengths_of

__all__ = ["CONTROLS", "HEADINGS", "control_of"]


_WHEN = ("trigger", "start_after", "max_per_epoch")
"""Settings that say at which steps there may be a move."""


def _random(run: RunResult) -> Choice:
    options = _options(run)
    when = {name: options[name] for name in _WHEN}
    if options["budget"] is not None:
        # A random move costs next to nothing: a budget would let it move at other steps, and more often.
        when["steps"] = [int(event["step"]) for event in run.events if event.get("accepted")]
    return Choice("random", {"length": lengths_of(run), "htr": _memory_of(options), **when})


def _memory(run: RunResult) -> Choice:
    moves = [event for event in run.events if event.get("accepted")]
    return Choice(
        "memory",
        {
            "steps": [int(event["step"]) for event in moves],
            "sigmas": [float(event["sigma"]) for event in moves],
            "htr": _memory_of(_options(run)),
        },
    )


def _options(run: RunResult) -> Mapping[str, Any]:
    assert run.config.teleport is not None
    return run.config.teleport.options


def _memory_of(options: Mapping[str, Any]) -> str:
    """Nothing has moved to a point whose gradients were looked at, so that there is no change of them to carry."""
    return "keep" if options["htr"] == "transported" else options["htr"]


CONTROLS: Mapping[str, Callable[[RunResult], Choice]] = {"random": _random, "memory": _memory}
"""Name of a teleport → how it is made from a complete run with COST: random moves as long as its own at
the steps at which its trigger would let them, or at its very steps where it has a budget, and the optimiser's memory
treated as there without a move."""

HEADINGS = {"random": "random moves", "memory": "memory alone"}
"""How tables call them."""


def control_of(name: str, run: RunResult) -> Choice | None:
    """The control of a run; None where nothing has moved, so that it is the method alone."""
    return CONTROLS[name](run) if lengths_of(run) else None
