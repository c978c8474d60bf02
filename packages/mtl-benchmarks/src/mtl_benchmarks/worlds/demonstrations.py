"""Demonstrations: episodes of the scripted experts, collected once and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from mtl_benchmarks.worlds.experts import refuse_failing
from mtl_benchmarks.worlds.keeping import kept
from mtl_benchmarks.worlds.metaworld import TRAINING
from mtl_benchmarks.worlds.rollouts import METAWORLD, Episode, play, world_of
from mtl_benchmarks.worlds.tasks import MT10_TASKS
from mtl_benchmarks.worlds.workers import Workers, counted
from mtl_core import InvalidInputError
from mtl_core.checks import non_negative, positive_int

__all__ = ["Demonstrations", "collect_demonstrations", "load_demonstrations"]

_ARRAYS = ("observations", "actions", "starts", "episodes")


@dataclass(frozen=True)
class Demonstrations:
    """Transitions of all tasks, one task after the other.

    Attributes:
        tasks: the tasks.
        observations: ``[n, 39]`` float32.
        actions: ``[n, 4]`` float32 in [-1, 1], the expert's, without the noise that was added to what was done.
        starts: ``[m + 1]`` int64, where each task's transitions begin.
        episodes: ``[n]`` int64, the episode of each transition, counted within its task.

    Raises:
        InvalidInputError: shapes do not belong together, a task has no transition, or a number is not finite.
    """

    tasks: tuple[str, ...]
    observations: Tensor
    actions: Tensor
    starts: Tensor
    episodes: Tensor

    def __post_init__(self) -> None:
        n = len(self.observations)
        shapes = {"observations": (n, 39), "actions": (n, 4), "starts": (len(self.tasks) + 1,), "episodes": (n,)}
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InvalidInputError(f"`{name}` must have shape {shape} for {n} observations, got {found}.")
        starts = self.starts.tolist()
        if starts[0] != 0 or starts[-1] != n or bool((self.starts.diff() < 1).any()):
            raise InvalidInputError(f"`starts` must rise from 0 to {n} by 1 or more, got {starts}.")
        if not bool(torch.isfinite(self.observations).all() and torch.isfinite(self.actions).all()):
            raise InvalidInputError("`observations` and `actions` must be finite, got NaN or infinity.")

    def of(self, task: str) -> slice:
        """The transitions of a task."""
        number = self.tasks.index(task)
        return slice(int(self.starts[number]), int(self.starts[number + 1]))


def load_demonstrations(
    workers: Workers,
    *,
    n_episodes: int = 100,
    horizon: int = 150,
    noise: float = 0.1,
    world: str = METAWORLD,
    say: Callable[[str], None] | None = None,
) -> Demonstrations:
    """MT10's demonstrations: from the user's cache, or collected now, which takes minutes, and kept there.

    Args:
        workers: where to run.
        n_episodes: per task, each with a goal of its own.
        horizon: the most steps of an episode; it ends before where the task is solved.
        noise: standard deviation of what is added to the actions that are done, so that a policy learned from them has
            seen how to come back.
        world: the simulator, as ``package.module:Class``.
        say: called with how far it is while they are collected; None: nobody is told.

    Raises:
        MissingExtraError: ``metaworld`` is not installed.
        InvalidInputError: the cache is damaged or of another version, or an expert never succeeds.
    """
    positive_int("n_episodes", n_episodes)
    positive_int("horizon", horizon)
    non_negative("noise", noise)

    def collect() -> dict[str, numpy.ndarray]:
        found = collect_demonstrations(
            MT10_TASKS, n_episodes=n_episodes, horizon=horizon, noise=noise, workers=workers, world=world, say=say
        )
        return {name: getattr(found, name).numpy() for name in _ARRAYS}

    return kept("demonstrations", f"{n_episodes}x{horizon}-noise{noise:g}", collect, _made_of, world=world)


def _made_of(arrays: Mapping[str, numpy.ndarray]) -> Demonstrations:
    return Demonstrations(MT10_TASKS, **{name: torch.from_numpy(arrays[name]) for name in _ARRAYS})


def collect_demonstrations(
    tasks: Sequence[str],
    *,
    n_episodes: int,
    horizon: int,
    noise: float,
    workers: Workers,
    world: str = METAWORLD,
    say: Callable[[str], None] | None = None,
) -> Demonstrations:
    """Let the experts play; the same whatever the number of workers.

    Args:
        tasks: the tasks.
        n_episodes: as for ``load_demonstrations``.
        horizon: as for ``load_demonstrations``.
        noise: as for ``load_demonstrations``.
        workers: where to run.
        world: the simulator, as ``package.module:Class``.
        say: as for ``load_demonstrations``.

    Raises:
        InvalidInputError: an expert reaches none of its goals.
    """
    # One job per episode: their lengths differ by tenfold, and workers take the next when they are done.
    jobs = [(world, task, goal, horizon, noise) for task in tasks for goal in range(n_episodes)]
    told = counted("experts demonstrate", len(jobs), say)
    played: list[Episode] = workers.map(_demonstrate, jobs, done=told)
    of_task = [played[k * n_episodes : (k + 1) * n_episodes] for k in range(len(tasks))]
    failing = [task for task, each in zip(tasks, of_task, strict=True) if not any(e.success for e in each)]
    # Otherwise a policy would be taught to fail, and nothing would tell.
    refuse_failing(failing, n_goals=n_episodes, horizon=horizon)
    lengths = [sum(len(episode.actions) for episode in episodes) for episodes in of_task]
    ids = [numpy.repeat(range(len(each)), [len(e.actions) for e in each]) for each in of_task]
    return Demonstrations(
        tuple(tasks),
        torch.from_numpy(numpy.concatenate([e.observations for each in of_task for e in each])),
        torch.from_numpy(numpy.concatenate([e.actions for each in of_task for e in each])),
        torch.tensor([0, *lengths]).cumsum(0),
        torch.from_numpy(numpy.concatenate(ids)),
    )


def _demonstrate(job: tuple[str, str, int, int, float]) -> Episode:
    spec, task, goal, horizon, scale = job
    world = world_of(spec, task, TRAINING)
    # By the task and the goal, so that no process and no order of the jobs has a say.
    random = numpy.random.default_rng([goal, *task.encode()])
    return play(world, goal, world.expert, horizon=horizon, noise=lambda: random.normal(0.0, scale, 4))
