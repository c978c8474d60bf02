"""COST: continual optimisation with symmetry teleportation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, get_args

import torch
from torch.optim import Optimizer

from mtl_core import InvalidParameterError, Problem, checks
from mtl_core.extension import together
from mtl_teleport import arguments, ranks
from mtl_teleport.adapters.contract import check_session
from mtl_teleport.adapters.displacement import check_displacement
from mtl_teleport.adapters.low_rank import LoRA
from mtl_teleport.adapters.protocol import Adapter
from mtl_teleport.aim import Aim
from mtl_teleport.climb import Climb, Limits, mean_gain
from mtl_teleport.double_backward import told_what_to_do, twice_differentiable
from mtl_teleport.drift import Reference, references
from mtl_teleport.history import HTR
from mtl_teleport.isolation import Mode
from mtl_teleport.move import Proposal
from mtl_teleport.moving import Condition, OwnStep, WrappedMethod
from mtl_teleport.objective import Balance, Objective, Units, balance_weights
from mtl_teleport.plan import STRIDE, Prices
from mtl_teleport.presets import Presets
from mtl_teleport.search import SearchKind, penalty, projected
from mtl_teleport.search_context import Search
from mtl_teleport.sharpness import (
    ProbeGradient,
    ProbeMaximum,
    ProbeNoise,
    ProbeNorm,
    Sharpness,
    SharpnessKind,
)
from mtl_teleport.sharpness.choice import make_sharpness
from mtl_teleport.step_gradients import check_rate
from mtl_teleport.teleportation import Teleportation
from mtl_teleport.triggers import DominatedConflict, Trigger

__all__ = ["COST"]


class COST(Presets, Teleportation):
    r"""A method that, where task gradients conflict, first moves to a better point of the same losses.

    **No trained model has been shown to end better for it**: :math:`\Delta m` with COST minus without was
    0.13 ±0.25 points in the mean of seven methods over ten seeds of digits, −1.3 ±3.3 for LS over ten of QM9,
    −0.3 ±4.2 over ten of MT10 and 2.3 ±4.4 over five of streets; against random moves of equal length 0.03 ±0.36,
    −0.6 ±3.6, −0.9 ±5.4 and 1.5 ±3.2 (``docs/evidence/study.md``). What helped there is the weighting: FairGrad with
    :math:`\alpha = 2` took 9.1 ±0.5 points off LS on digits and 13.6 ±5.3 on QM9, though nothing that shows on MT10
    (``docs/evidence.md``). Teleports do what they promise where they happen:

    When the trigger fires, an adapter :math:`\Delta\theta(\varphi)` is trained for a moment to raise the sharpness
    :math:`L_g` while every task's loss stays where it is (:math:`L_t \approx 0`); the displacement is merged into
    the very same ``Parameter`` objects, or dropped if the losses do not hold still; and the step goes on with the
    wrapped method from the new point, its optimiser remembering its past in part. The model's size and structure
    never change.

    Without conflict, and outside the limits, a step is exactly the wrapped method's. Where a teleport could happen,
    a step costs one backward pass per task through the shared part, which methods on gradients need anyway.

    Args:
        method: what is wrapped: a weighting, loss weighting, aggregator, whole method, or any callable from a
            Jacobian ``[m, d]`` to an update ``[d]``; ``None`` for the plain sum of the losses.
        adapter: how the shared parameters may move.
        trigger: when: a ``Trigger``, or any function of the Gramian ``[m, m]``.
        start_after: epochs without teleports at the start (50 of 200 in the released runs).
        max_per_epoch: teleports per epoch, rolled back ones included; ``None`` for no limit.
        steps_per_epoch: how long an epoch is; otherwise call ``start_epoch(epoch)`` at the start of each.
        probe_batches: batches on which the losses are held, re-iterable, such as a list or a loader; ``None`` for
            the step's own batch alone. With one batch the losses hold on that batch only: see the note.
        max_probe_batches: how many of them are used, from the start of an iteration; ``None`` for all.
        reference: ``"batch"``: hold each batch's own losses; ``"loader"``: hold every batch at the mean over all.
        rounds: passes over several probe batches.
        max_steps: steps of the adapter at most, with one batch also their number, unless the aim is reached; ``None``
            for ``rounds`` times the number of probe batches.
        lr: step length of the adapter; ``None`` for the optimiser's learning rate of the shared parameters.
        search: ``"projected"``: the losses are constraints; ``"penalty"``: Adam on :math:`a L_t - b L_g` (the
            paper's).
        sharpness: ``"exact"``, ``"ascent"`` or ``"random"`` estimate of the gradient norm (the paper's is random).
            Three other quantities may be climbed: ``"newton"``, the squared slope over the curvature;
            ``"look-ahead"``, how much the losses fall by the next steps of the method and the optimiser at work;
            ``"flat"``, the sharpness lowered instead of raised. Give ``aim=None`` with them: the aim is for the norm.
        horizon: how many steps ``"look-ahead"`` makes at once.
        probes: perturbations per estimate, for ``"random"``.
        radius: length of a perturbation; ``None``: 1e-4 for ``"random"`` (the paper's), 0.05 for ``"ascent"``
            (that of sharpness-aware minimisation; see the note).
        probe_norm: whether a random perturbation has that length as a whole or in each tensor.
        probe_noise: whether a random perturbation moves the ``"shared"`` parameters, or ``"all"``: heads and norms too.
        probe_maximum: whether the largest change over the perturbations is that of the weighted ``"mean"`` of the
            losses, or is taken by itself for each ``"task"`` before the mean.
        probe_gradient: whether the random estimate is differentiated through ``"both"`` of its parts, or through the
            ``"unperturbed"`` losses alone.
        balance: form of the task weights R inside the sharpness: ``"released"``, ``"paper"`` or ``"equal"``.
        units: whether drift and gain are weighed relative to their start or in absolute units (the paper's).
        drift_weight: a; under ``"projected"`` only whether it is zero matters.
        gain_weight: b; under ``"projected"`` only whether it is zero matters, and its ratio to ``conflict_weight``.
        conflict_weight: c, not negative, of a term for the conflict itself, :math:`c\,\frac1m\sum_i
            \max(0, -\cos\varphi_{i0})`, beside :math:`b L_g`; 0 leaves it out. Beyond the paper; it costs one
            differentiable backward pass per task and step.
        hold_sharpness: with ``search="projected"``: hold :math:`L_g` where it is, as the losses are held, so that the
            conflict term alone is lowered. Needs ``conflict_weight``.
        aim: stop the search when the trigger is silent and :math:`\|g_0\|` has grown by this factor, both on the
            step's own batch in the mode the model trains in; ``None`` never stops early.
        max_drift: mean relative drift of the losses above which a displacement is shortened, and at last dropped;
            ``None`` accepts any finite one.
        backtracks: how often it is shortened at most.
        mode: ``"train"``: losses and gradients of the search are those of the step, with its batch statistics and the
            very same dropout; ``"eval"``: those of evaluation mode (the paper's). Buffers and random state are left
            bit for bit either way.
        htr: what becomes of the optimiser's memory; see ``modulated``. By default it is kept, as the authors' code does
            in effect. Equation 13 where the move agrees with the gradient (:math:`\sigma > 0`) and a fresh start where
            it does not (``"released"``) forgets nearly all either way, as :math:`\sigma` is seldom above 0.05: on QM9
            one such teleport per epoch raised :math:`\Delta m` of LS by 23 points in each of three seeds, where it fell
            by 1.5 ±4.1 with the memory kept, over ten (``docs/evidence/choosing.md``). Equation 13 for every sign
            (``"paper"``) leaves Adam with a second moment from one gradient, by which its next steps are too long: on
            digits with FairGrad runs diverged with it (the ablation in ``docs/evidence.md``).
        own_step: ``"update"``: the step of a teleport goes on with the update from the new point; ``"skip"``: it makes
            none, and the next update reuses the optimiser's memory as ``htr`` says.
        budget: what teleports may cost, as a share of training: passes through the model that they and the trigger's
            looks have added, over those of all training steps so far, which it exceeds in no step. A teleport is not
            begun, nor its trigger asked, before what was saved pays for three steps of the adapter on two probe
            batches; with more saved the search makes more steps, and holds the losses on more batches. So there may be
            fewer teleports than ``max_per_epoch``, in short runs none. Passes are counted, not timed: see
            ``mtl_teleport.budget``. ``None``, the default, sets no limit: searches of full length, since the smallest
            search does about half of what a whole one does (``docs/performance.md``).
        seed: of the adapter's initial values and of random perturbations.

    Raises:
        InvalidParameterError: a setting is out of its range.
        InvalidInputError: ``method``, ``adapter``, ``trigger`` or ``probe_batches`` is not what it must be.

    Note:
        Defaults that differ from the text do so on measurements. At 191 states with a dominated conflict, 100 of the
        digits benchmark and 91 of the click log, from seeds on which nothing was chosen, held on four probe batches
        with the optimiser's lr (``benchmarks/teleport_states.py``; ``docs/evidence.md`` has the spread and what
        happened on other batches): medians of :math:`\min_i\cos\varphi_{i0}`, share of states without conflict, and
        medians of the growth of :math:`\|g_0\|` and of the relative drift:

        ================  =====================================  =====================================
        moved by          digits                                 click log
        ================  =====================================  =====================================
        ``"random"``      −0.13 → −0.02, gone 43 %, 1.25, 0.6 %  −0.07 → 0.08, gone 64 %, 1.07, 0.7 %
        ``"ascent"``      −0.13 → 0.14, gone 81 %, 1.60, 0.7 %   −0.07 → 0.19, gone 75 %, 1.23, 0.9 %
        ``"exact"``       −0.13 → 0.21, gone 84 %, 1.70, 0.6 %   −0.07 → 0.25, gone 77 %, 1.24, 0.9 %
        a random move     −0.13 → −0.11, gone 12 %, 1.00, 0.3 %  −0.07 → −0.07, gone 3 %, 1.00, 0.1 %
        ================  =====================================  =====================================

        ``"exact"`` wins on both and is the default: higher than ``"ascent"`` from 70 and 60 % of the states, by 0.02
        and 0.01 in the median. On batches that were not held the two are alike. A whole teleport took them equally
        long, since ``"exact"``, whose steps are dearer, needs fewer; but it holds more memory, and it differentiates
        twice. Where a model cannot, or memory is short, take ``"ascent"``.

        The radius of ``"ascent"`` is longer than the paper's because where gradients jump, at a ReLU that switches or a
        maximum that moves, a difference quotient over a short step is mostly jump. The search runs in the mode of the
        step because under batch norm the function of evaluation mode is another one: on a SegNet-like net the defaults
        reached their aim at 12 of 12 states (``benchmarks/teleport.py``). Weights, thresholds, ``max_steps`` and
        ``backtracks`` were chosen by trying on digits, seeds 0 to 12, and are not shown to be the best.

        None of this says that training gets better: see the table in ``docs/evidence.md``.

        Losses that are held on one batch are held on that batch only: give ``probe_batches``. The paper's settings
        are ``COST.paper(...)``, those of the authors' code ``COST.released(...)``. ``conflict_weight`` differentiates
        twice, too. What differentiates twice evaluates attention by plain operations, recurrent layers without cuDNN
        and batch norm by a second derivative of this package. A search evaluates embeddings with sparse gradients with
        whole ones. In bfloat16 a perturbation may be rounded away: keep ``"exact"`` under autocast. Models may
        recompute activations by ``torch.utils.checkpoint(..., use_reentrant=False)``.

        All that the adapter takes of ``shared`` may move, whether the optimiser holds it or not, and hooks on
        parameters (``Tensor.register_hook``) are not called at the points of a search: entries whose gradient a hook
        holds at zero move, too. What is to stay is frozen (``requires_grad``), left out of ``shared`` or of the
        adapter's ``targets``, or a buffer; rows of embeddings that are padding stay by themselves.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, sections 4.1 and
        4.3.

    Example:
        >>> import torch
        >>> from mtl_core import Problem, step
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...>
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> problem = Problem(model, lambda m, x: (m(x) - x[:, :2]).square().mean(0), shared=model, tasks=("a", "b"))
        >>> method = COST(max_per_epoch=1)
        >>> method.start_epoch(0)
        >>> report = step(problem, torch.randn(16, 4), torch.optim.Adam(model.parameters(), lr=1e-3), method)
        >>> [event.kind for event in report.events]  # no conflict, no teleport
        []
    """

    def __init__(
        self,
        method: WrappedMethod = None,
        *,
        adapter: Adapter = LoRA(),
        trigger: Trigger | Condition = DominatedConflict(),
        start_after: int = 0,
        max_per_epoch: int | None = 1,
        steps_per_epoch: int | None = None,
        probe_batches: Iterable[Any] | None = None,
        max_probe_batches: int | None = 8,
        reference: Reference = "batch",
        rounds: int = 2,
        max_steps: int | None = 20,
        lr: float | None = None,
        search: SearchKind = "projected",
        sharpness: SharpnessKind = "exact",
        horizon: float = 10.0,
        probes: int = 5,
        radius: float | None = None,
        probe_norm: ProbeNorm = "global",
        probe_noise: ProbeNoise = "shared",
        probe_maximum: ProbeMaximum = "mean",
        probe_gradient: ProbeGradient = "both",
        balance: Balance = "released",
        units: Units = "relative",
        drift_weight: float = 3.0,
        gain_weight: float = 0.1,
        conflict_weight: float = 0.0,
        hold_sharpness: bool = False,
        aim: float | None = 1.5,
        max_drift: float | None = 0.02,
        backtracks: int = 6,
        mode: Mode = "train",
        htr: HTR = "keep",
        own_step: OwnStep = "update",
        budget: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            method,
            trigger=trigger,
            start_after=start_after,
            max_per_epoch=max_per_epoch,
            steps_per_epoch=steps_per_epoch,
            probe_batches=probe_batches,
            max_probe_batches=max_probe_batches,
            max_drift=max_drift,
            backtracks=backtracks,
            mode=mode,
            htr=htr,
            own_step=own_step,
            seed=seed,
            budget=budget,
        )
        self.adapter = arguments.adapter(adapter)
        self.reference: Reference = checks.one_of("reference", reference, get_args(Reference))
        self.rounds = checks.positive_int("rounds", rounds)
        self.max_steps = None if max_steps is None else checks.positive_int("max_steps", max_steps)
        self.lr = None if lr is None else checks.positive("lr", lr)
        self.sharpness: Sharpness = make_sharpness(
            sharpness,
            radius=radius,
            probes=probes,
            norm=probe_norm,
            noise=probe_noise,
            maximum=probe_maximum,
            gradient=probe_gradient,
            horizon=horizon,
        )
        self.balance: Balance = checks.one_of("balance", balance, get_args(Balance))
        self.units: Units = checks.one_of("units", units, get_args(Units))
        self.drift_weight = checks.non_negative("drift_weight", drift_weight)
        self.gain_weight = checks.non_negative("gain_weight", gain_weight)
        self.conflict_weight = checks.non_negative("conflict_weight", conflict_weight)
        self.search: SearchKind = checks.one_of("search", search, get_args(SearchKind))
        self.hold_sharpness = checks.boolean("hold_sharpness", hold_sharpness)
        if hold_sharpness and not (self.conflict_weight and search == "projected"):
            raise InvalidParameterError(
                "`hold_sharpness` must come with search='projected' and a conflict_weight, without which nothing is "
                f"left to climb, got search={search!r} and conflict_weight={conflict_weight!r}."
            )
        self.aim = None if aim is None else checks.positive("aim", aim)

    @property
    def _differentiates_twice(self) -> str | None:
        """The setting that makes the search do so, if one does."""
        if self.gain_weight and self.sharpness.differentiates_twice:
            return f"sharpness={self.sharpness.name!r}"
        return f"conflict_weight={self.conflict_weight:g}" if self.conflict_weight else None

    def _check_optimizer(self, problem: Problem, optimizer: Optimizer) -> None:
        """Refuse one without a learning rate for the shared parameters, where the search needs it."""
        if self.sharpness.name == "look-ahead":
            check_rate(optimizer, problem, "COST(sharpness='look-ahead')", "")
        elif self.lr is None:
            check_rate(optimizer, problem, "COST", ", or COST(..., lr=...)")

    def _prices(self, n_tasks: int) -> Prices:
        """What a search by these settings costs."""
        return Prices.of(
            n_tasks,
            sharpness=self.sharpness,
            search=self.search,
            has_conflict_term=self.conflict_weight > 0,
            htr=self.htr,
            rounds=self.rounds,
        )

    def _propose(self, search: Search) -> Proposal:
        """Train the adapter on the objective."""
        lr = search.lr if self.lr is None else self.lr
        if lr is None:
            raise InvalidParameterError(
                "`lr` must be given where no optimiser of the shared parameters says it, got None. Pass lr= to "
                "teleport() or to the method."
            )
        # Some quantities keep what they see at the start of a search; each search gets one of its own.
        sharpness = self.sharpness.for_search(search)
        objective = Objective(
            sharpness,
            # R where the search begins, and held: the search could raise a weighted sum by its weights instead of its
            # slopes.
            balance_weights(search.gramian.diagonal().clamp(min=0.0).sqrt(), form=self.balance),
            drift_weight=self.drift_weight,
            gain_weight=self.gain_weight,
            units=self.units,
            conflict_weight=self.conflict_weight,
            hold_gain=self.hold_sharpness,
        )
        held = references(search.losses, kind=self.reference)
        twice = self._differentiates_twice
        around = search.conditions.around
        if twice is not None:
            # For every evaluation of the search, also those that are not differentiated twice, so that all of its
            # losses are of one function to the bit.
            around = partial(twice_differentiable, search.problem.model, around)
        train = projected if self.search == "projected" else penalty
        # An adapter of PEFT is tried on this rank's own batch, which may fail here alone.
        with together(search.conditions.group):
            attached = self.adapter.attach(search.problem, batch=search.batches[0], generator=search.generator)
            check_session(self.adapter, attached)
        with attached as session:
            search.prepare(session, around)
            climb = Climb(
                session,
                objective,
                search,
                held,
                self._limits(lr, search),
                _on_device(search.generator, session.trainable[0].device),
            )
            with nullcontext() if twice is None else told_what_to_do(twice):
                # Two more evaluations per probe batch, which only a quantity that judges is worth.
                before = mean_gain(climb) if sharpness.is_judge else -math.inf
                device = session.trainable[0].device
                fires = partial(ranks.asked, self.trigger, group=search.conditions.group, device=device)
                steps = train(climb, Aim(fires, self.aim))
                is_better = not sharpness.is_judge or mean_gain(climb) > before
            # Before the session ends: some adapters are gone with it.
            found = check_displacement(self.adapter, session.shared, session.delta()) if is_better else {}
            reason = "" if is_better else f"{type(sharpness).__name__} has not grown"
            return Proposal(
                delta=found,
                steps=steps,
                forwards=session.forwards,
                backwards=session.backwards,
                passes=session.passes,
                path=tuple(climb.path),
                reason=reason,
                ended=climb.ends[-1],
            )

    def _limits(self, lr: float, search: Search) -> Limits:
        n_batches = len(search.batches)
        steps = self._steps(n_batches)
        if math.isinf(search.left):
            return Limits(lr, steps, self.max_drift)
        # Rounds have had their say in the number of batches; points that are left again cost hardly anything.
        steps = steps if self.max_steps is None else self.max_steps
        prices = self._prices(search.problem.n_tasks)
        return Limits(lr, steps, self.max_drift, prices.search(search.left, n_batches), prices.step, STRIDE)

    def _steps(self, n_batches: int) -> int:
        """How many steps the adapter makes at most."""
        rounds = self.rounds * n_batches
        if self.max_steps is None:
            return rounds
        return min(self.max_steps, rounds) if n_batches > 1 else self.max_steps


def _on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on the device of the parameters, seeded from one on the CPU."""
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
    return torch.Generator(device).manual_seed(seed)
