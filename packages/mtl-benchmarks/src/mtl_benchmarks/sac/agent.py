"""Multi-task soft actor-critic, each of its three parts trained by a method on the tasks' gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.sac import GaussianActor, TwinCritic
from mtl_benchmarks.sac.component import Component, Samples
from mtl_benchmarks.sac.protocol import SACProtocol
from mtl_benchmarks.sac.replay import Transitions
from mtl_core import StepReport
from mtl_core.extension import FixedWeights

__all__ = ["SACAgent", "Temperature", "Updated"]


class Temperature(nn.Module):
    r"""The weight :math:`\alpha = e^{\theta}` of the entropy.

    Args:
        value: at the beginning.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        # By its logarithm, so that no step makes it negative.
        self.logarithm = nn.Parameter(torch.tensor([value], dtype=torch.float64).log().float())

    def forward(self) -> Tensor:
        """The weight, a scalar."""
        return self.logarithm.exp()[0]


@dataclass(frozen=True)
class Updated:
    """What an update did.

    Attributes:
        critic: the step of the critics, with losses, weights and Gramian of the tasks.
        actor: that of the actor.
        temperature: that of the temperature.
    """

    critic: StepReport
    actor: StepReport
    temperature: StepReport


class SACAgent:
    r"""An actor, two critics with targets that follow them, and one temperature, shared by all tasks.

    With :math:`y = r + \gamma\,(\min_k \bar Q_k(o', a') - \alpha \log\pi(a'|o'))`, the losses of task :math:`t` are
    means over its samples in the batch,

    .. math::
        L^Q_t = \mathbb{E}_t \sum_k (Q_k(o, a) - y)^2, \quad
        L^\pi_t = \mathbb{E}_t\,[\alpha \log\pi(a|o) - \min_k Q_k(o, a)], \quad
        L^\alpha_t = \alpha\,\mathbb{E}_t\,[-\log\pi(a|o) - \bar H].

    Critics, actor and temperature are trained one after the other, each by a method of its own on the tasks' gradients
    of all its parameters. A task without a sample in the batch is absent. Methods that weigh losses, or own their step,
    train the critics alone, as in the released code; actor and temperature then follow the mean.

    Args:
        tasks: the tasks' names.
        protocol: sizes and rates.
        method: makes a method from a seed; called for each part that it trains.
        seed: of the noise in actions; parameters are initialised by torch's global generator.
        device: where to compute.
        observations: numbers per observation.
        actions: numbers per action.

    References:
        Haarnoja et al., *Soft Actor-Critic Algorithms and Applications*, 2018, section 5.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        protocol: SACProtocol,
        method: Callable[[int], Any],
        *,
        seed: int = 0,
        device: str = "cpu",
        observations: int = 39,
        actions: int = 4,
    ) -> None:
        self.tasks = tuple(tasks)
        self.protocol = protocol
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)
        self.actor = GaussianActor(observations, actions, tasks=self.tasks, hidden=protocol.hidden).to(device)
        self.critic = TwinCritic(observations, actions, tasks=self.tasks, hidden=protocol.hidden).to(device)
        # A copy: the targets begin where the critics do, and follow them by themselves.
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.temperature = Temperature(protocol.temperature).to(device)
        self._sizes = (observations, actions)
        self._components: dict[str, Component] = {
            "critic": Component(self.critic, self._critic_values, self.tasks, method(seed), protocol),
            "actor": Component(self.actor, self._actor_values, self.tasks, method(seed + 1), protocol),
            "temperature": Component(
                self.temperature, self._temperature_values, self.tasks, method(seed + 2), protocol
            ),
        }
        # Such a method for each of the three parts would need losses above a bound, which those of actor and
        # temperature are not.
        if not self._components["critic"].is_on_gradients:
            mean = torch.full((len(self.tasks),), 1 / len(self.tasks))
            self._components["actor"].method = FixedWeights(mean)
            self._components["temperature"].method = FixedWeights(mean)

    def noise(self, n: int) -> Tensor:
        """Standard normal numbers ``[n, actions]``, the same on every device."""
        return torch.randn(n, self._sizes[1], generator=self.generator).to(self.device)

    @torch.no_grad()
    def explore(self, observations: Tensor) -> Tensor:
        """Actions ``[n, a]`` drawn at observations ``[n, o]``, on the CPU."""
        actions: Tensor = self.actor.sample(observations.to(self.device), self.noise(len(observations)))[0]
        return actions.cpu()

    @torch.no_grad()
    def act(self, task: str, observations: Tensor) -> Tensor:
        """The most likely actions, on the CPU: what evaluation does."""
        return self.actor.act(task, observations.to(self.device)).cpu()

    def start_epoch(self, number: int) -> None:
        """Tell methods that count epochs that one begins."""
        for component in self._components.values():
            component.start_epoch(number)

    def update(self, batch: Transitions) -> Updated:
        """One update of the critics, the actor, the temperature and the targets, in this order.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite.
        """
        batch = batch.to(self.device)
        # Sorted once, so that every task's samples are a slice; stable, so that the same batch gives the same sums.
        order = batch.tasks.argsort(stable=True)
        counts = torch.bincount(batch.tasks, minlength=len(self.tasks)).tolist()
        observations, n = batch.observations[order], len(order)
        # Before the critics' step, for all tasks in one pass: no gradient goes through them.
        goals = self._targets(batch)[order]
        critic = self._components["critic"].step(self._by_task(counts, observations, batch.actions[order], goals))
        # The same noise for the actor's step and for the entropy beside it.
        noise = self.noise(n)
        with torch.no_grad():
            # Of the actor as it was before its step, which the temperature is to follow.
            entropy = -self.actor.sample(observations, noise)[1]
        # The actor's loss goes through the critics, whose parameters are not to get gradients from it.
        with _constant(self.critic):
            actor = self._components["actor"].step(self._by_task(counts, observations, noise))
        excess = entropy - self.protocol.target_entropy
        temperature = self._components["temperature"].step(self._by_task(counts, excess))
        with torch.no_grad():
            # By parameters in pairs, in place: the targets are the same tensors for the whole run.
            pairs = zip(self.target.parameters(), self.critic.parameters(), strict=True)
            for target, own in pairs:
                target.lerp_(own, self.protocol.target_rate)
        return Updated(critic, actor, temperature)

    @torch.no_grad()
    def _targets(self, batch: Transitions) -> Tensor:
        actions, log_density = self.actor.sample(batch.following, self.noise(len(batch.rewards)))
        first, second = self.target(batch.following, actions)
        # No episode ends for the critic: the simulator breaks it off, and the task would go on.
        future = torch.minimum(first, second) - self.temperature() * log_density
        found: Tensor = batch.rewards + self.protocol.discount * future
        return found

    def _by_task(self, counts: Sequence[int], *values: Tensor) -> dict[str, Samples]:
        """Values sorted by task, apart."""
        columns = zip(*(value.split(list(counts)) for value in values), strict=True)
        return {task: part for task, part, n in zip(self.tasks, columns, counts, strict=True) if n}

    def _critic_values(self, critic: nn.Module, part: Samples) -> Tensor:
        observations, actions, goals = part
        first, second = critic(observations, actions)
        found: Tensor = (first - goals).square() + (second - goals).square()
        return found

    def _actor_values(self, actor: nn.Module, part: Samples) -> Tensor:
        assert isinstance(actor, GaussianActor)
        observations, noise = part
        actions, log_density = actor.sample(observations, noise)
        first, second = self.critic(observations, actions)
        found: Tensor = self.temperature().detach() * log_density - torch.minimum(first, second)
        return found

    def _temperature_values(self, temperature: nn.Module, part: Samples) -> Tensor:
        found: Tensor = temperature() * part[0]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything a restart needs: plain data and tensors."""
        return {
            "target": self.target.state_dict(),
            "generator": self.generator.get_state(),
            "components": {name: component.state_dict() for name, component in self._components.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.target.load_state_dict(state["target"])
        self.generator.set_state(state["generator"])
        for name, component in self._components.items():
            component.load_state_dict(state["components"][name])


@contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """For a while no gradient is taken by a model's parameters."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)
