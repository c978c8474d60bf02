"""What is finite, and the words for what is not: losses, gradients, squared norms, updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl_core import checks
from mtl_core.collecting.dense import DenseStore
from mtl_core.collecting.exchange import HostCopy
from mtl_core.collecting.flat import as_real
from mtl_core.collecting.heads import HeadGradients
from mtl_core.collecting.overflow import fits
from mtl_core.collecting.store import GradientStore
from mtl_core.errors import NonFiniteGradientError, NonFiniteLossError

__all__ = [
    "broken_gradients",
    "broken_heads",
    "broken_losses",
    "check_finite_gramian",
    "check_finite_losses",
    "has_finite_entries",
    "refuse_too_small",
]


def broken_losses(found: Mapping[str, float] | Sequence[str], *, where: str = "") -> NonFiniteLossError:
    """The error that names tasks whose losses are not finite.

    Args:
        found: the tasks, with their losses where these are known.
        where: on which ranks, as words that go on from there.
    """
    told = f" for {list(found)}"
    if isinstance(found, Mapping):
        told = ": " + ", ".join(f"{name!r} is {value}" for name, value in found.items())
    return NonFiniteLossError(
        f"every task's loss must be finite, got{' NaN or infinity' if told[0] == ' ' else ''}{told}{where}. Nothing "
        "was updated. Look at this batch's targets and the learning rate.",
        tasks=tuple(found),
    )


def broken_gradients(
    tasks: Sequence[str], *, of: str = "", where: str = "", further: str = ""
) -> NonFiniteGradientError:
    """The error that names tasks whose gradients are not finite though their losses are.

    Args:
        tasks: the tasks; none where it is not known which.
        of: what the gradients are of, such as ``" of the heads"``.
        where: on which ranks, as words that go on from there.
        further: what else there is to say, at the end.
    """
    whose = f"tasks {list(tasks)}" if tasks else "this batch"
    return NonFiniteGradientError(
        f"the gradients{of} of {whose} must be finite, got NaN or infinity though the losses are finite{where}. "
        "Nothing was updated. Look for sqrt or log at zero in these losses, or pass the gradient scaler to step()."
        + further,
        tasks=tuple(tasks),
    )


def check_finite_losses(losses: Tensor, names: Sequence[str], index: Sequence[int]) -> None:
    """Make sure that the losses at ``index`` are finite.

    Args:
        losses: ``[m]``.
        names: the tasks' names.
        index: positions of the tasks that are present.

    Raises:
        NonFiniteLossError: naming the tasks whose loss is not.
    """
    found = losses.tolist()
    bad = {names[i]: found[i] for i in index if not math.isfinite(found[i])}
    if bad:
        raise broken_losses(bad)


def check_finite_gramian(host: HostCopy, store: GradientStore, names: Sequence[str], *, further: str) -> None:
    """Make sure that the gradients are finite, by their Gramian on the CPU.

    Args:
        host: what was copied there.
        store: the gradients.
        names: the tasks.
        further: what to add where several tasks are named.

    Raises:
        NonFiniteGradientError: naming the tasks whose gradients are not, or whose squared norms leave float64.
    """
    # A sum is finite only where all entries are.
    if math.isfinite(float(host.gramian.sum())) or bool(torch.isfinite(host.gramian).all()):
        return
    diagonal = host.gramian.diagonal().tolist()
    _refuse_too_large(store, names, [i for i, square in enumerate(diagonal) if square == math.inf])
    broken = [names[i] for i, square in enumerate(diagonal) if not math.isfinite(square)]
    raise broken_gradients(broken, further=further * (len(broken) > 1))


def refuse_too_small(gramian: Tensor, store: GradientStore, names: Sequence[str], index: Sequence[int]) -> None:
    """Make sure that no gradient is so small that float64 does not hold its square, and is taken for none.

    Args:
        gramian: on the CPU.
        store: the gradients; of those that are spread over ranks nothing is known here.
        names: the tasks.
        index: positions of those whose gradients are not zero for lack of data.

    Raises:
        InvalidJacobianError: naming the tasks.
    """
    if store.is_partial or store.dtype not in (torch.float64, torch.complex128):
        return
    checks.refuse_lost_rows(
        gramian,
        store.largest,
        what="the gradient of each task",
        called=[*map(repr, names)],
        among=index,
        further=" Nothing was updated.",
    )


def _refuse_too_large(store: GradientStore, names: Sequence[str], infinite: Sequence[int]) -> None:
    """Tell gradients whose squares leave float64 from those that are not finite: the way out is another."""
    if store.is_partial:
        return
    units = torch.eye(store.n_tasks, dtype=torch.float64, device="cpu")
    # By a sum with weights of 0 where there are no rows, in which another task's NaN would show as well.
    is_kept = isinstance(store, DenseStore)
    rows = (store.matrix[i] if is_kept else store.combine(units[i], None) for i in infinite)
    large = [names[i] for i, row in zip(infinite, rows, strict=True) if has_finite_entries(row)]
    if large:
        raise NonFiniteGradientError(
            f"the squared norms of the gradients of tasks {large} must stay below 1.8e308, got larger ones of "
            "finite gradients. Nothing was updated. Multiply these losses by a small constant.",
            tasks=large,
        )


def broken_heads(host: HostCopy, heads: HeadGradients, *, believed: bool) -> list[int]:
    """The tasks whose gradients of the heads are not finite, by the flags that were copied.

    Args:
        host: what was copied to the CPU.
        heads: the gradients.
        believed: whether a flag is, though it may also stand for a sum that overflowed: other ranks cannot be asked,
            and one that looked at its own part alone would go on where another stops.
    """
    if all(map(math.isfinite, host.head_flags)):
        return []
    own = range(len(host.head_flags)) if believed else heads.broken()
    return [i for i in own if not math.isfinite(host.head_flags[i])]


def has_finite_entries(gradient: Tensor) -> bool:
    """Whether all entries that a gradient holds are finite."""
    stored = gradient._values() if gradient.layout == torch.sparse_coo else gradient
    return fits(as_real(stored), stored.dtype.to_real())
