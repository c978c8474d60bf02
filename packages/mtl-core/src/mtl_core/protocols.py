"""The four interfaces by which a method may enter a step.

They are structural: a class takes part by having the attributes, without inheriting from anything here. The first three
turn gradients or losses into an update and know nothing of models and optimisers; ``Method`` owns the whole step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor, optim

if TYPE_CHECKING:
    from mtl_core.problem import Problem
    from mtl_core.report import StepOptions, StepReport

__all__ = [
    "Aggregator",
    "AnyMethod",
    "Event",
    "LossWeighting",
    "Method",
    "ReportsEvents",
    "Weighting",
    "WeightsAfterStep",
]


@runtime_checkable
class Aggregator(Protocol):
    """Jacobian ``[m, d]`` to update ``[d]``. Any callable of that form will do, other libraries' included."""

    def __call__(self, jacobian: Tensor, /) -> Tensor:
        """The update of a Jacobian."""


@runtime_checkable
class Weighting(Protocol):
    """Gramian ``[m, m]`` to weights ``[m]``.

    The Gramian is float64 on the CPU. A task that is absent from the batch is a zero row and column. A weighting that
    also needs the losses sets the attribute ``takes_losses = True`` and is then called as
    ``weights(gramian, losses=losses)``, with NaN for an absent task.
    """

    def weights(self, gramian: Tensor, /) -> Tensor:
        """The weights ``[m]`` of a Gramian."""


@runtime_checkable
class LossWeighting(Protocol):
    """Losses ``[m]`` to one differentiable scalar, whose derivative by each loss is that task's weight.

    ``needs`` tells it from an ``Aggregator``. Where tasks may be absent, a loss weighting that can do without them
    takes the keyword ``present`` (a boolean tensor ``[m]``) and says so by ``takes_present = True``; absent losses are
    then 0.
    """

    needs: Literal["losses"]

    def __call__(self, losses: Tensor, /) -> Tensor:
        """The scalar to descend."""


@runtime_checkable
class WeightsAfterStep(Protocol):
    """A loss weighting that learns from what the update did to the losses, such as FAMO."""

    def after_step(self, before: Tensor, after: Callable[[], Tensor], /) -> None:
        """Learn from the update; ``after()`` evaluates the losses ``[m]`` once more on the same batch."""


@runtime_checkable
class Method(Protocol):
    """A whole training step, for methods that need more than gradients.

    Optional: ``start_epoch(epoch)``, which the training loop calls at the start of every epoch.
    """

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions = ...
    ) -> StepReport:
        """One training step on one batch."""


@runtime_checkable
class Event(Protocol):
    """Something worth telling that happened in a step: a teleport, a regularised solve, a skipped update."""

    @property
    def kind(self) -> str:
        """What kind of event it is, one word."""

    def as_dict(self) -> dict[str, Any]:
        """The event as plain data that JSON can hold, its ``kind`` included."""


@runtime_checkable
class ReportsEvents(Protocol):
    """A method that has events to tell; the step moves them into its report."""

    def pop_events(self) -> tuple[Event, ...]:
        """Hand over the events since the last call, and forget them."""


AnyMethod = Method | Weighting | LossWeighting | Aggregator
"""What ``step`` accepts as a method."""
