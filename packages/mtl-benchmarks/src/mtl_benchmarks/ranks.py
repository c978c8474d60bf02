"""The processes that train one model together: who they are, and how the first leads the others.

The first process does what a single one would do: it holds the directory, draws progress and decides what comes next.
Before each thing that all of them do together it says so, and the others do as they hear. So there is one course of a
run, however many processes there are, and an error of the first in what it does by itself ends the others too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mtl_core import InvalidInputError
from mtl_core.extension import together

__all__ = ["Ranks", "current_ranks", "joined"]

_TIMEOUT = timedelta(minutes=10)
"""After so long without a word of another process, all end. Loading data or an evaluation may not take longer on one
process than on the others by as much."""

_ALONE = contextlib.nullcontext()
"""What one process does together with itself: one for all, since a step of a small net is not much longer than making
one."""


@dataclass
class Ranks:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: which this is, from 0.
        size: how many there are.
        local: which this is on its machine; GPUs are given by it.
        group: the process group; None where there is only this process.
        has_parted: whether all of them have raised an error, so that none listens any more.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    group: dist.ProcessGroup | None = None
    has_parted: bool = field(default=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this process leads."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device of this process: of several GPUs of a machine, each process has its own.

        Args:
            asked: as the configuration names it.
        """
        if self.group is None or torch.device(asked).type != "cuda":
            return asked
        return f"cuda:{self.local}"

    def together(self) -> AbstractContextManager[None]:
        """Do something on every process, and raise on all of them what it raised on one."""
        return _ALONE if self.group is None else self._together()

    def parting(self) -> AbstractContextManager[None]:
        """Note that all processes raise the error, if there is one, as they do when ``mtl_core.step`` raises."""
        return _ALONE if self.group is None else self._parting()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        with self._parting(), together(self.group):
            yield

    @contextlib.contextmanager
    def _parting(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.has_parted = True
            raise

    def say(self, word: str) -> None:
        """Tell the others what comes next; only the first process has something to say."""
        if self.group is not None and self.is_first:
            self._from_first(word)

    def hear(self) -> str:
        """What the first process says."""
        word: str = self._from_first(None)
        return word

    def share(self, value: Any) -> Any:
        """The first process's value, on all of them.

        Args:
            value: what the first process gives; of no account on the others.
        """
        return value if self.group is None else self._from_first(value)

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, by rank, on all of them."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def _from_first(self, value: Any) -> Any:
        # Every process brings a box; that of the first is what all of them hold afterwards.
        box = [value]
        assert self.group is not None
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, 0), group=self.group)
        return box[0]

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of the first, such as running statistics, which each has from its own data."""
        if self.group is None:
            return
        for buffer in model.buffers():
            dist.broadcast(buffer, src=dist.get_global_rank(self.group, 0), group=self.group)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """What the first process does by itself between what all do: its errors are raised on the others too."""
        try:
            yield
        except Exception as error:
            # Where all have raised already, as in a step, none listens any more.
            if self.group is not None and not self.has_parted:
                self.say("fail")
                # Raises the error here with the rank in its text, as on the others.
                with self.together():
                    raise error
            raise


def current_ranks() -> Ranks:
    """The processes of torch's default process group, or this one alone.

    Example:
        >>> current_ranks().size
        1
    """
    # One process is no group: nothing is then sent to itself.
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return Ranks()
    group = dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup)
    return _ranks_of(group)


@lru_cache(maxsize=4)
def _ranks_of(group: dist.ProcessGroup) -> Ranks:
    """One object for a group, so that everyone knows when its processes have parted."""
    return Ranks(dist.get_rank(group), dist.get_world_size(group), int(os.environ.get("LOCAL_RANK", "0")), group)


@contextlib.contextmanager
def joined(environment: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, if it did; all but the first print nothing.

    Gloo reaches the CPU, NCCL the GPUs where there are any; with both, questions between processes need not wait for a
    device.

    Args:
        environment: where ``torchrun`` says who this process is; None: that of this process.

    Raises:
        InvalidInputError: several processes are to be joined, and this build of torch has no process groups.
    """
    words = os.environ if environment is None else environment
    if int(words.get("WORLD_SIZE", "1")) == 1 or "RANK" not in words:
        yield Ranks()
        return
    if not dist.is_available():
        raise InvalidInputError("several processes must have torch.distributed, got a torch without it.")
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        # Before the group is made: NCCL would take the first GPU for each of them.
        torch.cuda.set_device(int(words.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=_TIMEOUT)
    try:
        ranks = current_ranks()
        with contextlib.ExitStack() as stack:
            if not ranks.is_first:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            yield ranks
        # Who ends while another is still at it takes its connections with it, and threads of theirs that then end by
        # themselves abort the process.
        dist.barrier()
    finally:
        dist.destroy_process_group()
