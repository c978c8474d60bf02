"""Leaving a process of a test that several processes make up."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import torch.distributed as dist

__all__ = ["leave"]


def leave(code: int = 0) -> NoReturn:
    """Destroy the default process group, and end this process without winding the interpreter up.

    A thread of gloo lets go of the last operation's Python objects some time after it is done. If the interpreter is
    being wound up by then, it ends that thread within a destructor, which ends the process with SIGABRT and "terminate
    called without an active exception": 4 of 12 runs of one test, whatever was waited for or collected before.

    Args:
        code: the process's exit code.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
