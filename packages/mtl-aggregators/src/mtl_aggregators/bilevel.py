"""Bilevel weighting: task weights trained on what a step of the optimiser did to the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn, optim

from mtl_aggregators.adam import Mask, on_host
from mtl_aggregators.facts import Facts
from mtl_aggregators.hypergradient import exact_hypergradient, single_process
from mtl_aggregators.solvers.solution import Vector
from mtl_aggregators.trial import RandomState, TrialOptimizer, preserved
from mtl_aggregators.upper import Outcome, Upper, WorstCaseDecrement
from mtl_aggregators.weight_models import SoftmaxWeights, WeightModel
from mtl_core import (
    InvalidInputError,
    InvalidParameterError,
    NonFiniteLossError,
    Problem,
    StepOptions,
    StepReport,
    checks,
)
from mtl_core.distributed import is_sharded
from mtl_core.step import step as core_step

__all__ = ["Bilevel", "Estimate"]


Estimate = Literal["single_point", "two_point", "symmetric"]
"""How the derivative by the weights is estimated; see ``Bilevel``."""


@dataclass(frozen=True)
class _Probe:
    """A perturbed step whose outcome is still to be seen."""

    before: Vector
    weights: Vector
    direction: Vector
    present: Mask

    def outcome(self, tasks: tuple[str, ...], after: Vector) -> Outcome:
        """What the step did."""
        before, weights = torch.from_numpy(self.before), torch.from_numpy(self.weights)
        return Outcome(tasks, before, torch.from_numpy(after), weights)


class Bilevel(nn.Module):
    r"""Train the task weights so that an upper objective is small after a step of *any* optimiser.

    .. math:: \min_\lambda R(\lambda, \theta), \qquad \theta \leftarrow A(\lambda, \theta)

    alternately, with the optimiser's step :math:`A` on :math:`\sum_i \lambda_i f_i` as a black box: the derivative by
    the weights is estimated from its value at weights that are moved a little,

    .. math:: \hat\nabla_\lambda = \frac mr R(\lambda + r u, \theta)\, u, \qquad u \text{ uniform on the unit sphere.}

    Time and memory do not grow with ``m``: no task's own gradient is ever formed.

    Args:
        upper: the objective :math:`R`, any callable from an ``Outcome`` to a scalar; ``None`` for
            ``WorstCaseDecrement``. One with the method ``respond(outcome)`` is told the outcome after the weights have
            moved, as the adversary of a game needs it. A module's state is saved.
        weights: the trained weights, e.g. ``AuxiliaryWeights``; ``None`` for ``SoftmaxWeights``.
        lookahead: ``"trial"``: a step with moved weights is tried and taken back, then the real one is made with the
            new weights. ``"fused"``: the real step is the one with moved weights, at half the cost.
        probe: ``"same"``: the outcome is the losses of the same batch, one more forward pass. ``"next"``, with
            ``"fused"``: the losses of the next step's batch stand in for it, which costs nothing.
        update_every: train the weights in every k-th step only; the others are plain steps with the weights as they
            are.
        estimate: ``"single_point"``, above. ``"two_point"``: :math:`R` at the unmoved parameters, which the step knows
            anyway, is subtracted. ``"symmetric"``, with ``"trial"``: half the difference of :math:`R` at
            :math:`\lambda \pm ru`, for a second trial step. All have the same mean, and each is far less noisy than the
            one before; only the noise of the last does not grow with :math:`1/r`.
        hypergradient: ``"zeroth_order"``, above, or ``"exact"``: by differentiation through a plain step of gradient
            descent, see ``exact_hypergradient``.
        radius: :math:`r > 0`.
        generator: source of the directions, on the CPU; ``None`` makes one with torch's default seed. Its state is
            part of ``state_dict()``. Every rank of a process group needs the same.

    Raises:
        InvalidParameterError: a setting is out of its range, or two do not go together.

    Note:
        The loss after the step is evaluated with the random numbers of the loss before it, so that dropout does not
        drown the difference. Neither it nor a trial step leaves a trace in parameters, optimiser, buffers or random
        state. In a step whose gradients overflow under a gradient scaler, nothing is learnt. A task that is absent
        from a batch has no weight there and is not perturbed; ``m`` in the estimate counts the perturbed ones.

    References:
        Chen et al., *Feed m Birds with One Scone: Accelerating Multi-task Gradient Balancing via Bi-level
        Optimization*, section 3, algorithms 1 and 2.

    Example:
        >>> import torch
        >>> from mtl_aggregators import AuxiliaryWeights, MainTasks
        >>> from mtl_core.testing import small_problem
        >>> problem, batch = small_problem(2)
        >>> optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
        >>> method = Bilevel(upper=MainTasks("task0"), weights=AuxiliaryWeights(["task1"], start=0.5))
        >>> method.step(problem, batch, optimizer).weights
        tensor([1.0000, 0.4999], dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        upper: Upper | None = None,
        weights: WeightModel | None = None,
        lookahead: Literal["trial", "fused"] = "trial",
        probe: Literal["same", "next"] = "same",
        update_every: int = 1,
        estimate: Estimate = "single_point",
        hypergradient: Literal["zeroth_order", "exact"] = "zeroth_order",
        radius: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.upper: Any = WorstCaseDecrement() if upper is None else upper
        if not callable(self.upper):
            raise InvalidParameterError(
                f"`upper` must be callable on an Outcome, got {type(upper).__name__}. Give e.g. MainTasks('click')."
            )
        self.weight_model = SoftmaxWeights() if weights is None else weights
        self.lookahead = checks.one_of("lookahead", lookahead, ("trial", "fused"))
        self.probe = checks.one_of("probe", probe, ("same", "next"))
        self.update_every = checks.positive_int("update_every", update_every)
        self.estimate = checks.one_of("estimate", estimate, get_args(Estimate))
        self.hypergradient = checks.one_of("hypergradient", hypergradient, ("zeroth_order", "exact"))
        self.radius = checks.positive("radius", radius)
        self.generator = torch.Generator() if generator is None else generator
        if lookahead == "trial" and probe == "next":
            raise InvalidParameterError(
                "`probe='next'` needs lookahead='fused', got 'trial': a step that is taken back has no next one."
            )
        if lookahead == "fused" and estimate == "symmetric":
            raise InvalidParameterError(
                "`estimate='symmetric'` needs lookahead='trial', got 'fused': two steps cannot both be the real one."
            )
        if hypergradient == "exact" and lookahead == "fused":
            raise InvalidParameterError(
                "`hypergradient='exact'` needs lookahead='trial', got 'fused': it needs no perturbed step."
            )
        self._steps = 0
        self._waiting: _Probe | None = None

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        return Facts(
            needs="losses",
            homogeneity=None,
            scale=self.weight_model.scale,
            paper_scale=self.weight_model.scale,
            paper_heads="weighted",
            laws=frozenset(),
            reference="Chen et al., 2024",
        )

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One training step, with its share of training the weights.

        Args:
            problem: the model and its losses.
            batch: what the problem's losses take, or ``MicroBatches``.
            optimizer: any ``torch.optim`` optimiser.
            options: how the step treats heads, clipping, scaling and ranks.

        Returns:
            the report of the real step; its weights are those the step was made with.

        Raises:
            NonFiniteLossError: a loss or the upper objective is not finite.
            InvalidInputError: the options ask for weights per layer, a sharded model is to make a trial step, or the
                weights do not take the losses.
        """
        options = StepOptions() if options is None else options
        if options.per != "model":
            raise InvalidInputError(f"`per` must be 'model' for {type(self).__name__}, got {options.per!r}.")
        due = self._steps % self.update_every == 0
        self._steps += 1
        if due and self.hypergradient == "exact":
            self._learn_exactly(problem, batch, optimizer, options)
        elif due and self.lookahead == "trial":
            self._learn_by_trial(problem, batch, optimizer, options)
        perturbed = due and self.lookahead == "fused"
        lower = _Lower(self, problem, options, perturbed=perturbed, look=self.probe == "same")
        report = core_step(problem, batch, optimizer, lower, **vars(options))
        if lower.outcome is not None and lower.probe is not None:
            self._learn(lower.probe, lower.outcome)
        elif perturbed and self.probe == "next":
            self._waiting = lower.probe
        return report

    def _learn_by_trial(self, problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions) -> None:
        lower = self._try(problem, batch, optimizer, options, None)
        if lower.probe is None or lower.outcome is None:
            return
        if self.estimate != "symmetric":
            self._learn(lower.probe, lower.outcome)
            return
        opposite = self._try(problem, batch, optimizer, options, -lower.probe.direction)
        if opposite.outcome is not None:
            self._learn(lower.probe, lower.outcome, opposite.outcome)

    def _try(
        self,
        problem: Problem,
        batch: Any,
        optimizer: optim.Optimizer,
        options: StepOptions,
        direction: Vector | None,
    ) -> _Lower:
        """A step with moved weights, and back; without an outcome if its gradients overflowed."""
        if is_sharded(problem.shared):
            raise InvalidInputError("`lookahead='trial'` needs whole parameters, got shards. Use lookahead='fused'.")
        scaler = options.scaler
        before = None if scaler is None else scaler.state_dict()
        lower = _Lower(self, problem, options, perturbed=True, look=True, direction=direction)
        with preserved(problem.model), TrialOptimizer(optimizer) as trial:
            stand_in: Any = trial
            core_step(problem, batch, stand_in, lower, **vars(options))
        if scaler is not None and before:
            scaler.load_state_dict(before)
        if not trial.moved:
            lower.outcome = None
        return lower

    def _learn_exactly(self, problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions) -> None:
        single_process(batch, options)
        with preserved(problem.model), torch.no_grad():
            losses = on_host(problem.losses(batch).full(float("nan")))
        present = ~np.isnan(losses)
        weights = torch.from_numpy(self.weight_model.weights(losses, problem.tasks, present))
        found, outcome = exact_hypergradient(problem, batch, optimizer, weights, self.upper, options=options)
        if self._finite(float(self.upper(outcome)) + float(found.sum()), outcome):
            self.weight_model.descend(on_host(found), losses, problem.tasks, present)
            self._respond(outcome)

    def _learn(self, probe: _Probe, outcome: Outcome, opposite: Outcome | None = None) -> None:
        """Train the weights, and then the objective's own parameters, on an outcome."""
        if not outcome.present.any():
            return
        value = float(self.upper(outcome).detach())
        if opposite is not None:
            value = 0.5 * (value - float(self.upper(opposite).detach()))
        elif self.estimate == "two_point":
            value -= float(self.upper(replace(outcome, after=outcome.before)).detach())
        if not self._finite(value, outcome):
            return
        gradient = np.count_nonzero(probe.direction) / self.radius * value * probe.direction
        self.weight_model.descend(gradient, probe.before, outcome.tasks, probe.present & outcome.present)
        self._respond(outcome)

    def _finite(self, value: float, outcome: Outcome) -> bool:
        """Whether there is something to learn from: an objective may need a task that is absent here."""
        if math.isfinite(value):
            return True
        if outcome.present.all() or not np.isnan(on_host(outcome.before)).any():
            raise NonFiniteLossError(
                f"`upper` must be finite, got {value} for losses {outcome.after.tolist()} after the step."
            )
        return False

    def _respond(self, outcome: Outcome) -> None:
        respond: Callable[[Outcome], None] | None = getattr(self.upper, "respond", None)
        if callable(respond):
            respond(outcome)

    def _draw(self, free: Mask) -> Vector:
        """A direction ``[m]`` of unit length, zero where a weight is not free."""
        draws = torch.empty(len(free), dtype=torch.float64).normal_(generator=self.generator).numpy()
        known = np.where(free, draws, 0.0)
        direction: Vector = known / max(float(np.sqrt(known @ known)), np.finfo(np.float64).tiny)
        return direction

    def reset(self) -> None:
        """Start the weights and the objective again; the generator goes on."""
        self._steps = 0
        self._waiting = None
        self.weight_model.reset()
        reset = getattr(self.upper, "reset", None)
        if callable(reset):
            reset()

    def get_extra_state(self) -> dict[str, Any]:
        """Step count, generator and the step whose outcome is awaited."""
        held = self._waiting
        waiting = None if held is None else {k: torch.from_numpy(v.copy()) for k, v in vars(held).items()}
        return {"steps": self._steps, "generator": self.generator.get_state(), "waiting": waiting}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._steps = int(state["steps"])
        self.generator.set_state(state["generator"].cpu())
        held = state["waiting"]
        self._waiting = None if held is None else _Probe(**{k: v.cpu().numpy().copy() for k, v in held.items()})


class _Lower:
    """The lower level of one step: a loss weighting that remembers what it did and sees what became of it."""

    needs: Literal["losses"] = "losses"
    takes_present = True

    def __init__(
        self,
        method: Bilevel,
        problem: Problem,
        options: StepOptions,
        *,
        perturbed: bool,
        look: bool,
        direction: Vector | None = None,
    ) -> None:
        self._direction = direction
        self.probe: _Probe | None = None
        self.outcome: Outcome | None = None
        self._method = method
        self._problem = problem
        self._scaler = options.scaler
        self._perturbed = perturbed
        self._look = look
        self._random = RandomState(problem.model) if perturbed and look else None
        self._scale = None if self._scaler is None else self._scaler.get_scale()

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        method, tasks = self._method, self._problem.tasks
        known = on_host(losses).copy()
        there = np.ones(len(known), dtype=np.bool_)
        if present is not None:
            there = present.cpu().numpy()
            known[~there] = np.nan
        if method._waiting is not None:
            waiting, method._waiting = method._waiting, None
            method._learn(waiting, waiting.outcome(tasks, known))
        weights = method.weight_model.weights(known, tasks, there)
        if self._perturbed:
            direction = self._direction
            if direction is None:
                direction = method._draw(method.weight_model.free(tasks, there))
            weights = weights + method.radius * direction
            self.probe = _Probe(known, weights, direction, there)
        return losses @ torch.from_numpy(weights).to(losses)

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        """Evaluate the losses again, with the random numbers of the first time."""
        if not self._look or self.probe is None or self._random is None:
            return
        if self._scaler is not None and self._scaler.get_scale() < (self._scale or 0.0):
            return
        with preserved(self._problem.model):
            self._random.restore()
            found = on_host(after())
        bad = self.probe.present & ~np.isfinite(found)
        if bad.any():
            names = [task for task, is_bad in zip(self._problem.tasks, bad, strict=True) if is_bad]
            raise NonFiniteLossError(
                f"the losses after the step must be finite, got {found[bad].tolist()} for {names}. Lower the learning "
                "rate.",
                tasks=names,
            )
        self.outcome = self.probe.outcome(self._problem.tasks, found)
