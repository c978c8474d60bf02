"""Episodes in a world: of an expert with noise, and of a policy that is tried out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn

from mtl_benchmarks.worlds.workers import Workers
from mtl_core import InvalidInputError
from mtl_core.checks import positive_int
from mtl_core.extension import load_spec

__all__ = ["METAWORLD", "Episode", "Policy", "World", "play", "success_rates"]

METAWORLD = "mtl_benchmarks.worlds.metaworld:MetaWorld"
"""The simulator, as workers look it up."""

_JOB = 5
"""Goals per job: few enough to keep all processes busy to the end, many enough that sending the policy is nothing."""


class Policy(Protocol):
    """What can be tried out in a world; a module, so that it can be sent to another process."""

    def act(self, task: str, observations: Tensor) -> Tensor:
        """Actions ``[n, 4]`` at observations ``[n, 39]`` of a task."""
        ...


class World(Protocol):
    """What is asked of a simulator of one task."""

    def begin(self, goal: int) -> numpy.ndarray:
        """Start an episode; returns the first observation."""
        ...

    def step(self, action: numpy.ndarray) -> tuple[numpy.ndarray, float, bool]:
        """One step; returns the next observation, the reward, and whether the task is solved now."""
        ...

    def expert(self, observation: numpy.ndarray) -> numpy.ndarray:
        """What an expert does."""
        ...


@dataclass(frozen=True)
class Episode:
    """What was seen and what should have been done, step by step.

    Attributes:
        observations: ``[t, 39]`` float32.
        actions: ``[t, 4]`` float32, the expert's, without noise.
        success: whether the task was solved at some step, at which the episode ends.
    """

    observations: numpy.ndarray
    actions: numpy.ndarray
    success: bool


def play(
    world: World,
    goal: int,
    act: Callable[[numpy.ndarray], numpy.ndarray],
    *,
    horizon: int,
    noise: Callable[[], numpy.ndarray] | None = None,
) -> Episode:
    """One episode, which ends where the task is solved or after ``horizon`` steps.

    Args:
        world: the simulator.
        goal: number of the goal.
        act: what to do at an observation; kept as the episode's actions.
        horizon: the most steps.
        noise: added to what is done, and not to what is kept.
    """
    observation, success = world.begin(goal), False
    seen, done = [], []
    for _ in range(horizon):
        action = act(observation)
        seen.append(observation)
        done.append(action)
        # The expert's own action is kept, what was done is disturbed: the policy learns what to do from where noise has
        # led.
        observation, _, success = world.step(action if noise is None else action + noise())
        if success:
            break
    return Episode(numpy.array(seen, dtype=numpy.float32), numpy.array(done, dtype=numpy.float32), success)


def success_rates(
    policy: Policy,
    tasks: Sequence[str],
    *,
    goals: int,
    n_goals: int,
    horizon: int,
    workers: Workers,
    world: str = METAWORLD,
    first: int = 0,
) -> dict[str, float]:
    """The share of goals that a policy reaches, task → share in [0, 1].

    The workers go through the episodes side by side. Each episode is computed by itself, one observation at a time, so
    that the result does not depend on how many workers there are; the simulator takes longer than the policy.

    Args:
        policy: a module; it is copied, and the copy is tried out on the CPU in evaluation mode.
        tasks: the tasks to try.
        goals: which family of goals, as for ``MetaWorld``.
        n_goals: how many of them; shares are multiples of 1 / ``n_goals``.
        horizon: the most steps of an episode.
        workers: where to run.
        world: the simulator, as ``package.module:Class``.
        first: number of the first goal.

    Raises:
        InvalidInputError: the simulator refuses.
    """
    positive_int("n_goals", n_goals)
    assert isinstance(policy, nn.Module)
    # A copy, since the policy goes on being trained, and its mode is not to change.
    copied = copy.deepcopy(policy).cpu().eval()
    starts = range(first, first + n_goals, _JOB)
    jobs = [
        (world, task, goals, range(start, min(start + _JOB, first + n_goals)), horizon, copied)
        for start in starts
        for task in tasks
    ]
    solved = dict.fromkeys(tasks, 0)
    for job, successes in zip(jobs, workers.map(_try_policy, jobs), strict=True):
        solved[job[1]] += successes
    return {task: count / n_goals for task, count in solved.items()}


_worlds: dict[tuple[str, str, int], World] = {}
"""The simulators of this process; making one takes seconds."""


def world_of(spec: str, task: str, goals: int) -> World:
    """The simulator of a task in this process, made on first use.

    Raises:
        InvalidInputError: what the specification names makes no simulator of a task and a family of goals.
    """
    key = (spec, task, goals)
    if key not in _worlds:
        _worlds[key] = _made(spec, load_spec("world", spec), task, goals)
    return _worlds[key]


def _made(spec: str, factory: Callable[..., Any], task: str, goals: int) -> World:
    try:
        inspect.signature(factory).bind(task, goals)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"world {spec!r} must take a task and a family of goals, got one that does not: {error}. See "
            "mtl_benchmarks.worlds.World."
        ) from None
    made = factory(task, goals)
    missing = [name for name in ("begin", "step", "expert") if not callable(getattr(made, name, None))]
    if missing:
        raise InvalidInputError(
            f"world {spec!r} must have begin, step and expert, got {type(made).__name__} without {', '.join(missing)}. "
            "See mtl_benchmarks.worlds.World."
        )
    found: World = made
    return found


def _try_policy(job: tuple[str, str, int, range, int, Any]) -> int:
    """How many of a job's goals are reached."""
    spec, task, goals, numbers, horizon, policy = job

    def act(observation: numpy.ndarray) -> numpy.ndarray:
        with torch.no_grad():
            actions: Tensor = policy.act(task, torch.from_numpy(observation).to(torch.float32)[None])
        return actions[0].double().numpy()

    return sum(play(world_of(spec, task, goals), goal, act, horizon=horizon).success for goal in numbers)
