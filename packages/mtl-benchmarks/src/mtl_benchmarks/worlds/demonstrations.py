"""Demonstrations: episodes of the scripted experts, collected once and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy
import torch
from torch import Tensor

from mtl_benchmarks.cache import cache_folder, read_arrays, write_arrays
from mtl_benchmarks.worlds.metaworld import HELD_OUT, MT10_TASKS, TRAINING
from mtl_benchmarks.worlds.rollouts import METAWORLD, Episode, play, world_of
from mtl_benchmarks.worlds.workers import Workers
from mtl_core import InvalidInputError, MissingExtraError
from mtl_core.checks import non_negative, positive_int

__all__ = ["Demonstrations", "collect_demonstrations", "load_demonstrations"]

_VERSION = 1


@dataclass(frozen=True)
class Demonstrations:
    """Transitions of all tasks, one task after the other.

    Attributes:
        tasks: the tasks.
        observations: ``[n, 39]`` float32.
        actions: ``[n, 4]`` float32 in [-1, 1], the expert's, without the noise that was added to what was done.
        starts: ``[m + 1]`` int64, where each task's transitions begin.
        episodes: ``[n]`` int64, the episode of each transition, counted within its task.
        ceiling: ``[m]`` float64, the experts' own success without noise on held-out goals at the same horizon.
    """

    tasks: tuple[str, ...]
    observations: Tensor
    actions: Tensor
    starts: Tensor
    episodes: Tensor
    ceiling: Tensor

    def of(self, task: str) -> slice:
        """The transitions of a task."""
        number = self.tasks.index(task)
        return slice(int(self.starts[number]), int(self.starts[number + 1]))


def load_demonstrations(
    *,
    n_episodes: int = 100,
    horizon: int = 150,
    noise: float = 0.1,
    n_goals: int = 50,
    processes: int = 2,
) -> Demonstrations:
    """MT10's demonstrations: from the user's cache, or collected now, which takes minutes, and kept there.

    Args:
        n_episodes: per task, each with a goal of its own.
        horizon: the most steps of an episode; it ends before where the task is solved.
        noise: standard deviation of what is added to the actions that are done, so that a policy learned from them has
            seen how to come back.
        n_goals: held-out goals on which the experts themselves are tried.
        processes: how many collect.

    Raises:
        MissingExtraError: nothing is kept yet and ``metaworld`` is not installed.
        InvalidInputError: the cache is damaged or of another version, or an expert never succeeds.
    """
    positive_int("n_episodes", n_episodes)
    positive_int("horizon", horizon)
    non_negative("noise", noise)
    try:
        simulator = metadata.version("metaworld")
    except metadata.PackageNotFoundError:
        raise MissingExtraError("the MT10 benchmark", "mtl-benchmarks[mt10]") from None
    settings = f"{n_episodes}x{horizon}-noise{noise:g}-goals{n_goals}"
    path = cache_folder() / f"mt10-metaworld{simulator}-{settings}.npz"
    layout = f"demonstrations of metaworld {simulator}, {settings}, version {_VERSION}"
    arrays = read_arrays(path, layout=layout)
    if arrays is None:
        with Workers(processes) as workers:
            found = collect_demonstrations(
                MT10_TASKS, n_episodes=n_episodes, horizon=horizon, noise=noise, n_goals=n_goals, workers=workers
            )
        names = ("observations", "actions", "starts", "episodes", "ceiling")
        write_arrays(path, {name: getattr(found, name).numpy() for name in names}, layout=layout)
        return found
    return Demonstrations(MT10_TASKS, **{name: torch.from_numpy(array) for name, array in arrays.items()})


def collect_demonstrations(
    tasks: Sequence[str],
    *,
    n_episodes: int,
    horizon: int,
    noise: float,
    n_goals: int,
    workers: Workers,
    world: str = METAWORLD,
) -> Demonstrations:
    """Let the experts play; the same whatever the number of workers.

    Args:
        tasks: the tasks.
        n_episodes: as for ``load_demonstrations``.
        horizon: as for ``load_demonstrations``.
        noise: as for ``load_demonstrations``.
        n_goals: as for ``load_demonstrations``.
        workers: where to run.
        world: the simulator, as ``package.module:Class``.

    Raises:
        InvalidInputError: an expert reaches none of the held-out goals.
    """
    jobs = [(world, task, TRAINING, goal, horizon, noise) for task in tasks for goal in range(n_episodes)]
    trials = [(world, task, HELD_OUT, goal, horizon, None) for task in tasks for goal in range(n_goals)]
    played: list[Episode] = workers.map(_demonstrate, [*jobs, *trials])
    of_task = [played[k * n_episodes : (k + 1) * n_episodes] for k in range(len(tasks))]
    tried = [[e.success for e in played[len(jobs) + k * n_goals :][:n_goals]] for k in range(len(tasks))]
    ceiling = torch.tensor([sum(each) / n_goals for each in tried], dtype=torch.float64)
    failing = [task for task, share in zip(tasks, ceiling.tolist(), strict=True) if share == 0]
    if failing:
        raise InvalidInputError(
            f"the experts must reach some of {n_goals} goals within `horizon` {horizon}, got none for "
            f"{', '.join(failing)}. Give more steps; if they are enough, the simulator hides its goals."
        )
    lengths = [sum(len(episode.actions) for episode in episodes) for episodes in of_task]
    ids = [numpy.repeat(range(len(each)), [len(e.actions) for e in each]) for each in of_task]
    return Demonstrations(
        tuple(tasks),
        torch.from_numpy(numpy.concatenate([e.observations for each in of_task for e in each])),
        torch.from_numpy(numpy.concatenate([e.actions for each in of_task for e in each])),
        torch.tensor([0, *lengths]).cumsum(0),
        torch.from_numpy(numpy.concatenate(ids)),
        ceiling,
    )


def _demonstrate(job: tuple[str, str, int, int, int, float | None]) -> Episode:
    spec, task, goals, goal, horizon, scale = job
    world = world_of(spec, task, goals)
    if scale is None:
        return play(world, goal, world.expert, horizon=horizon)
    # By the task and the goal, so that no process and no order of the jobs has a say.
    random = numpy.random.default_rng([goal, *task.encode()])
    return play(world, goal, world.expert, horizon=horizon, noise=lambda: random.normal(0.0, scale, 4))
