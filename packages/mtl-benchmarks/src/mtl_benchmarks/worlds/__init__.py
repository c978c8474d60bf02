"""Meta-World's ten tasks: the simulator, demonstrations of its scripted experts, and policies tried out in it."""

from mtl_benchmarks.worlds.demonstrations import Demonstrations, load_demonstrations
from mtl_benchmarks.worlds.metaworld import HELD_OUT, MT10_TASKS, TRAINING, MetaWorld
from mtl_benchmarks.worlds.rollouts import Episode, Policy, World, play, success_rates
from mtl_benchmarks.worlds.workers import WorkerError, Workers

__all__ = [
    "HELD_OUT",
    "MT10_TASKS",
    "TRAINING",
    "Demonstrations",
    "Episode",
    "MetaWorld",
    "Policy",
    "WorkerError",
    "Workers",
    "World",
    "load_demonstrations",
    "play",
    "success_rates",
]
