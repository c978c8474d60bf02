"""MT10: ten manipulation tasks of a simulated arm, learned by imitating scripted experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batching.batches import Batches
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.components.sizes import fitting
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.policy import ClonedPolicy
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.schedules import Span
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.worlds import (
    HELD_OUT,
    LONGEST,
    METAWORLD,
    MT10_TASKS,
    Demonstrations,
    Policy,
    expert_success,
    known_expert_success,
    load_demonstrations,
    shared_workers,
    success_rates,
)
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, Problem
from mtl_core.checks import non_negative, one_of, positive_int

__all__ = ["MT10", "DemonstrationBatch"]

_EPOCHS = 20


_loaded: dict[tuple[int, int, float, str], Demonstrations] = {}
"""The demonstrations of this process, by number of episodes, horizon, noise and world."""


@dataclass(frozen=True)
class DemonstrationBatch:
    """Equally many observations of each task, and what the experts do there.

    Attributes:
        observations: task → ``[b, 39]``.
        actions: task → ``[b, 4]``.
    """

    observations: Mapping[str, Tensor]
    actions: Mapping[str, Tensor]


class MT10(Benchmark):
    """Ten manipulation tasks of a simulated arm, learned by imitating scripted experts.

    The simulator is the real Meta-World (extra ``[mt10]``). Its experts play once, with noise on what they do and
    without on what is kept, which takes about two minutes on two cores and stays in the user's cache. The loss of a
    task is the mean squared error to the expert's action; a batch holds equally many transitions of each task. What is
    measured is the success of the learned policy in the simulator, on goals that no demonstration has: after the last
    epoch, as it takes as long as the training, and only in the tasks that are trained.

    All tasks share a perceptron that is not told in which of them it is; each has a linear output of its own, or all
    have the same one. A task whose goal the others' gradients drown, such as reach, loses by being learned jointly.

    Args:
        n_episodes: demonstrations of each task.
        horizon: steps within which a task must be solved, by the experts as by the policy; 150 in the papers, 500 at
            most in Meta-World.
        noise: standard deviation of what is added to the experts' actions while they demonstrate.
        n_goals: goals per task on which a policy is tried out; success is a multiple of 100 % / ``n_goals``.
        width: units of each shared layer.
        layers: how many shared layers.
        heads: ``"per_task"``: an output for each task; ``"one"``: the same for all, as in the papers.
        world: the simulator, as ``package.module:Class`` with the methods of ``mtl_benchmarks.worlds.World``.

    Raises:
        InvalidParameterError: a number is out of range, or ``horizon`` is longer than the simulator allows.

    References:
        Yu et al., *Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning*, CoRL 2019;
        its experts, version 3.1.1.
    """

    name: ClassVar[str] = "mt10"
    tasks: ClassVar[tuple[str, ...]] = MT10_TASKS
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(Metric(f"success_{task}", task, "%", higher_is_better=True) for task in MT10_TASKS),
        Metric("success", "all", "%", higher_is_better=True),
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "Policies imitate scripted experts: the numbers do not compare with those of reinforcement learning on MT10.",
        "The mean success is that of the trained tasks.",
    )

    def __init__(
        self,
        *,
        n_episodes: int = 100,
        horizon: int = 150,
        noise: float = 0.1,
        n_goals: int = 50,
        width: int = 64,
        layers: int = 2,
        heads: Literal["per_task", "one"] = "per_task",
        world: str = METAWORLD,
    ) -> None:
        self.n_episodes = positive_int("n_episodes", n_episodes)
        self.horizon = positive_int("horizon", horizon)
        if world == METAWORLD and horizon > LONGEST:
            raise InvalidParameterError(
                f"`horizon` must be at most {LONGEST}, as many steps as the simulator allows, got {horizon}."
            )
        self.noise = non_negative("noise", noise)
        self.n_goals = positive_int("n_goals", n_goals)
        self.width = positive_int("width", width)
        self.layers = fitting("layers", positive_int("layers", layers), bytes_each=4 * self.width**2)
        # A transition is what is observed and done, in float32.
        fitting("n_episodes", self.n_episodes, bytes_each=4 * (39 + 4) * len(self.tasks) * self.horizon)
        self.heads = one_of("heads", heads, ("per_task", "one"))
        self.world = world

    @property
    def training(self) -> Training:
        """Twenty epochs of Adam with learning rate 1e-3, 32 transitions of each task per step, one evaluation."""
        return Training(
            epochs=_EPOCHS,
            batch_size=32 * len(self.tasks),
            optimizer=OptimizerChoice("adam", {"lr": 1e-3}),
            evaluate_every=Span(_EPOCHS, "epochs"),
        )

    @property
    def demonstrations(self) -> Demonstrations:
        """What the experts did; collected at the first call on a machine.

        Raises:
            MissingExtraError: ``metaworld`` is not installed.
            InvalidInputError: an expert never succeeds, or the cache is damaged or of another version.
        """
        return self._demonstrations(say=None)

    def _demonstrations(self, say: Callable[[str], None] | None) -> Demonstrations:
        key = (self.n_episodes, self.horizon, self.noise, self.world)
        if key not in _loaded:
            _loaded[key] = load_demonstrations(
                shared_workers(),
                n_episodes=self.n_episodes,
                horizon=self.horizon,
                noise=self.noise,
                world=self.world,
                say=say,
            )
        return _loaded[key]

    def prepare(self, say: Callable[[str], None]) -> None:
        """Let the experts play, where what they did is not in the user's cache: about two minutes on two cores.

        Before the first step and not only after the last the simulator is looked for, too: an hour of training must not
        end at a missing one.

        Args:
            say: called with how far it is.

        Raises:
            MissingExtraError: ``metaworld`` is not installed.
            InvalidInputError: an expert never succeeds, or the cache is damaged or of another version.
        """
        expert_success(shared_workers(), horizon=self.horizon, n_goals=self.n_goals, world=self.world, say=say)
        self._demonstrations(say)

    def remarks(self) -> tuple[str, ...]:
        """The experts' own success, where it is known."""
        try:
            found = known_expert_success(horizon=self.horizon, n_goals=self.n_goals, world=self.world)
        except (MissingExtraError, InvalidInputError):  # finished runs are compared where there is no simulator, too
            return ()
        if found is None:
            return ()
        below = [f"{task} {100 * share:.0f} %" for task, share in found.items() if share < 1]
        return (
            f"The experts themselves, on the same {self.n_goals} goals within {self.horizon} steps: mean "
            f"{100 * sum(found.values()) / len(found):.1f} %, 100 % in each task"
            + (f" but {', '.join(below)}." if below else "."),
        )

    def build(self) -> nn.Module:
        """A fresh :class:`~mtl_benchmarks.models.ClonedPolicy`."""
        return ClonedPolicy(tasks=self.tasks, hidden=(self.width,) * self.layers, heads=self.heads)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean squared error to the experts' actions; everything but the tasks' own outputs is shared."""
        assert isinstance(model, ClonedPolicy)
        wanted = tuple(tasks)

        def losses(policy: nn.Module, batch: DemonstrationBatch) -> Any:
            assert isinstance(policy, ClonedPolicy)
            # A pass through the trunk for each task: in one pass for all, each task's gradient would go back through
            # the transitions of all the others.
            features = {task: policy.trunk(batch.observations[task]) for task in wanted}
            found = {
                task: functional.mse_loss(policy.predict(task, features[task]), batch.actions[task]) for task in wanted
            }
            return (found, features) if policy.per_task else found

        return Problem(model, losses, shared=model.shared_parameters(), tasks=wanted)

    def batches(self, *, batch_size: int, seed: int, device: str) -> Batches[DemonstrationBatch]:
        """Shuffled transitions, equally many of each task; an epoch is one pass over the task that has most.

        Raises:
            InvalidParameterError: the batch cannot be divided equally.
        """
        if batch_size % len(self.tasks):
            raise InvalidParameterError(
                f"`batch_size` must be a multiple of {len(self.tasks)}, the tasks that share a batch equally, got "
                f"{batch_size}."
            )
        expert_success(shared_workers(), horizon=self.horizon, n_goals=self.n_goals, world=self.world)
        found = self.demonstrations
        observations = {task: found.observations[found.of(task)].to(device) for task in self.tasks}
        actions = {task: found.actions[found.of(task)].to(device) for task in self.tasks}

        def fetch(rows: Tensor, generator: torch.Generator) -> DemonstrationBatch:
            # `rows` go up to the longest task; the others begin again from their first transition.
            own = {task: rows.to(device) % len(actions[task]) for task in self.tasks}
            return DemonstrationBatch(
                {task: observations[task][own[task]] for task in self.tasks},
                {task: actions[task][own[task]] for task in self.tasks},
            )

        longest = max(len(each) for each in actions.values())
        return Batches(fetch, longest, batch_size=batch_size // len(self.tasks), seed=seed)

    def evaluate_tasks(self, model: nn.Module, tasks: Sequence[str], *, device: str) -> Evaluation:
        """The share of held-out goals that the policy reaches, in percent: of some tasks, and their mean."""
        found = success_rates(
            cast("Policy", model),
            tasks,
            goals=HELD_OUT,
            n_goals=self.n_goals,
            horizon=self.horizon,
            workers=shared_workers(),
            world=self.world,
        )
        percent = {f"success_{task}": 100 * share for task, share in found.items()}
        return {"test": {**percent, "success": sum(percent.values()) / len(percent)}}

    def evaluate(self, model: nn.Module, *, device: str) -> Evaluation:
        """The same of all tasks."""
        return self.evaluate_tasks(model, self.tasks, device=device)
