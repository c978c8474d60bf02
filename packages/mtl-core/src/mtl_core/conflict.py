r"""Conflict metrics, all of them functions of the Gramian :math:`G = J J^\top` alone.

Every function takes the gradients in one of three forms: the ``TaskGradients`` of a step, a Jacobian ``[m, d]``, or by
keyword ``gramian=`` a Gramian ``[m, m]``. Results are tensors on the same device, so that reading a metric is the only
thing that waits for it. A task with a zero gradient has no direction: its cosines are 0, and it counts as no conflict.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_core import checks
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.errors import InvalidInputError, InvalidJacobianError

__all__ = [
    "conflict_count",
    "cosines",
    "dominated_conflict",
    "imbalance_ratio",
    "individual_progress",
    "majority_conflict",
    "mean_cosines",
    "weak_conflict",
]

Gradients = TaskGradients | Tensor


def read_gramian(gradients: Gradients | None, gramian: Tensor | None) -> Tensor:
    """The float64 Gramian ``[m, m]`` of gradients in any of the three accepted forms.

    Raises:
        InvalidInputError: neither or both of the two arguments are given.
        InvalidJacobianError: a matrix has the wrong rank, shape or dtype, or is not finite.
    """
    if (gradients is None) == (gramian is None):
        raise InvalidInputError("exactly one of the gradients and `gramian=` must be given.")
    if gramian is not None:
        wide = checks.gramian(gramian).to(torch.float64)
        return torch.lerp(wide, wide.mT, 0.5)  # its halves may be rounded apart
    if isinstance(gradients, TaskGradients):
        return gradients.gramian
    assert gradients is not None
    found = gramian_of(checks.jacobian(gradients))
    checks.refuse_lost(gradients, found, name="gradients")
    return found


def safe_cosine(inner: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``inner / (left * right)`` in [-1, 1], and 0 where a norm is; divided one by one, lest the product underflow."""
    zero = (left == 0) | (right == 0)
    one = torch.ones((), dtype=inner.dtype, device=inner.device)
    cosine = inner / torch.where(zero, one, left) / torch.where(zero, one, right)
    return torch.where(zero, torch.zeros_like(cosine), cosine.clamp(-1.0, 1.0))


def _norms(gramian: Tensor) -> Tensor:
    return gramian.diagonal().clamp(min=0.0).sqrt()


def _up_to_scale(g: Gradients | None, gramian: Tensor | None) -> Tensor:
    """``read_gramian`` up to a factor, which no cosine or ratio depends on: of gradients at any scale of float64."""
    if gramian is None and isinstance(g, Tensor):
        return read_gramian(_near_one(checks.jacobian(g)), None)
    return read_gramian(g, gramian)


def _near_one(values: Tensor) -> Tensor:
    """Finite values times a power of two, so that none of their squares leaves the range of float64."""
    # On an accelerator looking would mean waiting for it; squares of narrower numbers are in range.
    return checks.into_range(values)[0] if values.dtype is torch.float64 and values.is_cpu else values


def cosines(g: Gradients | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Pairwise cosines :math:`\cos\varphi_{ij} = \langle g_i, g_j\rangle / \|g_i\|\|g_j\|`, ``[m, m]``.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        float64 ``[m, m]`` in [-1, 1], symmetric, 0 in the row and column of a zero gradient.

    Example:
        >>> import torch
        >>> cosines(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    matrix = _up_to_scale(g, gramian)
    norms = _norms(matrix)
    return safe_cosine(matrix, norms[:, None], norms[None, :])


def mean_cosines(g: Gradients | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Cosine of each gradient with the mean gradient, :math:`\cos\varphi_{i0}`, ``[m]``.

    With :math:`g_0 = \frac1m\sum_j g_j`: :math:`\langle g_i, g_0\rangle = \frac1m (G\mathbf 1)_i`.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        float64 ``[m]`` in [-1, 1]; 0 for a zero gradient, and everywhere if the mean gradient is zero.

    Example:
        >>> import torch
        >>> mean_cosines(torch.tensor([[4.0, 0.0], [-2.0, 0.0]]))
        tensor([ 1., -1.], dtype=torch.float64)
    """
    matrix = _up_to_scale(g, gramian)
    inner = matrix.mean(dim=1)
    # The mean's norm by cancellation is only known to rounding; below that it is zero.
    squared = inner.mean()
    floor = matrix.diagonal().amax() * torch.finfo(matrix.dtype).eps * 4
    mean_norm = torch.where(squared > floor, squared, torch.zeros_like(squared)).sqrt()
    return safe_cosine(inner, _norms(matrix), mean_norm)


def weak_conflict(g: Gradients | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Whether some pair of tasks conflicts: :math:`\exists i, j: \cos\varphi_{ij} < 0`.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        boolean scalar tensor.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, definition 1.

    Example:
        >>> import torch
        >>> bool(weak_conflict(torch.tensor([[1.0, 0.0], [-0.1, 5.0]])))
        True
    """
    return (cosines(g, gramian=gramian) < 0).any()


def dominated_conflict(g: Gradients | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Whether the task with the smallest gradient conflicts with the mean: :math:`\cos\varphi_{i0} < 0` for it.

    That is the conflict which comes from imbalance: following the mean gradient makes the weakest task worse. Tasks
    with a zero gradient are left out of the choice of the smallest.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        boolean scalar tensor.

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equation 3.

    Example:
        >>> import torch
        >>> bool(dominated_conflict(torch.tensor([[4.0, 0.0], [-1.0, 0.5]])))
        True
    """
    matrix = _up_to_scale(g, gramian)
    squared = matrix.diagonal()
    smallest = torch.where(squared > 0, squared, torch.full_like(squared, math.inf)).argmin()
    # By gather: an index that is itself a tensor would be read, and the device waited for.
    return mean_cosines(gramian=matrix).gather(0, smallest.unsqueeze(0))[0] < 0


def conflict_count(g: Gradients | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Number of tasks whose gradient conflicts with the mean, :math:`\#\{i: \cos\varphi_{i0} < 0\}`.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        int64 scalar tensor in [0, m - 1].

    Example:
        >>> import torch
        >>> int(conflict_count(torch.tensor([[4.0, 0.0], [-1.0, 0.5], [-1.0, -0.5]])))
        2
    """
    return (mean_cosines(g, gramian=gramian) < 0).sum()


def majority_conflict(g: Gradients | None = None, fraction: float = 0.5, *, gramian: Tensor | None = None) -> Tensor:
    r"""Whether at least :math:`\lceil \text{fraction}\cdot m\rceil` tasks conflict with the mean.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        fraction: in (0, 1]; the paper uses one half.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        boolean scalar tensor.

    Raises:
        InvalidParameterError: ``fraction`` is not in (0, 1].

    References:
        Zhou et al., *Continual Optimization with Symmetry Teleportation for Multi-Task Learning*, equation 4.

    Example:
        >>> import torch
        >>> bool(majority_conflict(torch.tensor([[4.0, 0.0], [-1.0, 0.5], [-1.0, -0.5]])))
        True
    """
    checks.positive("fraction", checks.in_interval("fraction", fraction, 0.0, 1.0))
    matrix = _up_to_scale(g, gramian)
    # Products such as 0.07 * 100 come out a little above the whole number, and would ask for one task more.
    needed = math.ceil(fraction * matrix.shape[0] - 1e-12)
    return conflict_count(gramian=matrix) >= needed


def imbalance_ratio(g: Gradients | None = None, *, gramian: Tensor | None = None) -> Tensor:
    r"""Largest over smallest gradient norm, :math:`\max_i\|g_i\| / \min_i\|g_i\|`.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``.
        gramian: the Gramian ``[m, m]`` instead.

    Returns:
        float64 scalar tensor, at least 1; infinite if some gradient, and NaN if every gradient, is zero.

    Example:
        >>> import torch
        >>> float(imbalance_ratio(torch.tensor([[3.0, 4.0], [0.0, 1.0]])))
        5.0
    """
    norms = _norms(_up_to_scale(g, gramian))
    return norms.amax() / norms.amin()


def individual_progress(g: Gradients | None, update: Tensor, *, gramian: Tensor | None = None) -> Tensor:
    r"""First-order progress of each task along an update, :math:`\langle g_i, d\rangle / \|g_i\|\|d\|`, ``[m]``.

    A negative entry is a task that the update makes worse.

    Args:
        g: gradients as ``TaskGradients`` or Jacobian ``[m, d]``, or ``None`` with ``gramian``.
        update: the combined gradient ``[d]``; with ``gramian`` the weights ``[m]`` of :math:`d = J^\top w` instead.
        gramian: the Gramian ``[m, m]`` instead of ``g``.

    Returns:
        float64 ``[m]`` in [-1, 1]; 0 for a zero gradient or a zero update.

    Raises:
        InvalidJacobianError: ``update`` does not have one entry per parameter (or per task, with ``gramian``).
        InvalidInputError: neither or both of ``g`` and ``gramian`` are given.

    Example:
        >>> import torch
        >>> individual_progress(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]))
        tensor([1., 0.], dtype=torch.float64)
    """
    if gramian is not None:
        matrix = read_gramian(g, gramian)
        if update.shape != matrix.shape[:1]:
            raise InvalidJacobianError(
                f"`update` must hold one weight per task, shape {tuple(matrix.shape[:1])}, got {tuple(update.shape)}."
            )
        weights = update.to(matrix)
        inner = matrix @ weights
        length = (weights @ inner).clamp(min=0.0).sqrt()
        return safe_cosine(inner, _norms(matrix), length)
    if g is None:
        raise InvalidInputError("exactly one of the gradients and `gramian=` must be given.")
    jacobian = g.whole_matrix if isinstance(g, TaskGradients) else checks.jacobian(g)
    if update.shape != jacobian.shape[1:]:
        raise InvalidJacobianError(
            f"`update` must hold one entry per parameter, shape {tuple(jacobian.shape[1:])}, got {tuple(update.shape)}."
        )
    # Only directions count, so that neither may underflow.
    direction = _near_one(update).to(torch.float64)
    # In float64: whether a task conflicts is the sign of a sum that may cancel.
    wide = _near_one(jacobian).to(torch.float64)
    return safe_cosine(wide @ direction, checks.row_norms(wide), direction.norm())
