"""The moving parts of a run of soft actor-critic, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import torch

from mtl_benchmarks.configuration.making import make_method
from mtl_benchmarks.engine.recorder import conflict_statistics
from mtl_benchmarks.sac.agent import SACAgent, Updated
from mtl_benchmarks.sac.arena import Arena
from mtl_benchmarks.sac.configuration import SACConfig
from mtl_benchmarks.sac.replay import Replay, Transitions
from mtl_benchmarks.sac.reward_scale import RewardScale

__all__ = ["Training"]

_N_ACTIONS = 4


class Training:
    """What one run trains; it is taken up where an episode ended.

    Args:
        config: the resolved configuration.

    Attributes:
        step: steps taken in each environment.
        rows: one per evaluation: ``step``, ``success`` and ``success_*`` in percent, the ``temperature``, and the means
            since the evaluation before of each task's loss of the critics, of the ``reward`` per step before scaling,
            and of what :func:`~mtl_benchmarks.engine.recorder.conflict_statistics` says of the critics' gradients,
            where the method looks at them.
    """

    def __init__(self, config: SACConfig) -> None:
        self.config = config
        self.protocol = config.protocol
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self._arena = Arena(config.tasks, world=config.world, seed=config.seed)
        self._scale = RewardScale(len(config.tasks), rate=config.protocol.reward_rate)
        # The simulator says how long an observation is; an episode begins the same way every time, so that asking
        # changes nothing.
        size = self._arena.begin().shape[1]
        self._replay = Replay(config.protocol.capacity, size, _N_ACTIONS)
        self._agent = SACAgent(
            config.tasks,
            config.protocol,
            lambda seed: make_method(config.method, seed=seed, device=config.device),
            seed=config.seed,
            device=config.device,
            observations=size,
            actions=_N_ACTIONS,
        )
        self._seen: list[dict[str, float]] = []

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.protocol.steps

    def episode(self) -> None:
        """One episode in each environment, with its updates, and the evaluation where one is due after it.

        To methods that count epochs it is one.
        """
        self._agent.start_epoch(self.step // self.protocol.episode)
        rewards: list[float] = []
        updates: list[Updated] = []
        observations = self._arena.begin()
        for _ in range(min(self.protocol.episode, self.protocol.steps - self.step)):
            self.step += 1
            actions = self._actions(observations)
            following, found = self._arena.step(actions.double().numpy())
            rewards.append(float(found.mean()))
            self._keep(observations, actions, found, following)
            observations = following
            updates += [self._update() for _ in range(self.protocol.updates(self.step))]
        self._seen.append(self._summary(rewards, updates))
        if self.protocol.is_evaluated(self.step):
            self._evaluate()

    def _update(self) -> Updated:
        return self._agent.update(self._replay.draw(self.protocol.batch_size, self._agent.generator))

    def _actions(self, observations: numpy.ndarray) -> torch.Tensor:
        # Uniform in [-1, 1]: an untrained actor stays near the middle, and the replay would hold little else.
        if self.step <= self.protocol.warm_up:
            return 2 * torch.rand(len(observations), _N_ACTIONS, generator=self._agent.generator) - 1
        return self._agent.explore(torch.from_numpy(observations).float())

    def _keep(
        self, observations: numpy.ndarray, actions: torch.Tensor, rewards: numpy.ndarray, following: numpy.ndarray
    ) -> None:
        self._replay.add(
            Transitions(
                torch.from_numpy(observations).float(),
                actions,
                # Scaled when they are kept: what the scale learns later does not change what was experienced.
                torch.from_numpy(self._scale(rewards)).float(),
                torch.from_numpy(following).float(),
                torch.arange(len(rewards)),
            )
        )

    def _summary(self, rewards: list[float], updates: list[Updated]) -> dict[str, float]:
        found = {"reward": sum(rewards) / len(rewards)}
        if updates:
            losses = torch.stack([update.critic.losses for update in updates]).double().cpu().nanmean(0)
            found |= {f"loss_{task}": value for task, value in zip(self.config.tasks, losses.tolist(), strict=True)}
            gramians = [update.critic.gramian for update in updates if update.critic.gramian is not None]
            if len(gramians) == len(updates) and len(self.config.tasks) > 1:
                found |= conflict_statistics(torch.stack(gramians).double().cpu())
        return found

    def _evaluate(self) -> None:
        def act(task: str, observation: numpy.ndarray) -> numpy.ndarray:
            actions = self._agent.act(task, torch.from_numpy(observation).float()[None])
            found: numpy.ndarray = actions[0].double().numpy()
            return found

        solved = self._arena.successes(act, horizon=self.protocol.episode)
        percent = {f"success_{task}": 100.0 * success for task, success in solved.items()}
        # Episodes of the warm-up have no updates, and so no losses.
        names = dict.fromkeys(name for row in self._seen for name in row)
        means = {}
        for name in names:
            values = [row[name] for row in self._seen if name in row]
            means[name] = sum(values) / len(values)
        temperature = float(self._agent.temperature().detach())
        success = sum(percent.values()) / len(percent)
        self.rows.append({"step": self.step, "success": success, **percent, "temperature": temperature, **means})
        self._seen = []

    def values(self) -> dict[str, float]:
        """What stands for the run: its best evaluation, the first of equal ones, and the last."""
        best = max(self.rows, key=lambda row: row["success"])
        successes = {name: value for name, value in best.items() if name.startswith("success_")}
        own = {"best_success": best["success"], "best_step": best["step"], "success": self.rows[-1]["success"]}
        return {**own, **successes}

    def state_dict(self) -> dict[str, Any]:
        """Everything a restart needs: plain data and tensors."""
        return {
            "step": self.step,
            "rows": list(self.rows),
            "seen": list(self._seen),
            "agent": self._agent.state_dict(),
            "replay": self._replay.state_dict(),
            "scale": self._scale.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.step, self.rows, self._seen = int(state["step"]), list(state["rows"]), list(state["seen"])
        self._agent.load_state_dict(state["agent"])
        self._replay.load_state_dict(state["replay"])
        self._scale.load_state_dict(state["scale"])
