"""The controls of a run with COST: what else might explain what it gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.studies.matching_lengths import lengths_of

__all__ = ["CONTROLS", "HEADINGS", "control_of"]


def _random(run: RunResult) -> Choice:
    return Choice("random", {"length": lengths_of(run)})


def _memory(run: RunResult) -> Choice:
    assert run.config.teleport is not None
    moves = [event for event in run.events if event.get("accepted")]
    htr = run.config.teleport.options["htr"]
    return Choice(
        "memory",
        {
            "steps": [int(event["step"]) for event in moves],
            "sigmas": [float(event["sigma"]) for event in moves],
            # Nothing has moved, so that there is no change of the gradient to carry.
            "htr": "keep" if htr == "transported" else htr,
        },
    )


CONTROLS: Mapping[str, Callable[[RunResult], Choice]] = {"random": _random, "memory": _memory}
"""Name of a teleport → how it is made from a complete run with COST: random moves as long as its own, and the
optimiser's memory treated as there without a move."""

HEADINGS = {"random": "random moves", "memory": "memory alone"}
"""How tables call them."""


def control_of(name: str, run: RunResult) -> Choice | None:
    """The control of a run; None where nothing has moved, so that it is the method alone."""
    return CONTROLS[name](run) if lengths_of(run) else None
