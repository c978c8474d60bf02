"""Bilevel weighting: task weights trained on what a step of the optimiser did to the losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import optim

from mtl_aggregators.bases.adam import Mask, on_host
from mtl_aggregators.bases.facts import Facts
from mtl_aggregators.bilevel.hypergradient import exact_hypergradient, refuse_inexact
from mtl_aggregators.bilevel.lower_level import LowerLevel, Probe
from mtl_aggregators.bilevel.objectives import Outcome, Responds, Upper, WorstCaseDecrement
from mtl_aggregators.bilevel.weight_models import SoftmaxWeights, WeightModel
from mtl_aggregators.solvers.solution import Vector
from mtl_core import (
    InvalidInputError,
    InvalidParameterError,
    NonFiniteLossError,
    Problem,
    StepOptions,
    StepReport,
    checks,
)
from mtl_core.extension import (
    Resets,
    SavedState,
    begin,
    check_finite_losses,
    evaluate_without_graph,
    guarded,
    offers,
    preserved,
)

__all__ = ["Bilevel", "Estimate"]

_Move = Callable[[Mask], tuple[Vector, Vector]]

Estimate = Literal["single_point", "two_point", "antithetic", "symmetric"]
"""How the derivative by the weights is estimated; see ``Bilevel``."""


class Bilevel(SavedState):
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
            anyway, is subtracted. ``"antithetic"``: that, and every second time the weights are moved the opposite way
            of the time before, so that most of both estimates' noise cancels in the average that Adam takes.
            ``"symmetric"``, with ``"trial"``: half the difference of :math:`R` at :math:`\lambda \pm ru`, for a second
            trial step. All have the same mean, and each is far less noisy than the one before; only the noise of the
            last does not grow with :math:`1/r`.
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
        state. A trial is clipped as the step is; a callable that clips sees it, and forgets it if it offers
        ``state_dict`` and ``load_state_dict``. In a step whose gradients overflow under a gradient scaler, nothing is
        learnt. A task that is absent from a batch has no weight there and is not perturbed; ``m`` in the estimate
        counts the perturbed ones.

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
            kind = type(upper).__name__
            raise InvalidParameterError(
                f"`upper` must be callable on an Outcome, got {kind}. Give e.g. MainTasks('a')."
            )
        self.weight_model = SoftmaxWeights() if weights is None else weights
        if isinstance(self.weight_model, WeightModel):
            self.weight_model.owner = type(self).__name__
        self.lookahead = checks.one_of("lookahead", lookahead, ("trial", "fused"))
        self.probe = checks.one_of("probe", probe, ("same", "next"))
        self.update_every = checks.positive_int("update_every", update_every)
        self.estimate = checks.one_of("estimate", estimate, get_args(Estimate))
        self.hypergradient = checks.one_of("hypergradient", hypergradient, ("zeroth_order", "exact"))
        self.radius = checks.positive("radius", radius)
        self.generator = checks.generator("generator", generator)
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
        self._waiting: Probe | None = None
        self._last: Vector | None = None  # the direction whose opposite is next

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        scale = self.weight_model.scale
        return Facts(
            needs="losses",
            homogeneity=None,
            scale=scale,
            paper_scale=scale,
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
            InvalidInputError: the options ask for weights per layer, the optimiser needs a closure, a sharded model is
                to make a trial step, or the weights do not take the losses.
        """
        options = StepOptions() if options is None else options
        if options.per != "model":
            raise InvalidInputError(
                f"`per` must be 'model' for {type(self).__name__}, got {options.per!r}: its weights are one per loss."
            )
        with guarded(problem, optimizer, self, options):
            notes = begin(problem, optimizer, options)
            report = self._step(problem, batch, optimizer, options)
        return replace(report, events=(*notes, *report.events))

    def _step(self, problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions) -> StepReport:
        due = self._steps % self.update_every == 0
        self._steps += 1
        if due and self.hypergradient == "exact":
            self._learn_exactly(problem, batch, optimizer, options)
        elif due and self.lookahead == "trial":
            self._learn_by_trial(problem, batch, optimizer, options)
        if not due or self.lookahead == "trial":
            return self._lower(problem, options).make(batch, optimizer)
        # Fused: this step, with moved weights, is the real one and the probe.
        lower = self._lower(problem, options, move=self._move(problem), look=self.probe == "same")
        report = lower.make(batch, optimizer)
        if self.probe == "next":
            self._waiting = lower.probe
        elif lower.probe is not None and lower.outcome is not None:
            self._learn(lower.probe, lower.outcome)
        return report

    def _lower(
        self, problem: Problem, options: StepOptions, *, move: _Move | None = None, look: bool = False
    ) -> LowerLevel:
        def weigh(losses: Vector, present: Mask) -> Vector:
            # With probe="next" these losses are what the step before led to. Learnt from here, in the middle of the
            # forward pass, since the weights that this step is made with are to know of it.
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                self._learn(waiting, waiting.outcome(problem.tasks, losses))
            return self.weight_model.weights(losses, problem.tasks, present)

        return LowerLevel(problem, options, weigh=weigh, move=move, look=look)

    def _move(self, problem: Problem, direction: Vector | None = None) -> _Move:
        """A displacement of the weights by the radius, in a drawn direction where none is given."""

        def move(present: Mask) -> tuple[Vector, Vector]:
            along = self._draw(self.weight_model.free(problem.tasks, present)) if direction is None else direction
            return self.radius * along, along

        return move

    def _learn_by_trial(self, problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions) -> None:
        lower = self._lower(problem, options, move=self._move(problem), look=True)
        lower.attempt(batch, optimizer)
        if lower.probe is None or lower.outcome is None:
            return
        if self.estimate != "symmetric":
            self._learn(lower.probe, lower.outcome)
            return
        # In the same direction, or the difference would be mostly that between two directions.
        back = self._lower(problem, options, move=self._move(problem, -lower.probe.direction), look=True)
        back.attempt(batch, optimizer)
        if back.outcome is not None:
            self._learn(lower.probe, lower.outcome, back.outcome)

    def _learn_exactly(self, problem: Problem, batch: Any, optimizer: optim.Optimizer, options: StepOptions) -> None:
        refuse_inexact(batch, options)
        with preserved(problem.model):
            found = evaluate_without_graph(problem, batch)
        losses = on_host(found.full(float("nan")))
        present = np.zeros(problem.n_tasks, dtype=np.bool_)
        present[list(found.index)] = True
        check_finite_losses(torch.from_numpy(losses), problem.tasks, found.index)  # NaN would pass for absent
        weights = torch.from_numpy(self.weight_model.weights(losses, problem.tasks, present))
        slope, outcome = exact_hypergradient(problem, batch, optimizer, weights, self.upper, options=options)
        if self._finite(float(self.upper(outcome)) + float(slope.sum()), outcome):
            self.weight_model.descend(on_host(slope), losses, problem.tasks, present)
            self._respond(outcome)

    def _learn(self, probe: Probe, outcome: Outcome, opposite: Outcome | None = None) -> None:
        """Train the weights, and then the objective's own parameters, on an outcome."""
        if not outcome.present.any():
            return
        value = float(self.upper(outcome).detach())
        if opposite is not None:
            value = 0.5 * (value - float(self.upper(opposite).detach()))
        elif self.estimate != "single_point":
            # The objective without a step. It does not depend on the direction, so that it takes no bias in, only noise
            # out.
            value -= float(self.upper(replace(outcome, after=outcome.before)).detach())
        if not self._finite(value, outcome):
            return
        # m/r · R · u, with m the number of weights that were moved. A direction with a component that happens to be
        # exactly zero has probability zero.
        gradient = np.count_nonzero(probe.direction) / self.radius * value * probe.direction
        # At the losses that the weights were made from: the softmax is pulled back there.
        self.weight_model.descend(gradient, probe.before, outcome.tasks, probe.present & outcome.present)
        self._respond(outcome)

    def _finite(self, value: float, outcome: Outcome) -> bool:
        """Whether there is something to learn from: an objective may need a task that is absent here."""
        if math.isfinite(value):
            return True
        # With every task there, nothing excuses a NaN.
        if outcome.present.all() or not np.isnan(on_host(outcome.before)).any():
            raise NonFiniteLossError(
                f"`upper` must be finite, got {value} for losses {outcome.after.tolist()} after the step."
            )
        return False

    def _respond(self, outcome: Outcome) -> None:
        if offers(self.upper, Responds):
            self.upper.respond(outcome)

    def _draw(self, free: Mask) -> Vector:
        """A direction ``[m]`` of unit length, zero where a weight is not free."""
        # Used up either way: where other tasks are free now, the opposite would not be one.
        last, self._last = self._last, None
        if last is not None and np.array_equal(last != 0.0, free):
            return -last
        draws = torch.empty(len(free), dtype=torch.float64, device="cpu").normal_(generator=self.generator).numpy()
        # One number per task is drawn, free or not, so that ranks and resumed runs stay in step. A normal vector,
        # normalised, is uniform on the sphere of the free ones.
        known = np.where(free, draws, 0.0)
        direction: Vector = known / max(float(np.sqrt(known @ known)), np.finfo(np.float64).tiny)
        if self.estimate == "antithetic":
            self._last = direction
        return direction

    def reset(self) -> None:
        """Start the weights and the objective again; the generator goes on."""
        self._steps = 0
        self._waiting = self._last = None
        self.weight_model.reset()
        if offers(self.upper, Resets):
            self.upper.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """Step count, generator, the step whose outcome is awaited and the direction whose opposite is next."""
        held = self._waiting
        waiting = None if held is None else {k: torch.from_numpy(v.copy()) for k, v in vars(held).items()}
        last = None if self._last is None else torch.from_numpy(self._last.copy())
        return {"steps": self._steps, "generator": self.generator.get_state(), "waiting": waiting, "last": last}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._steps = int(state["steps"])
        self.generator.set_state(state["generator"].cpu())
        self._last = None if state["last"] is None else on_host(state["last"]).copy()
        held = state["waiting"]
        self._waiting = None if held is None else Probe(**{k: v.cpu().numpy().copy() for k, v in held.items()})
