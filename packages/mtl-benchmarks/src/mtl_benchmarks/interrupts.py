"""Ctrl-C and SIGTERM in the command ``mtl-bench``: one line and exit code 130 or 143, from its first import to its end.

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

__all__ = ["INTERRUPTED", "TERMINATED", "ended_by", "leave_at_interrupt", "raise_at_interrupt", "shielded"]

INTERRUPTED, TERMINATED = 130, 143
"""The exit codes, as of a process that the signal ended: 128 + 2 and 128 + 15."""

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_BEFORE = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""The signals, and how Python handles each where nobody has changed it."""

_seen: signal.Signals | None = None


def leave_at_interrupt(*, said: bool = False) -> None:
    """Let the signals end this process at once, where it is the command: while nothing has begun, or all is done.

    Not by ``KeyboardInterrupt``: an import that is broken off by it may turn it into another error, or drop it.

    Args:
        said: whether the line has been printed.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        _leave_to_the_system(number)
        if not said:
            os.write(2, f"mtl-bench: {_WORDS[signal.Signals(number)]}.\n".encode())
        os._exit(128 + number)

    for each in _ours():
        signal.signal(each, leave)


def raise_at_interrupt() -> None:
    """Let the signals raise ``KeyboardInterrupt`` where this process is the command; a second one ends it at once.

    So does one that Python would drop, having come while an object was being finalised. A run is not harmed by that: it
    goes on from its last checkpoint, as after any kill.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        global _seen
        _leave_to_the_system(number)
        _seen = signal.Signals(number)
        leave_at_interrupt()
        raise KeyboardInterrupt

    def dropped(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.raise_signal(_seen or signal.SIGINT)  # the second one
        else:
            sys.__unraisablehook__(lost)

    ours = _ours()
    if ours:
        sys.unraisablehook = dropped
    for each in ours:
        signal.signal(each, interrupt)


def ended_by(error: BaseException) -> tuple[int, str] | None:
    """Exit code and word where a signal has come, whatever error it has become on its way; else None."""
    if _seen is None and not isinstance(error, KeyboardInterrupt):
        return None
    number = _seen or signal.SIGINT
    return 128 + number, _WORDS[number]


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


_PROCESS = os.getpid()


def _leave_to_the_system(number: int) -> None:
    """In a process that was forked from the command, which has its handlers: end it as a process without them ends."""
    if os.getpid() != _PROCESS:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)


def _ours() -> list[signal.Signals]:
    """The signals that are nobody else's, where this process is the command: a shell ignores Ctrl-C in the background.

    Of several processes that train together, the first alone answers to SIGTERM in words: it is told when another one
    is gone, and one that waits for the others within a collective operation would not hear it.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return []
    if not _is_the_command():
        return []
    is_first = int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"
    return [each for each in _WORDS if (each == signal.SIGINT or is_first) and _is_free(each)]


def _is_free(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    return handler == _BEFORE[number] or (isinstance(handler, FunctionType) and handler.__module__ == __name__)


def _is_the_command() -> bool:
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # while Python looks for a module, which is the word behind
        return sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["mtl_benchmarks"]
    folder, name = os.path.split(program)
    return name in ("mtl-bench", "mtl-bench.exe") or (name, os.path.basename(folder)) == (
        "__main__.py",
        "mtl_benchmarks",
    )


leave_at_interrupt()
