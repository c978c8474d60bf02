"""What the scripted experts themselves achieve: the ceiling of whoever imitates them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy

from mtl_benchmarks.worlds.keeping import kept, read_kept
from mtl_benchmarks.worlds.metaworld import HELD_OUT
from mtl_benchmarks.worlds.rollouts import METAWORLD, play, world_of
from mtl_benchmarks.worlds.tasks import MT10_TASKS
from mtl_benchmarks.worlds.workers import Workers, counted
from mtl_core import InvalidInputError

__all__ = ["expert_success", "known_expert_success", "refuse_failing"]

_KIND = "experts"


def expert_success(
    workers: Workers,
    *,
    horizon: int,
    n_goals: int,
    world: str = METAWORLD,
    say: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """The experts' success without noise on the held-out goals: from the user's cache, or tried out now and kept.

    Args:
        workers: where to run.
        horizon: the most steps of an episode.
        n_goals: how many of the goals on which policies are tried out.
        world: the simulator, as ``package.module:Class``.
        say: called with how far it is while they are tried out; None: nobody is told.

    Returns:
        task → share in [0, 1].

    Raises:
        MissingExtraError: ``metaworld`` is not installed.
        InvalidInputError: the cache is damaged or of another version, or an expert reaches none of the goals.
    """

    def collect() -> dict[str, numpy.ndarray]:
        jobs = [(world, task, goal, horizon) for task in MT10_TASKS for goal in range(n_goals)]
        found = workers.map(_try_expert, jobs, done=counted("experts are tried out", len(jobs), say))
        share = numpy.array(found, dtype=numpy.float64).reshape(len(MT10_TASKS), n_goals).mean(1)
        failing = [task for task, one in zip(MT10_TASKS, share.tolist(), strict=True) if one == 0]
        refuse_failing(failing, n_goals=n_goals, horizon=horizon)
        return {"success": share}

    return kept(_KIND, f"{n_goals}x{horizon}", collect, _by_task, world=world)


def known_expert_success(*, horizon: int, n_goals: int, world: str = METAWORLD) -> dict[str, float] | None:
    """As :func:`expert_success`, or None where it is not in the cache."""
    return read_kept(_KIND, f"{n_goals}x{horizon}", _by_task, world=world)


def refuse_failing(tasks: Sequence[str], *, n_goals: int, horizon: int) -> None:
    """Refuse a simulator in which experts never succeed.

    Raises:
        InvalidInputError: there are such tasks.
    """
    if tasks:
        raise InvalidInputError(
            f"the experts must reach some of {n_goals} goals within `horizon` {horizon}, got none for "
            f"{', '.join(tasks)}. Give more steps; if they are enough, the simulator hides its goals."
        )


def _by_task(arrays: Mapping[str, numpy.ndarray]) -> dict[str, float]:
    shares = [float(share) for share in arrays["success"]]
    if len(shares) != len(MT10_TASKS) or not all(0 <= share <= 1 for share in shares):
        raise InvalidInputError(f"`success` must be a share for each of {len(MT10_TASKS)} tasks, got {shares}.")
    return dict(zip(MT10_TASKS, shares, strict=True))


def _try_expert(job: tuple[str, str, int, int]) -> bool:
    spec, task, goal, horizon = job
    world = world_of(spec, task, HELD_OUT)
    return play(world, goal, world.expert, horizon=horizon).success
