"""COST as in the paper, and as in its authors' released code: every setting of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from mtl_teleport.adapters.low_rank import LoRA
from mtl_teleport.adapters.protocol import Adapter
from mtl_teleport.moving import Condition, WrappedMethod
from mtl_teleport.triggers import AnyMeanConflict, DominatedConflict, Trigger

__all__ = ["Presets"]

T = TypeVar("T")


_BOTH: dict[str, Any] = {
    "max_probe_batches": None,
    "rounds": 2,
    "max_steps": None,
    "search": "penalty",
    "sharpness": "random",
    "probes": 5,
    "radius": 1e-4,
    "horizon": 10.0,  # of no account with "random", and a setting all the same
    "hold_sharpness": False,
    "units": "absolute",
    "aim": None,
    "max_drift": None,
    "backtracks": 0,
    "mode": "eval",
    "budget": None,
}
"""What text and released code have in common."""


class Presets:
    """The two named sets of settings of ``COST``."""

    @classmethod
    def paper(
        cls: type[T],
        method: WrappedMethod = None,
        *,
        probe_batches: Iterable[Any] | None = None,
        adapter: Adapter = LoRA(),
        trigger: Trigger | Condition = DominatedConflict(),
        gain_weight: float = 0.05,
        start_after: int = 0,
        max_per_epoch: int | None = 1,
        steps_per_epoch: int | None = None,
        seed: int = 0,
    ) -> T:
        r"""As in the paper's text, every displacement of finite losses accepted.

        =====================================  ==============================================================
        equation 7, :math:`L_t`                ``search="penalty", drift_weight=1, units="absolute",
                                               reference="batch"``
        equations 8 and 9, :math:`L_g`         ``sharpness="random", probes=5, radius=1e-4,
                                               probe_norm="global", probe_noise="shared",
                                               probe_maximum="mean", probe_gradient="both"``
        equation 10, R                         ``balance="paper"``
        equations 12 and 13                    ``htr="paper", own_step="update"``
        section 4.1                            ``rounds=2, max_steps=None, mode="eval"``, Adam with the
                                               model's lr
        no stop and no rollback                ``aim=None, max_drift=None, backtracks=0``
        =====================================  ==============================================================

        Args:
            method: what is wrapped.
            probe_batches: the batches that the adapter is trained on, all of them.
            adapter: how the shared parameters may move.
            trigger: when: equation 3 for few tasks; ``MajorityConflict(0.5)``, equation 4, for many.
            gain_weight: :math:`\gamma` of equation 11, for which the text gives no number; that of the released code is
                :math:`0.5/10`.
            start_after: epochs without teleports at the start.
            max_per_epoch: teleports per epoch.
            steps_per_epoch: how long an epoch is.
            seed: of the adapter and of the perturbations.

        Example:
            >>> from mtl_teleport import COST
            >>> cost = COST.paper(max_per_epoch=None)
            >>> cost.search, cost.mode, cost.htr
            ('penalty', 'eval', 'paper')
        """
        return cls(
            method,  # type: ignore[call-arg]
            adapter=adapter,
            trigger=trigger,
            start_after=start_after,
            max_per_epoch=max_per_epoch,
            steps_per_epoch=steps_per_epoch,
            probe_batches=probe_batches,
            reference="batch",
            probe_norm="global",
            probe_noise="shared",
            probe_maximum="mean",
            probe_gradient="both",
            balance="paper",
            drift_weight=1.0,
            gain_weight=gain_weight,
            htr="paper",
            own_step="update",
            seed=seed,
            **_BOTH,
        )

    @classmethod
    def released(
        cls: type[T],
        method: WrappedMethod = None,
        *,
        probe_batches: Iterable[Any] | None = None,
        adapter: Adapter = LoRA(),
        trigger: Trigger | Condition = AnyMeanConflict(),
        start_after: int = 50,
        max_per_epoch: int | None = 1,
        steps_per_epoch: int | None = None,
        seed: int = 0,
    ) -> T:
        r"""As in the authors' released code, where it differs from the text.

        ============================================  =======================================================
        a = 10, b = 0.5                               ``drift_weight=10, gain_weight=0.5, units="absolute"``
        :math:`R_i = m(1 - \|g_i\|/\sum_j\|g_j\|)`    ``balance="released"``
        losses held at their mean over the loader     ``reference="loader"``, with ``probe_batches=loader``
        noise of norm 1e-4 in each tensor, in all     ``probes=5, radius=1e-4, probe_norm="tensor",
                                                      probe_noise="all"``
        largest absolute change of each task          ``probe_maximum="task"``
        gradient by the unperturbed losses only       ``probe_gradient="unperturbed"``
        two passes over the loader                    ``rounds=2, max_steps=None, max_probe_batches=None``
        :math:`\min_i \cos\varphi_{i0} \le 0`          ``trigger=AnyMeanConflict()``
        from epoch 50 on, once an epoch               ``start_after=50, max_per_epoch=1``
        no update in the teleport's own step          ``own_step="skip"``
        betas of whole groups times :math:`\sigma`     ``htr="betas"``
        no stop and no rollback                       ``aim=None, max_drift=None, backtracks=0``
        evaluation mode, Adam with the model's lr     ``mode="eval", search="penalty"``
        ============================================  =======================================================

        Args:
            method: what is wrapped.
            probe_batches: the training loader.
            adapter: how the shared parameters may move.
            trigger: when.
            start_after: epochs without teleports at the start.
            max_per_epoch: teleports per epoch.
            steps_per_epoch: how long an epoch is.
            seed: of the adapter and of the perturbations.

        Note:
            The released code gives the betas back before the optimiser's next step, so that of its two rules for the
            memory only the reset for :math:`\sigma \le 0` has an effect there. Here the next step has them. Its
            adapters are those of the PEFT library: ``adapter=PeftLoRA()``.

        Example:
            >>> from mtl_teleport import COST
            >>> cost = COST.released(probe_batches=[0, 1])
            >>> cost.reference, cost.own_step, cost.schedule.start_after
            ('loader', 'skip', 50)
        """
        return cls(
            method,  # type: ignore[call-arg]
            adapter=adapter,
            trigger=trigger,
            start_after=start_after,
            max_per_epoch=max_per_epoch,
            steps_per_epoch=steps_per_epoch,
            probe_batches=probe_batches,
            reference="loader",
            probe_norm="tensor",
            probe_noise="all",
            probe_maximum="task",
            probe_gradient="unperturbed",
            balance="released",
            drift_weight=10.0,
            gain_weight=0.5,
            htr="betas",
            own_step="skip",
            seed=seed,
            **_BOTH,
        )
