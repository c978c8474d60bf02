"""Ctrl-C in the command ``mtl-bench``: one line and exit code 130, from its first import to its end.

A process that only imports this package is left as it is.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, FunctionType
from typing import NoReturn

__all__ = ["INTERRUPTED", "leave_at_interrupt", "raise_at_interrupt", "shielded", "was_interrupted"]

INTERRUPTED = 130
"""The exit code, as of a process that the signal ended: 128 + 2."""


_seen = False


def leave_at_interrupt(*, said: bool = False) -> None:
    """Let Ctrl-C end this process at once, where it is the command: while nothing has begun, or all is done.

    Not by ``KeyboardInterrupt``: an import that is broken off by it may turn it into another error, or drop it.

    Args:
        said: whether the line has been printed.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        if not said:
            os.write(2, b"mtl-bench: interrupted.\n")
        os._exit(INTERRUPTED)

    if _is_ours():
        signal.signal(signal.SIGINT, leave)


def raise_at_interrupt() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` where this process is the command; a second one ends it at once.

    So does one that Python would drop, having come while an object was being finalised. A run is not harmed by that: it
    goes on from its last checkpoint, as after any kill.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        global _seen
        _seen = True
        leave_at_interrupt()
        raise KeyboardInterrupt

    def dropped(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second one
        else:
            sys.__unraisablehook__(lost)

    if _is_ours():
        sys.unraisablehook = dropped
        signal.signal(signal.SIGINT, interrupt)


def was_interrupted() -> bool:
    """Whether Ctrl-C has come, whatever error it has become on its way."""
    return _seen


@contextmanager
def shielded() -> Iterator[None]:
    """Processes that are started in here never see Ctrl-C, which a terminal sends to all: their parent ends them.

    Here it waits until the end of this.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_ours() -> bool:
    """Whether this process is the command, and Ctrl-C is nobody else's: a shell ignores it in the background."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return False
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler and not (
        isinstance(handler, FunctionType) and handler.__module__ == __name__
    ):
        return False
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # while Python looks for a module, which is the word behind
        return sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["mtl_benchmarks"]
    folder, name = os.path.split(program)
    return name in ("mtl-bench", "mtl-bench.exe") or (name, os.path.basename(folder)) == (
        "__main__.py",
        "mtl_benchmarks",
    )


leave_at_interrupt()
