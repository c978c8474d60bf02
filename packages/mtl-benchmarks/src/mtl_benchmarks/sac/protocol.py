"""How soft actor-critic is trained on MT10, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtl_benchmarks.protocol.plain_data import PlainData
from mtl_core import InvalidParameterError
from mtl_core.checks import in_interval, one_of, positive, positive_int

__all__ = ["Grouping", "SACProtocol"]

Grouping = Literal["split", "vmap"]
"""How the tasks' gradients are taken. ``"split"``: a graph for each task's samples, one after the other. ``"vmap"``:
all tasks at once by ``torch.func.vmap``, their samples padded to equally many. The same numbers but for rounding."""


@dataclass(frozen=True, kw_only=True)
class SACProtocol(PlainData):
    """Multi-task soft actor-critic as the papers on gradient balancing train it; the defaults are theirs.

    Args:
        steps: steps in each environment.
        warm_up: steps of random actions before the first update; then come as many updates at once, and after them one
            per step.
        episode: steps of an episode, after which all environments begin anew together; its end is no end for the
            critic, which goes on counting rewards beyond it. The last one of a run is shorter where ``steps`` is no
            multiple of it.
        batch_size: transitions per update, drawn uniformly from those of all tasks; a method that takes three batches
            gets a third of them in each.
        capacity: transitions that are kept, of all tasks together.
        hidden: units of the hidden layers, of actor and critics alike.
        lr: learning rate of Adam for actor, critics and temperature.
        discount: of a reward one step later.
        target_rate: how far the target critics follow the critics in each update.
        temperature: the weight of the entropy at the beginning, one for all tasks.
        target_entropy: what the temperature steers to.
        reward_rate: rate of the exponential moving mean and variance by whose root each task's rewards are divided.
        evaluate_every: steps from one evaluation to the next; it waits for the end of an episode.
        grouping: how the tasks' gradients are taken, "split" or "vmap".

    Raises:
        InvalidParameterError: a value out of range.

    References:
        Settings of the released multi-task agent (MTRL) and of the run scripts for MT10 of Liu et al.,
        *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS 2021.
    """

    steps: int = 2_000_000
    warm_up: int = 1500
    episode: int = 150
    batch_size: int = 1280
    capacity: int = 1_000_000
    hidden: tuple[int, ...] = (400, 400, 400)
    lr: float = 3e-4
    discount: float = 0.99
    target_rate: float = 0.005
    temperature: float = 1.0
    target_entropy: float = -4.0
    reward_rate: float = 0.001
    evaluate_every: int = 30_000
    grouping: Grouping = "split"

    def __post_init__(self) -> None:
        for name in ("steps", "warm_up", "episode", "batch_size", "capacity", "evaluate_every"):
            positive_int(name, getattr(self, name))
        for name in ("lr", "temperature"):
            positive(name, getattr(self, name))
        for name in ("discount", "target_rate", "reward_rate"):
            in_interval(name, getattr(self, name), 0, 1)
        if not self.hidden:
            raise InvalidParameterError("`hidden` must name at least one layer, got none.")
        object.__setattr__(self, "hidden", tuple(positive_int("hidden", units) for units in self.hidden))
        one_of("grouping", self.grouping, ("split", "vmap"))
        if self.warm_up > self.steps:
            raise InvalidParameterError(
                f"`warm_up` must be at most `steps`, or nothing is ever learned, got {self.warm_up} of {self.steps} "
                "steps."
            )

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation is due after an episode that ends at this step; there is one at the very end."""
        return step == self.steps or step // self.evaluate_every > (step - self.episode) // self.evaluate_every

    def updates(self, step: int) -> int:
        """Updates after the step with this number, from 1."""
        if step < self.warm_up:
            return 0
        return self.warm_up if step == self.warm_up else 1
