"""Meta-World's ten tasks: the simulator, demonstrations of its scripted experts, and policies tried out in it."""

from mtl_benchmarks.worlds.demonstrations import Demonstrations, load_demonstrations
from mtl_benchmarks.worlds.experts import expert_success, known_expert_success
from mtl_benchmarks.worlds.metaworld import HELD_OUT, LONGEST, TRAINING, MetaWorld
from mtl_benchmarks.worlds.rollouts import METAWORLD, Episode, Policy, World, play, success_rates
from mtl_benchmarks.worlds.tasks import MT10_TASKS
from mtl_benchmarks.worlds.workers import WorkerError, Workers, shared_workers

__all__ = [
    "HELD_OUT",
    "LONGEST",
    "METAWORLD",
    "MT10_TASKS",
    "TRAINING",
    "Demonstrations",
    "Episode",
    "MetaWorld",
    "Policy",
    "WorkerError",
    "Workers",
    "World",
    "expert_success",
    "known_expert_success",
    "load_demonstrations",
    "play",
    "shared_workers",
    "success_rates",
]
