r"""Actor and critics of soft actor-critic for MT10: one network for all tasks, none told which it is in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.worlds.tasks import MT10_TASKS
from mtl_core import InvalidParameterError
from mtl_core.checks import positive_int

__all__ = ["GaussianActor", "TwinCritic", "perceptron"]

_HIDDEN = (400, 400, 400)


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them; Xavier-uniform weights, zero biases."""
    sizes = [positive_int("inputs", inputs), *(positive_int("hidden", h) for h in hidden), outputs]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layer = nn.Linear(a, positive_int("outputs", b))
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class GaussianActor(TaskModel):
    r"""A policy :math:`a = \tanh(\mu(o) + \sigma(o)\, \epsilon)` with :math:`\epsilon` standard normal.

    :math:`\log \sigma` is squeezed into its bounds by a hyperbolic tangent. Every parameter is shared.

    Args:
        observations: numbers per observation; 39 in Meta-World.
        actions: numbers per action, each in (−1, 1).
        tasks: the tasks' names.
        hidden: units of the hidden layers.
        log_std_bounds: where :math:`\log \sigma` lies.

    Raises:
        InvalidParameterError: the bounds are not a lower and a higher number.

    References:
        Haarnoja et al., *Soft Actor-Critic Algorithms and Applications*, 2018, appendix C; sizes and bounds of the
        released multi-task agent (MTRL).

    Example:
        >>> actor = GaussianActor(39, 4)
        >>> action, log_probability = actor.sample(torch.zeros(2, 39), torch.zeros(2, 4))
        >>> action.shape, log_probability.shape
        (torch.Size([2, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        observations: int = 39,
        actions: int = 4,
        *,
        tasks: Iterable[str] = MT10_TASKS,
        hidden: Sequence[int] = _HIDDEN,
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
    ) -> None:
        super().__init__(tasks)
        low, high = log_std_bounds
        if not low < high:
            raise InvalidParameterError(f"`log_std_bounds` must be a lower and a higher number, got {log_std_bounds}.")
        self.log_std_bounds = (low, high)
        self.layers = perceptron(observations, hidden, 2 * positive_int("actions", actions))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """None: nothing is one task's own."""
        return ()

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Means before the squashing and logarithms of the deviations, each ``[..., actions]``."""
        mean, raw = self.layers(observations).chunk(2, dim=-1)
        low, high = self.log_std_bounds
        return mean, low + (high - low) / 2 * (raw.tanh() + 1)

    def act(self, task: str, observations: Tensor) -> Tensor:
        """The most likely action before squashing, squashed: what evaluation does, in whichever task."""
        return self(observations)[0].tanh()  # type: ignore[no-any-return]

    def sample(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        r"""Actions and the logarithms of their densities.

        .. math::
            \log \pi(a|o) = \sum_k \Big( -\tfrac12 \epsilon_k^2 - \log \sigma_k - \tfrac12 \log 2\pi
            - \log(1 - a_k^2 + 10^{-6}) \Big)

        Args:
            observations: ``[..., observations]``.
            noise: standard normal numbers ``[..., actions]``; given from outside, so that it may be drawn per task
                under ``vmap`` and repeated.

        Returns:
            actions ``[..., actions]`` and log-densities ``[...]``.
        """
        mean, log_std = self(observations)
        action = (mean + log_std.exp() * noise).tanh()
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # The density of tanh(x) is that of x over the derivative 1 − tanh². The constant keeps the logarithm finite
        # where an action rounds to ±1.
        return action, (normal - (1 - action.square() + 1e-6).log()).sum(-1)


class TwinCritic(TaskModel):
    """Two estimates of an action's value, of which the smaller one counts. Every parameter is shared.

    Args:
        observations: numbers per observation.
        actions: numbers per action.
        tasks: the tasks' names.
        hidden: units of the hidden layers.

    References:
        Fujimoto et al., *Addressing Function Approximation Error in Actor-Critic Methods*, ICML 2018; sizes of the
        released multi-task agent (MTRL).

    Example:
        >>> first, second = TwinCritic(39, 4)(torch.zeros(2, 39), torch.zeros(2, 4))
        >>> first.shape, second.shape
        (torch.Size([2]), torch.Size([2]))
    """

    def __init__(
        self,
        observations: int = 39,
        actions: int = 4,
        *,
        tasks: Iterable[str] = MT10_TASKS,
        hidden: Sequence[int] = _HIDDEN,
    ) -> None:
        super().__init__(tasks)
        inputs = positive_int("observations", observations) + positive_int("actions", actions)
        self.first = perceptron(inputs, hidden, 1)
        self.second = perceptron(inputs, hidden, 1)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """None: nothing is one task's own."""
        return ()

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Both values ``[...]`` of ``actions [..., actions]`` at ``observations [..., observations]``."""
        both = torch.cat([observations, actions], dim=-1)
        return self.first(both)[..., 0], self.second(both)[..., 0]
