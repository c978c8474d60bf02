"""Errors of one rank are raised on all ranks, before the next collective operation.

A rank that raised while the others went on into a collective operation would leave them waiting for it, until the
process group's timeout. So the ranks exchange one flag after each piece of work that a rank does by itself. If it is
set on any of them, every rank raises the same error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from mtl_core.errors import RankError

__all__ = ["agree", "gather_texts", "together"]

_NOTE = "Every rank of the process group raised this error."


def together(group: dist.ProcessGroup | None) -> AbstractContextManager[None]:
    """Do something on every rank, and raise on all of them what it raised on one.

    Args:
        group: the ranks; ``None`` for one process, which just raises.

    Raises:
        Exception: the error of the first rank that has one, of its type; its text names the rank, or says that it is
            that of every rank.
    """
    return _ALONE if group is None else _all_or_none(group)


_ALONE = nullcontext()
"""What one process does together with itself: one for all, since making one takes longer than entering it."""


@contextmanager
def _all_or_none(group: dist.ProcessGroup) -> Iterator[None]:
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of whatever type, the other ranks must raise it too; agree() raises it here
        failure = error
    agree(failure, group)


def agree(failure: Exception | None, group: dist.ProcessGroup) -> None:
    """Raise on every rank if some rank has failed.

    Costs one reduction of a single number between CPUs: no device is waited for.

    Args:
        failure: this rank's error, if it has one.
        group: the ranks.

    Raises:
        Exception: as for ``together``.
    """
    if failure is not None and _NOTE in getattr(failure, "__notes__", ()):
        raise failure  # from a nested block: every rank has raised it already, its text needs no second prefix
    channel = _channel(group)
    flag = torch.tensor(0 if failure is None else 1, device="cpu")
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=channel)
    if not int(flag):
        return
    # Objects are sent in the case of an error only: pickling and two more exchanges would cost every step time.
    told: list[_Told | None] = [None] * dist.get_world_size(channel)
    dist.all_gather_object(told, None if failure is None else _Told.of(failure), group=channel)
    # The lowest rank's, so that all ranks choose alike where several have failed.
    rank, first = next((rank, found) for rank, found in enumerate(told) if found is not None)
    # What all found alike, as by a mean over the ranks, is no one's in particular.
    alike = len(told) > 1 and all(found is not None and found.text == first.text for found in told)
    raise first.error("on every rank" if alike else f"on rank {rank}") from failure


def gather_texts(text: str, group: dist.ProcessGroup) -> list[tuple[int, str]]:
    """What each rank has to say, by rank; empty texts are left out.

    Args:
        text: this rank's.
        group: the ranks, all of which must call.
    """
    channel = _channel(group)
    told: list[str | None] = [None] * dist.get_world_size(channel)
    dist.all_gather_object(told, text, group=channel)
    return [(rank, found) for rank, found in enumerate(told) if found]


@dataclass(frozen=True)
class _Told:
    """An error in a form that can be sent: constructors differ too much for pickling the error itself."""

    kind: type[Exception] | None
    name: str
    text: str
    attributes: dict[str, Any]

    @classmethod
    def of(cls, error: Exception) -> _Told:
        kind = type(error)
        # Only types that every rank can import: one that a script defines need not exist elsewhere under its name.
        known = kind.__module__.partition(".")[0] in ("builtins", "torch") or kind.__module__.startswith("mtl_")
        # These two cannot be made from a text, and would be taken for something else on their way.
        known &= not issubclass(kind, BaseExceptionGroup | StopIteration)
        # Tensors, tracebacks and references to other objects may not be sent, or would be too large.
        plain = {
            name: value
            for name, value in vars(error).items()
            if isinstance(value, str | int | float | tuple | None) and not name.startswith("__")
        }
        return cls(kind if known else None, kind.__name__, str(error), plain)

    def error(self, where: str) -> Exception:
        """The error, as every rank raises it."""
        if self.kind is None:
            unknown = RankError(f"{where}: {self.name}: {self.text}")
            unknown.add_note(_NOTE)
            return unknown
        # Past the constructor: some add to the text or require arguments that were not kept.
        found = self.kind.__new__(self.kind)
        found.args = (f"{where}: {self.text}",)
        vars(found).update(self.attributes)
        found.add_note(_NOTE)
        return found


@lru_cache(maxsize=16)
def _channel(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group of the same ranks that reaches tensors on the CPU.

    A question asked through the devices would have to wait for them. All ranks ask their first one together, so that
    they make the group together.
    """
    # Gloo beside NCCL in one group reaches both kinds of tensors already.
    if "nccl" not in dist.get_backend(group) or "gloo" in dist.get_backend(group):
        return group
    found = dist.new_group(dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True)
    assert isinstance(found, dist.ProcessGroup)
    return found
