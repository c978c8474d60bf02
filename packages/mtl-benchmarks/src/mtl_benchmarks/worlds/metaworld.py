"""The real Meta-World: ten manipulation tasks of a simulated arm, and an expert for each.

The only module that imports ``metaworld``, which needs several seconds and a physics engine.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy

from mtl_benchmarks.worlds.tasks import MT10_TASKS
from mtl_core import InvalidInputError, MissingExtraError, UnknownNameError
from mtl_core.checks import non_negative

__all__ = ["HELD_OUT", "LONGEST", "TRAINING", "MetaWorld"]

TRAINING, HELD_OUT = 0, 1_000_000
"""Which goals: each block of 50 is drawn by a seed of its own, from this one on."""

LONGEST = 500
"""The most steps of an episode: what Meta-World's simulators allow between two resets."""

_GOALS = 50
"""How many goals Meta-World draws per seed."""

_GOAL_PART = slice(36, 39)
"""Where the goal stands in an observation."""


class MetaWorld:
    """One task of Meta-World (version 3) with a family of goals, and its scripted expert.

    An observation is the flat state of 39 numbers, the goal included; an action is four numbers in [-1, 1]. No picture
    is ever rendered.

    Args:
        task: one of ``MT10_TASKS``.
        goals: ``TRAINING`` or ``HELD_OUT``, two families that share no seed.

    Raises:
        UnknownNameError: there is no such task.
        MissingExtraError: ``metaworld`` is not installed.

    Example:
        >>> world = MetaWorld("reach")  # doctest: +SKIP
        >>> world.begin(0).shape  # doctest: +SKIP
        (39,)
    """

    def __init__(self, task: str, goals: int = TRAINING) -> None:
        if task not in MT10_TASKS:
            raise UnknownNameError("task of MT10", task, MT10_TASKS)
        try:
            import metaworld
            from metaworld.policies import ENV_POLICY_MAP
        except ImportError:
            raise MissingExtraError("the MT10 benchmark", "mtl-benchmarks[mt10]") from None
        self.task = task
        self._metaworld: Any = metaworld
        self._name = f"{task}-v3"
        self._goals = int(non_negative("goals", goals))
        self._blocks: dict[int, Any] = {}
        policies: Any = ENV_POLICY_MAP  # by its types the map holds the abstract class
        self._expert: Any = policies[self._name]()
        # One environment for all goals, since making one loads the whole simulator.
        self._environment: Any = self._block(0).train_classes[self._name]()

    def _block(self, number: int) -> Any:
        if number not in self._blocks:
            self._blocks[number] = self._metaworld.MT1(self._name, seed=self._goals + number)
        return self._blocks[number]

    def begin(self, goal: int) -> numpy.ndarray:
        """Start an episode with a goal, from 0; returns the first observation ``[39]``.

        Raises:
            InvalidInputError: the simulator hides the goal, with which no expert and no policy can succeed.
        """
        block, place = divmod(int(non_negative("goal", goal)), _GOALS)
        # By set_task alone: the private freeze flag hides the goal, and experts then fail without a word.
        self._environment.set_task(self._block(block).train_tasks[place])
        # Seeded by the goal: an episode is the same whatever was played before it.
        observation = self._environment.reset(seed=goal)[0]
        if not numpy.any(observation[_GOAL_PART]):
            raise InvalidInputError(
                f"the goal of {self.task!r} must be part of the observation, got zeros in its place: this simulator "
                "hides it. Use metaworld 3.1.1 with its observable goals."
            )
        return numpy.asarray(observation, dtype=numpy.float64)

    def step(self, action: numpy.ndarray) -> tuple[numpy.ndarray, float, bool]:
        """One step; returns the next observation ``[39]``, the reward, and whether the task is solved now."""
        observation, reward, _, _, info = self._environment.step(numpy.clip(action, -1.0, 1.0))
        return numpy.asarray(observation, dtype=numpy.float64), float(reward), bool(info["success"] > 0)

    def expert(self, observation: numpy.ndarray) -> numpy.ndarray:
        """What the scripted expert does, ``[4]`` in [-1, 1]."""
        with warnings.catch_warnings():
            # Experts ask for more than the arm can do, and say so at each step.
            warnings.simplefilter("ignore", UserWarning)
            action = self._expert.get_action(observation)
        return numpy.clip(numpy.asarray(action, dtype=numpy.float64), -1.0, 1.0)
