"""A world for tests: a point that an expert moves to its goal, in the form of Meta-World's simulators."""

from __future__ import annotations

import os

import numpy
from torch import Tensor

from mtl_teleport.triggers import Trigger


class Field:
    """The first three numbers are a place, the last three the goal; an action moves the point by a tenth of it.

    The task ``"far"`` begins further away, ``"never"`` is never solved.
    """

    def __init__(self, task: str, goals: int = 0) -> None:
        self.task = task
        self._goals = goals
        self._state = numpy.zeros(39)

    def begin(self, goal: int) -> numpy.ndarray:
        random = numpy.random.default_rng([self._goals, goal, len(self.task)])
        self._state = numpy.zeros(39)
        self._state[36:] = random.uniform(0.5, 1.0, 3) * (3 if self.task == "far" else 1)
        return self._state.copy()

    def step(self, action: numpy.ndarray) -> tuple[numpy.ndarray, float, bool]:
        if self.task == "dies":
            os._exit(3)
        if self.task == "raises":
            raise ValueError("a simulator's own words")
        self._state[:3] += 0.1 * numpy.clip(action[:3], -1, 1)
        distance = float(numpy.abs(self._state[:3] - self._state[36:]).max())
        return self._state.copy(), -distance, distance < 0.05 and self.task != "never"

    def expert(self, observation: numpy.ndarray) -> numpy.ndarray:
        return numpy.append(numpy.clip(10 * (observation[36:] - observation[:3]), -1, 1), 0.0)


class NoWorld:
    """Begins and does nothing else."""

    def __init__(self, task: str, goals: int) -> None:
        self.task = task

    def begin(self, goal: int) -> numpy.ndarray:
        return numpy.zeros(39)


def process_id(_: object) -> int:
    return os.getpid()


class Always(Trigger):
    """Conflict at every step."""

    def __call__(self, gramian: Tensor) -> bool:
        return True
