"""The interfaces by which a method takes part in a step.

They are structural: a class takes part by having the attributes, without inheriting from anything here. Four say what
kind of method it is. ``Aggregator``, ``Weighting`` and ``LossWeighting`` turn gradients or losses into an update and
know nothing of models and optimisers; ``Method`` owns the whole step. The others are optional and may be combined with
any of the four: each names one more thing that a method offers, and ``offers`` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn, optim

from mtl_core import checks
from mtl_core.errors import InvalidInputError

if TYPE_CHECKING:
    from mtl_core.problem import Problem
    from mtl_core.report import Event, StepOptions, StepReport

__all__ = [
    "Aggregator",
    "AnyMethod",
    "CountsEpochs",
    "Draws",
    "HasMemory",
    "HasUnitWeights",
    "LearnsAfterStep",
    "LossWeighting",
    "Method",
    "Remembers",
    "ReportsEvents",
    "Resets",
    "TakesAbsentTasks",
    "TakesLosses",
    "TakesSeveralBatches",
    "WeighsJacobian",
    "Weighting",
    "check_method",
    "is_loss_weighting",
    "offers",
]


@runtime_checkable
class Aggregator(Protocol):
    """Jacobian ``[m, d]`` to update ``[d]``. Any callable of that form will do, other libraries' included."""

    def __call__(self, jacobian: Tensor, /) -> Tensor:
        """The update of a Jacobian."""


@runtime_checkable
class Weighting(Protocol):
    """Gramian ``[m, m]`` to weights ``[m]``.

    The Gramian is float64 on the CPU. A task that is absent from the batch is a zero row and column.
    """

    def weights(self, gramian: Tensor, /) -> Tensor:
        """The weights ``[m]`` of a Gramian."""


@runtime_checkable
class LossWeighting(Protocol):
    """Losses ``[m]`` to one differentiable scalar, whose derivative by each loss is that task's weight.

    ``needs`` tells it from an ``Aggregator``.
    """

    needs: Literal["losses"]

    def __call__(self, losses: Tensor, /) -> Tensor:
        """The scalar to descend."""


@runtime_checkable
class Method(Protocol):
    """A whole training step, for methods that need more than gradients."""

    def step(
        self, problem: Problem, batch: Any, optimizer: optim.Optimizer, *, options: StepOptions = ...
    ) -> StepReport:
        """One training step on one batch."""


AnyMethod = Method | Weighting | LossWeighting | Aggregator
"""What ``step`` accepts as a method."""


@runtime_checkable
class TakesLosses(Protocol):
    """A weighting that also needs the losses: called as ``weights(gramian, losses=losses)``, NaN for an absent task."""

    takes_losses: bool


@runtime_checkable
class WeighsJacobian(Protocol):
    """An aggregator whose update is a weighted sum, with weights that it computes from the Jacobian itself."""

    def jacobian_weights(self, jacobian: Tensor, /) -> Tensor:
        """The weights ``[m]`` of a Jacobian ``[m, d]``."""


@runtime_checkable
class TakesAbsentTasks(Protocol):
    """A loss weighting that can do without some of the tasks.

    Called as ``method(losses, present=mask)`` where tasks are absent, with a boolean mask ``[m]`` and their losses 0.
    """

    takes_present: bool


@runtime_checkable
class TakesSeveralBatches(Protocol):
    """A method whose step is given several batches at once, of which one makes the update."""

    def update_batch(self, batch: Any, /) -> Any:
        """That one, as the problem's losses take it."""


@runtime_checkable
class HasUnitWeights(Protocol):
    """A loss weighting whose weights, as it is configured now, are 1 each.

    One backward pass then does for trunk and heads, and a step need not read the weights from the device to know.
    """

    has_unit_weights: bool


@runtime_checkable
class HasMemory(Protocol):
    """A weighting or aggregator whose result depends on earlier steps, as it is configured now.

    It cannot be applied to several groups of parameters in one step: each would go on from what another one left.
    """

    has_memory: bool


@runtime_checkable
class LearnsAfterStep(Protocol):
    """A method that learns from what the update did to the losses, such as FAMO."""

    def after_step(self, before: Tensor, after: Callable[[], Tensor], /) -> None:
        """Learn from the update; ``after()`` evaluates the losses ``[m]`` once more on the same batch."""


@runtime_checkable
class CountsEpochs(Protocol):
    """A method that is told by the training loop when an epoch begins."""

    def start_epoch(self, epoch: int, /) -> None:
        """An epoch begins, counted from 0."""


@runtime_checkable
class ReportsEvents(Protocol):
    """A method that has events to tell; the step moves them into its report."""

    def pop_events(self) -> tuple[Event, ...]:
        """Hand over the events since the last call, and forget them."""


@runtime_checkable
class Resets(Protocol):
    """A method that can forget what it has learnt."""

    def reset(self) -> None:
        """Forget what was learnt; settings stay."""


@runtime_checkable
class Remembers(Protocol):
    """A method with a state of its own, which a fresh object can go on from.

    ``state_dict`` hands out values that later steps do not change: copies, or tensors that are replaced as a whole. An
    error in a step is undone by giving them back.
    """

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any:
        """Go on from what another one remembered."""


@runtime_checkable
class Draws(Protocol):
    """A method that draws random numbers, and from where."""

    generator: torch.Generator


P = TypeVar("P")


@cache
def _members(protocol: Any) -> tuple[str, ...]:
    """The names that a protocol asks for."""
    named = {*vars(protocol), *vars(protocol).get("__annotations__", {})}
    return tuple(sorted(name for name in named if not name.startswith("_")))


def offers(method: object, protocol: type[P]) -> TypeGuard[P]:
    """Whether a method has what an optional protocol asks for; an attribute that is ``None`` does not count.

    The same question as ``isinstance``, which walks the protocol anew each time and takes tens of microseconds where a
    module lacks the attribute; a step asks several times.

    Example:
        >>> class Weights:
        ...     takes_losses = True
        >>> offers(Weights(), TakesLosses), offers(Weights(), CountsEpochs)
        (True, False)
    """
    wanted: Any = protocol
    kind = type(method)
    for name in _members(wanted):
        if not hasattr(kind, name) and name not in getattr(method, "__dict__", ()):
            # A module's own look-up finds parameters and submodules only, and builds an error text where it fails.
            if not hasattr(kind, "__getattr__") or kind.__getattr__ is nn.Module.__getattr__:
                return False
            if not hasattr(method, name):
                return False
        if getattr(method, name) is None:
            return False
    return True


def check_method(method: Any) -> Any:
    """Return ``method`` if it is one of some kind, or a callable, which may take a Jacobian ``[m, d]``.

    Raises:
        InvalidInputError: it is neither, or the class of a method.
    """
    checks.instance("method", method)
    if not callable(method) and not offers(method, Method) and not offers(method, Weighting):
        raise InvalidInputError(
            f"`method` must have step(), weights() or be callable on a Jacobian [m, d], got {type(method).__name__}. "
            "Give a method's object, not its name, or a function from the Jacobian to an update [d]."
        )
    return method


def is_loss_weighting(method: object) -> TypeGuard[LossWeighting]:
    """Whether a method works on losses alone."""
    return offers(method, _Needs) and method.needs == "losses" and not offers(method, Method)


class _Needs(Protocol):
    """A method that says what it works on."""

    needs: str
