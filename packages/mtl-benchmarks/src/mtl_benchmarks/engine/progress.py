"""Where a run stands, for who watches it."""

from __future__ import annotations

from dataclasses import dataclass

from mtl_benchmarks.engine.recorder import Recorder

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, handed to the ``progress`` callback after every step.

    Attributes:
        done: steps taken, those before a restart included.
        total: steps of the whole run, unless it ends early.
        epoch: the current epoch, from 0.
        recorder: what has been recorded so far; reading losses from it waits for the device.
    """

    done: int
    total: int
    epoch: int
    recorder: Recorder
