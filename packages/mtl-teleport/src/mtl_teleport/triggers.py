r"""When to teleport: conditions on the Gramian that a step has computed anyway, so asking costs O(m²).

Conditions combine with ``&`` and ``|``. How often a teleport may happen at all (a delayed start, a number per epoch)
is the business of the method that asks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from mtl_core import InvalidInputError, checks, dominated_conflict, majority_conflict, mean_cosines, weak_conflict

__all__ = [
    "Always",
    "AnyMeanConflict",
    "DominatedConflict",
    "MajorityConflict",
    "Trigger",
    "WeakConflict",
    "as_trigger",
    "truth",
]


class Trigger(ABC):
    """A condition on the task gradients, read from their Gramian."""

    @abstractmethod
    def __call__(self, gramian: Tensor) -> bool:
        """Whether the condition holds.

        Args:
            gramian: ``[m, m]``; the row and column of an absent task are zero.
        """

    @property
    def name(self) -> str:
        """How reports call the condition."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.name}()"

    def __and__(self, other: Trigger) -> Trigger:
        return _Both(self, other)

    def __or__(self, other: Trigger) -> Trigger:
        return _Either(self, other)


def truth(found: object, name: str) -> bool:
    """What a condition has answered, as yes or no.

    Raises:
        InvalidInputError: it is neither, such as one answer per task.
    """
    try:
        return bool(found)
    except (RuntimeError, TypeError, ValueError) as error:
        kind = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInputError(
            f"`trigger` must say yes or no, got {kind} from {name}. Make one answer of it, for example by .any()."
        ) from error


class _Function(Trigger):
    def __init__(self, condition: Callable[[Tensor], object]) -> None:
        self._condition = condition
        own = getattr(condition, "__name__", None)
        self._name = own if isinstance(own, str) else type(condition).__name__

    def __call__(self, gramian: Tensor) -> bool:
        return truth(self._condition(gramian), self._name)

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return self._name


def as_trigger(condition: Trigger | Callable[[Tensor], object]) -> Trigger:
    """A trigger from a trigger, or from any function of the Gramian, which is then called by its own name.

    Args:
        condition: ``condition(gramian)`` says whether to teleport.

    Raises:
        InvalidInputError: it is neither.

    Example:
        >>> import torch
        >>> def always(gramian):
        ...     return True
        >>> as_trigger(always).name, as_trigger(always)(torch.eye(2))
        ('always', True)
    """
    if isinstance(condition, Trigger):
        return condition
    checks.instance("trigger", condition)
    if not callable(condition):
        raise InvalidInputError(
            f"`trigger` must be a Trigger or a function of the Gramian [m, m], got {type(condition).__name__}. For "
            "example mtl_teleport.DominatedConflict()."
        )
    return _Function(condition)


class _Both(Trigger):
    def __init__(self, left: Trigger, right: Trigger) -> None:
        self._left, self._right = left, right

    def __call__(self, gramian: Tensor) -> bool:
        return self._left(gramian) and self._right(gramian)

    @property
    def name(self) -> str:
        return f"({self._left.name} & {self._right.name})"

    def __repr__(self) -> str:
        return f"({self._left!r} & {self._right!r})"


class _Either(Trigger):
    def __init__(self, left: Trigger, right: Trigger) -> None:
        self._left, self._right = left, right

    def __call__(self, gramian: Tensor) -> bool:
        return self._left(gramian) or self._right(gramian)

    @property
    def name(self) -> str:
        return f"({self._left.name} | {self._right.name})"

    def __repr__(self) -> str:
        return f"({self._left!r} | {self._right!r})"


class WeakConflict(Trigger):
    r"""Some pair of tasks conflicts: :math:`\exists i, j: \cos\varphi_{ij} < 0`.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, appendix table 3.

    Example:
        >>> import torch
        >>> WeakConflict()(torch.tensor([[1.0, -0.1], [-0.1, 1.0]]))
        True
    """

    def __call__(self, gramian: Tensor) -> bool:
        """Whether some pair conflicts."""
        return bool(weak_conflict(gramian=gramian))


class DominatedConflict(Trigger):
    r"""The task with the smallest gradient conflicts with the mean: :math:`\cos\varphi_{i0} < 0` for it.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equation 3.

    Example:
        >>> import torch
        >>> DominatedConflict()(torch.tensor([[16.0, -4.0], [-4.0, 1.25]]))
        True
    """

    def __call__(self, gramian: Tensor) -> bool:
        """Whether the task with the smallest gradient, of those with one, conflicts with the mean."""
        return bool(dominated_conflict(gramian=gramian))


class Always(Trigger):
    """Every step that the limits allow: for moves that have another reason than conflict.

    Example:
        >>> import torch
        >>> Always()(torch.eye(2))
        True
    """

    def __call__(self, gramian: Tensor) -> bool:
        """True."""
        return True


class AnyMeanConflict(Trigger):
    r"""Some task does not gain from the mean: :math:`\min_i \cos\varphi_{i0} \le 0`, over tasks that have a gradient.

    Note:
        The condition in the authors' released code. A task with a zero gradient, for instance one absent from the
        batch, has no say; in the released code its undefined cosine never compares as smaller.

    Example:
        >>> import torch
        >>> AnyMeanConflict()(torch.diag(torch.tensor([1.0, 0.0])))
        False
    """

    def __call__(self, gramian: Tensor) -> bool:
        """Whether some task with a gradient has a cosine of at most 0 with the mean."""
        # A task that is absent has a row of zeros, whose cosine of 0 is no conflict.
        present = gramian.diagonal() > 0
        return bool(((mean_cosines(gramian=gramian) <= 0) & present).any())


class MajorityConflict(Trigger):
    r"""Many tasks conflict with the mean.

    .. math:: \#\{i: \cos\varphi_{i0} < 0\} \ge \lceil \text{fraction}\cdot m\rceil

    Args:
        fraction: in (0, 1]; the paper uses one half and sweeps it in appendix figure 3.

    Raises:
        InvalidParameterError: ``fraction`` is not in (0, 1].

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equation 4.

    Example:
        >>> import torch
        >>> jacobian = torch.tensor([[4.0, 0.0], [-1.0, 0.5], [-1.0, -0.5]])
        >>> MajorityConflict(0.5)(jacobian @ jacobian.T), MajorityConflict(1.0)(jacobian @ jacobian.T)
        (True, False)
    """

    def __init__(self, fraction: float = 0.5) -> None:
        self.fraction = checks.positive("fraction", checks.in_interval("fraction", fraction, 0.0, 1.0))

    def __call__(self, gramian: Tensor) -> bool:
        """Whether at least that fraction of the tasks conflicts with the mean."""
        return bool(majority_conflict(fraction=self.fraction, gramian=gramian))

    def __repr__(self) -> str:
        return f"MajorityConflict({self.fraction:g})"
