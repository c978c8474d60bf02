"""The control of the optimiser's part: what a teleport does to its memory, without the move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch.optim import Optimizer

from mtl_core import InvalidInputError, Problem, StepOptions, StepReport, checks, step
from mtl_core.extension import Wrapper, guarded
from mtl_teleport import arguments
from mtl_teleport.history import HTR
from mtl_teleport.memory_due import MemoryDue
from mtl_teleport.moving import WrappedMethod

__all__ = ["MemoryOnly", "MemoryReport"]


@dataclass(frozen=True)
class MemoryReport:
    """At this step the optimiser's memory was treated as after a teleport.

    Attributes:
        step: number of the step, from 0.
        sigma: the cosine that decided how much of it was kept.
    """

    step: int
    sigma: float
    kind: str = "memory"

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data."""
        return {"kind": self.kind, "step": self.step, "sigma": self.sigma}


class MemoryOnly(Wrapper):
    """Treat the optimiser's memory at given steps as a teleport there would, and move nothing.

    What ``COST`` gains over the method alone and this control gains too is owed to a fresh start of the optimiser, not
    to another point.

    Args:
        method: the wrapped method, as for ``COST``.
        steps: numbers of the steps, from 0, at which a run with ``COST`` teleported.
        sigmas: the cosines that its reports have, one per step.
        htr: what becomes of the memory, as in that run; not ``"transported"``, for which there must be a move.

    Raises:
        InvalidInputError: there are not as many cosines as steps, a step comes twice, or ``method`` is none.
        InvalidParameterError: a step is negative, a cosine is no number in [-1, 1], or ``htr`` is none of these.

    Example:
        >>> import torch
        >>> from mtl_core import Problem, step
        >>> model = torch.nn.Linear(2, 2)
        >>> problem = Problem(model, lambda m, x: m(x).square().mean(0), shared=model, tasks=("a", "b"))
        >>> adam, method = torch.optim.Adam(model.parameters()), MemoryOnly(steps=[1], sigmas=[-0.5])
        >>> reports = [step(problem, torch.ones(1, 2), adam, method) for _ in range(3)]
        >>> [len(report.events) for report in reports], float(adam.state[model.weight]["step"])  # started afresh
        ([0, 1, 0], 2.0)
    """

    def __init__(
        self,
        method: WrappedMethod = None,
        *,
        steps: Sequence[int],
        sigmas: Sequence[float],
        htr: HTR = "released",
    ) -> None:
        super().__init__(arguments.wrapped_method(method))
        numbers = [arguments.whole("steps", number, 0) for number in steps]
        cosines = [checks.in_interval("sigmas", sigma, -1.0, 1.0) for sigma in sigmas]
        if len(numbers) != len(cosines) or len(set(numbers)) != len(numbers):
            raise InvalidInputError(
                f"`steps` and `sigmas` must be one cosine for each of different steps, got {len(numbers)} steps, "
                f"{len(set(numbers))} of them different, and {len(cosines)} cosines."
            )
        # Nothing is moved here, so that there is no change of the gradient to carry.
        allowed = [mode for mode in get_args(HTR) if mode != "transported"]
        self.htr: HTR = checks.one_of("htr", htr, allowed)
        self.due = dict(zip(numbers, cosines, strict=True))
        self._taken = 0
        # An update that a gradient scaler leaves out treats nothing: what was due at it is due at the next one.
        self._waiting = MemoryDue()

    def step(
        self, problem: Problem, batch: Any, optimizer: Optimizer, *, options: StepOptions | None = None
    ) -> StepReport:
        """One step of the wrapped method, on a memory that is treated first where one of the steps is due."""
        options = StepOptions() if options is None else options
        # Counted when a step is made, so that one that raised is tried again under its own number.
        number = self._taken
        events: tuple[MemoryReport, ...] = ()
        # An error undoes what is put down as due as well, also where this is called without `mtl_core.step` around it.
        with guarded(problem, optimizer, self, options):
            if number in self.due:
                self._waiting.add(problem.model, self.due[number], None)
                events = (MemoryReport(number, self.due[number]),)
            with self._waiting.paid(problem, optimizer, self.htr):
                report = step(problem, batch, optimizer, self.method, **vars(options))
            self._taken += 1
        return replace(report, events=(*events, *report.events)) if events else report

    def own_state(self) -> dict[str, Any]:
        """How many steps were taken, and what is still to be treated."""
        return {"taken": self._taken, "waiting": self._waiting.state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._taken = int(state["taken"])
        self._waiting.load(state["waiting"])
