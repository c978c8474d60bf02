"""Multi-task soft actor-critic on MT10, by the papers' protocol."""

from mtl_benchmarks.sac.agent import SACAgent, Updated
from mtl_benchmarks.sac.arena import Arena
from mtl_benchmarks.sac.configuration import SACConfig
from mtl_benchmarks.sac.protocol import SACProtocol
from mtl_benchmarks.sac.replay import Replay, Transitions
from mtl_benchmarks.sac.reward_scale import RewardScale
from mtl_benchmarks.sac.running import SACProgress, SACResult, train

__all__ = [
    "Arena",
    "Replay",
    "RewardScale",
    "SACAgent",
    "SACConfig",
    "SACProgress",
    "SACProtocol",
    "SACResult",
    "Transitions",
    "Updated",
    "train",
]
