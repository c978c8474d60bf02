"""The protocols of the papers on COST, IMGrad, MARIGOLD and those they compare with, as data.

Two families of released code train the same benchmarks and must not be mixed. ``"cagrad"`` is that of CAGrad and
IMGrad, which clips nothing. ``"nash"`` is that of Nash-MTL, FAMO, FairGrad, SDMGrad and COST, which clips the combined
gradient of the shared parameters to norm 1.

Where both come to the same, and where this package does otherwise on purpose:

* In FAMO, FairGrad and COST's code the clipping stands before the backward pass of methods that weigh losses (LS, SI,
  RLW, DWA, UW, MGDA, IMTL-G, Nash-MTL, FAMO) and so has no effect on these; here every method is clipped alike, as in
  Nash-MTL's own code. For their numbers of such a method take the family ``"cagrad"``.
* Their optimisers hold the parameters of a method (those of UW) in a group with the learning rate 0.025, which the
  schedule scales too. Here a method trains its own parameters, at its own rate.
* Their scripts train on with the last, smaller batch of an epoch; so does this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Best, MeanOfLast
from mtl_benchmarks.protocol.schedules import Plateau, Span, StepDecay
from mtl_benchmarks.protocol.training import Clip, Training
from mtl_core.checks import one_of

__all__ = ["PROTOCOLS", "Family", "celeba", "cityscapes", "mt10", "nyuv2", "qm9"]

Family = Literal["cagrad", "nash"]
"""Whose released code is followed; see the module's text."""


def _clip(family: Family) -> Clip | None:
    one_of("family", family, ("cagrad", "nash"))
    return Clip(max_norm=1.0, scope="shared") if family == "nash" else None


def _dense_prediction(batch_size: int, family: Family) -> Training:
    return Training(
        batch_size=batch_size,
        epochs=200,
        optimizer=OptimizerChoice("adam", {"lr": 1e-4}),
        schedule=StepDecay(every=Span(100, "epochs"), gamma=0.5),
        clip=_clip(family),
        reported=MeanOfLast(10),
    )


def nyuv2(*, family: Family = "nash") -> Training:
    """NYUv2, three tasks: 200 epochs in batches of 2.

    Adam with learning rate 1e-4 and no weight decay, halved after 100 epochs; the mean of the test values of the last
    ten epochs is reported (Nash-MTL leaves that mean to the reader; COST prints it).

    Args:
        family: whose released code is followed.

    Example:
        >>> nyuv2(family="cagrad").in_words()
        '200 epochs, batches of 2, adam with lr 0.0001, schedule step, reported: mean-of-last'
    """
    return _dense_prediction(2, family)


def cityscapes(*, family: Family = "nash") -> Training:
    """CityScapes, two tasks: as NYUv2, in batches of 8.

    Args:
        family: whose released code is followed.
    """
    return _dense_prediction(8, family)


def celeba() -> Training:
    """CelebA, 40 binary tasks: 15 epochs in batches of 256, Adam with learning rate 3e-4, in the Nash-MTL family.

    The test F1 of the epoch with the highest mean F1 on the validation set is reported: the mean over the metrics
    ``f1_*`` of the trained tasks. Which of two equally good epochs counts is nowhere said; here the later one.
    """
    return Training(
        batch_size=256,
        epochs=15,
        optimizer=OptimizerChoice("adam", {"lr": 3e-4}),
        clip=_clip("nash"),
        reported=Best(by="f1_*"),
    )


def qm9() -> Training:
    """QM9, 11 regressions: 300 epochs in batches of 120, Adam with learning rate 1e-3, in the Nash-MTL family.

    The rate is multiplied by 0.7 when Δm on the validation set has not improved for more than 5 epochs, down to 1e-5,
    and the test values at the lowest Δm of the validation set are reported, the later of two equal ones. Single-task
    runs watch the Δm of their one task, which falls with its error as the mean absolute error does that the released
    code watches there; the relative threshold of an improvement (1e-4) is that of Δm, and so not quite the same.
    """
    return Training(
        batch_size=120,
        epochs=300,
        optimizer=OptimizerChoice("adam", {"lr": 1e-3}),
        schedule=Plateau(watched="delta_m", factor=0.7, patience=5, min_lr=1e-5),
        clip=_clip("nash"),
        reported=Best(by="delta_m", ties="later"),
    )


def mt10() -> Training:
    """MT10, as far as soft actor-critic is a protocol of steps: 2,000,000 updates in batches of 1280.

    Adam with learning rate 3e-4 and betas 0.9 and 0.999 for actor, critic and temperature alike. After 1,500 random
    steps in each environment come 1,500 updates at once, then one per step: as many updates as steps. An evaluation is
    considered at the ends of episodes of 150 steps and due every 10,000, so that there is one every 30,000 steps. The
    best mean success is reported; there is no other split to choose by, so that the benchmark has to give its
    evaluation as the validation split too. The replay buffer, target networks, discount and random steps belong to the
    agent and are no part of it. Neither family clips: Nash-MTL's code divides by a norm of 1.
    """
    return Training(
        batch_size=1280,
        steps=2_000_000,
        optimizer=OptimizerChoice("adam", {"lr": 3e-4, "betas": [0.9, 0.999]}),
        evaluate_every=Span(30_000, "steps"),
        reported=Best(by="success_*"),
    )


PROTOCOLS: Mapping[str, Callable[[], Training]] = {
    "nyuv2": nyuv2,
    "cityscapes": cityscapes,
    "celeba": celeba,
    "qm9": qm9,
    "mt10": mt10,
}
"""The protocols by the names of their benchmarks."""
