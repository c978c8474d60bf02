"""One environment of each task, in step with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy

from mtl_benchmarks.worlds import TRAINING, play
from mtl_benchmarks.worlds.rollouts import world_of

__all__ = ["Arena"]

_GOALS = 50
"""From how many goals each task's one is drawn: those of MT10."""


class Arena:
    """An environment for each task with one goal, drawn once: episodes begin together and end together.

    An episode begins the same way every time, whatever was before it. So where all episodes end there is no state of
    the simulators to be kept.

    Args:
        tasks: the tasks.
        world: the simulator, as ``package.module:Class``.
        seed: of the goals.
    """

    def __init__(self, tasks: Sequence[str], *, world: str, seed: int) -> None:
        self.tasks = tuple(tasks)
        self._goals = numpy.random.default_rng(seed).integers(_GOALS, size=len(self.tasks)).tolist()
        self._worlds = [world_of(world, task, TRAINING) for task in self.tasks]

    def begin(self) -> numpy.ndarray:
        """Begin an episode in each; the first observations ``[m, o]``."""
        return numpy.stack([world.begin(goal) for world, goal in zip(self._worlds, self._goals, strict=True)])

    def step(self, actions: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        """One step in each; the next observations ``[m, o]`` and the rewards ``[m]``."""
        found = [world.step(action) for world, action in zip(self._worlds, actions, strict=True)]
        return numpy.stack([observation for observation, _, _ in found]), numpy.array(
            [reward for _, reward, _ in found]
        )

    def successes(self, act: Callable[[str, numpy.ndarray], numpy.ndarray], *, horizon: int) -> dict[str, bool]:
        """Whether an episode of each task gets to its goal at some step, by what ``act`` does; task → success."""
        found = {}
        for task, world, goal in zip(self.tasks, self._worlds, self._goals, strict=True):
            found[task] = play(world, goal, lambda seen, task=task: act(task, seen), horizon=horizon).success  # type: ignore[misc]
        return found
