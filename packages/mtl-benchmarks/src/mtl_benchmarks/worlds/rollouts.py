"""Episodes in a world: of an expert with noise, and of a policy that is tried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from torch import Tensor, nn

from mtl_benchmarks.worlds.workers import Workers
from mtl_core.checks import positive_int
from mtl_core.extension import load_spec

__all__ = ["METAWORLD", "Episode", "Policy", "World", "play", "success_rates"]

METAWORLD = "mtl_benchmarks.worlds.metaworld:MetaWorld"
"""The simulator, as workers look it up."""

Policy = nn.Module
"""A module that takes observations ``[n, 39]`` and a task's number, and returns actions ``[n, 4]``."""


class World(Protocol):
    """What is asked of a simulator of one task."""

    def begin(self, goal: int) -> numpy.ndarray:
        """Start an episode; returns the first observation."""
        ...

    def step(self, action: numpy.ndarray) -> tuple[numpy.ndarray, bool]:
        """One step; returns the next observation, and whether the task is solved now."""
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
        observation, success = world.step(action if noise is None else action + noise())
        if success:
            break
    return Episode(numpy.array(seen, dtype=numpy.float32), numpy.array(done, dtype=numpy.float32), success)


def success_rates(
    policy: Policy,
    tasks: Sequence[str],
    numbers: Mapping[str, int],
    *,
    goals: int,
    n_goals: int,
    horizon: int,
    workers: Workers,
    world: str = METAWORLD,
) -> dict[str, float]:
    """The share of goals that a policy reaches, task → share in [0, 1].

    The workers go through the episodes side by side. Each episode is computed by itself, one observation at a time, so
    that the result does not depend on how many workers there are; the simulator takes twenty times as long as the
    policy.

    Args:
        policy: takes observations ``[n, 39]`` and the task's number.
        tasks: the tasks to try.
        numbers: task → its number for the policy.
        goals: which family of goals, as for ``MetaWorld``.
        n_goals: how many of them; shares are multiples of 1 / ``n_goals``.
        horizon: the most steps of an episode.
        workers: where to run.
        world: the simulator, as ``package.module:Class``.

    Raises:
        InvalidInputError: the simulator refuses.
    """
    positive_int("n_goals", n_goals)
    policy = policy.cpu() if any(p.device.type != "cpu" for p in policy.parameters()) else policy
    jobs = [(world, task, goals, goal, horizon, policy, numbers[task]) for goal in range(n_goals) for task in tasks]
    found = workers.map(_try_policy, jobs)
    solved = dict.fromkeys(tasks, 0)
    for job, success in zip(jobs, found, strict=True):
        solved[job[1]] += success
    return {task: count / n_goals for task, count in solved.items()}


_worlds: dict[tuple[str, str, int], World] = {}
"""The simulators of this process; making one takes seconds."""


def world_of(spec: str, task: str, goals: int) -> World:
    """The simulator of a task in this process, made on first use."""
    key = (spec, task, goals)
    if key not in _worlds:
        _worlds[key] = load_spec("world", spec)(task, goals)
    return _worlds[key]


def _try_policy(job: tuple[str, str, int, int, int, Policy, int]) -> bool:
    spec, task, goals, goal, horizon, policy, number = job

    def act(observation: numpy.ndarray) -> numpy.ndarray:
        with torch.no_grad():
            actions: Tensor = policy(torch.from_numpy(observation).to(torch.float32)[None], number)
        return actions[0].double().numpy()

    return play(world_of(spec, task, goals), goal, act, horizon=horizon).success
