"""The random control of equal length: how far a teleported run went, so that another can go as far at random."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.runs.copies import distinct
from mtl_benchmarks.runs.runner import RunResult
from mtl_core import InvalidInputError

__all__ = ["lengths_of", "matching_lengths"]


def lengths_of(run: RunResult) -> list[float]:
    """Lengths of the accepted moves of a run, in order."""
    return [float(event["length"]) for event in run.events if event.get("accepted")]


def matching_lengths(
    runs: Sequence[RunResult],
    *,
    benchmark: Choice,
    method: Choice,
    seed: int,
    training: Training | None = None,
    tasks: Sequence[str] | None = None,
) -> list[float]:
    """Lengths of the teleports in the run with COST that differs from a planned control in its direction alone.

    Args:
        runs: complete runs, among them the one to match.
        benchmark: resolved, as in the planned run.
        method: resolved, as in the planned run.
        seed: as in the planned run.
        training: likewise; None: of whatever protocol.
        tasks: likewise; None: any but a single one.

    Raises:
        InvalidInputError: there is no such run, more than one, or it made no move.
    """
    found = [
        run
        # Copies count once: one run that is named twice is no second candidate.
        for run in distinct(runs)[0]
        if run.config.teleport is not None
        and not run.stopped
        and run.config.teleport.name == "cost"
        and (run.config.benchmark, run.config.method, run.config.seed) == (benchmark, method, seed)
        and not run.config.is_single_task
        # How far a move goes depends on the protocol, on the learning rate above all.
        and training in (None, run.config.training)
        and (tasks is None or run.config.tasks == tuple(tasks))
    ]
    wanted = f"{benchmark.name} with {method.name} + cost, seed {seed}, and the same options"
    if len(found) != 1:
        raise InvalidInputError(f"`teleport.like` must hold one complete run of {wanted}, got {len(found)}.")
    lengths = lengths_of(found[0])
    if not lengths:
        raise InvalidInputError(f"`teleport.like` must hold a run with teleports, got none in that of {wanted}.")
    return lengths
