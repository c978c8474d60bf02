"""The control that a claim for teleportation needs: a move as long, in a random direction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_core import InvalidInputError, Problem, StepOptions, checks
from mtl_teleport import arguments
from mtl_teleport.adapters.padding import padding_rows, without_rows
from mtl_teleport.history import HTR
from mtl_teleport.isolation import Mode
from mtl_teleport.move import Proposal
from mtl_teleport.moving import Condition, OwnStep, WrappedMethod
from mtl_teleport.search_context import Search
from mtl_teleport.teleportation import Teleportation
from mtl_teleport.triggers import DominatedConflict, Trigger

__all__ = ["RandomTeleport"]


class RandomTeleport(Teleportation):
    r"""Move the shared parameters by a random displacement of given length where ``COST`` would teleport.

    .. math:: \Delta\theta = \ell\, u, \qquad u \text{ uniform on the unit sphere of } \mathbb{R}^d

    Rows of embeddings that are padding (``padding_idx``) stay where they are, as in training.

    Everything else is as in ``COST``: trigger, limits, trajectory reuse and report. Whatever ``COST`` gains over the
    method alone and this control does not gain is owed to *where* it moved; the rest is owed to having moved at all.

    Args:
        method: the wrapped method, as for ``COST``.
        length: :math:`\ell > 0`, or a sequence of lengths, used one after the other and then from the start again:
            the ``length`` of a ``COST`` run's reports gives moves of equal length one by one.
        trigger: when to move.
        start_after: epochs without moves at the start, as for ``COST``.
        max_per_epoch: moves per epoch, as for ``COST``.
        steps: numbers of the steps, from 0, at which to move whatever the trigger says; ``None`` asks the trigger. The
            ``step`` of a ``COST`` run's reports gives moves as often as its budget let it.
        steps_per_epoch: how long an epoch is, as for ``COST``.
        max_drift: largest mean relative drift of the losses, by backtracking; ``None`` (the default) takes the move
            as it is unless a loss is not finite. With a limit the move may be shorter than ``length``.
        mode: in which mode losses are compared, as for ``COST``.
        htr: what becomes of the optimiser's memory, as for ``COST``.
        own_step: whether the step of a move makes an update, as for ``COST``.
        seed: of the directions.

    Raises:
        InvalidParameterError: a length is not positive, a limit is out of range, or a step is negative.
        InvalidInputError: there is no length, or ``method`` or ``trigger`` is none.

    Example:
        >>> import torch
        >>> from mtl_core import Problem, step
        >>> from mtl_teleport import AnyMeanConflict
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> problem = Problem(
        ...     model, lambda m, x: torch.stack([m(x).sum(), -m(x).sum()]), shared=model, tasks=("a", "b")
        ... )
        >>> method = RandomTeleport(length=0.5, trigger=AnyMeanConflict(), max_per_epoch=None)
        >>> report = step(problem, torch.ones(1, 1), torch.optim.SGD(model.parameters(), lr=0.1), method)
        >>> round(report.events[0].length, 6)
        0.5
    """

    def __init__(
        self,
        method: WrappedMethod = None,
        *,
        length: float | Sequence[float],
        trigger: Trigger | Condition = DominatedConflict(),
        start_after: int = 0,
        max_per_epoch: int | None = 1,
        steps: Sequence[int] | None = None,
        steps_per_epoch: int | None = None,
        max_drift: float | None = None,
        mode: Mode = "train",
        htr: HTR = "keep",
        own_step: OwnStep = "update",
        seed: int = 0,
    ) -> None:
        super().__init__(
            method,
            trigger=trigger,
            start_after=start_after,
            max_per_epoch=max_per_epoch,
            steps_per_epoch=steps_per_epoch,
            probe_batches=None,
            max_probe_batches=1,
            max_drift=max_drift,
            backtracks=6,
            mode=mode,
            htr=htr,
            own_step=own_step,
            seed=seed,
        )
        found: Iterable[Any] = length if isinstance(length, Sequence) else (length,)
        if isinstance(length, str):
            raise InvalidInputError(f"`length` must be a number or a sequence of numbers, got {length!r}.")
        self.lengths = tuple(checks.positive("length", entry) for entry in found)
        if not self.lengths:
            raise InvalidInputError("`length` must be a length or a sequence of at least one, got an empty sequence.")
        self.steps = None if steps is None else frozenset(arguments.whole("steps", number, 0) for number in steps)
        self._made = 0

    def _has_means(self, problem: Problem) -> bool:
        """Not in a step that is none of those named: it is the wrapped method's own."""
        return self.steps is None or self.schedule.steps - 1 in self.steps

    def _asks(self, gramian: Tensor, problem: Problem, options: StepOptions) -> bool:
        """Whether the trigger asks for a move, or the step is one of those named."""
        return self.steps is not None or super()._asks(gramian, problem, options)

    def _propose(self, search: Search) -> Proposal:
        """A random direction, drawn on the CPU so that every device gets the same."""
        length = self.lengths[self._made % len(self.lengths)]
        self._made += 1
        padding = padding_rows(search.problem)
        draws = {
            # On the CPU in double precision, whatever the model's device and dtype: one seed gives one direction.
            name: without_rows(
                torch.randn(p.shape, generator=search.generator, dtype=torch.float64, device="cpu"), padding.get(name)
            )
            for name, p in search.problem.named_shared.items()
        }
        # A normal vector over its length is uniform on the sphere, over all parameters together.
        norm = torch.stack([draw.square().sum() for draw in draws.values()]).sum().sqrt()
        shared = search.problem.named_shared
        return Proposal({name: (draw * (length / norm)).to(shared[name]) for name, draw in draws.items()})

    def own_state(self) -> dict[str, Any]:
        """As for every teleportation, with the number of moves made."""
        return {**super().own_state(), "made": self._made}

    def load_own_state(self, counters: dict[str, Any]) -> None:
        """Put them back."""
        super().load_own_state(counters)
        self._made = counters["made"]
