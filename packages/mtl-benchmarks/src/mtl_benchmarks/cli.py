"""The command ``mtl-bench``."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

from mtl_benchmarks.command_line.help_text import EXIT_CODES
from mtl_benchmarks.commands import COMMANDS, find_command
from mtl_benchmarks.interrupts import ended_by, leave_at_interrupt, raise_at_interrupt
from mtl_core import (
    InvalidInputError,
    MissingExtraError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteStateError,
    RankError,
    SolverError,
)

__all__ = ["main"]

DONE, FAILED, BAD_INPUT = 0, 1, 2

_GO_ON = frozenset({"run", "study", "ablate", "figure", "sac"})
"""Commands that train, and take up what was broken off."""

TRACEBACK = "MTL_BENCH_TRACEBACK"
"""Name of the environment variable that asks for the whole traceback of an error that has no words of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0: done, 1: a computation failed, 2: bad input or files, 130: interrupted, 143: terminated by SIGTERM. Whatever goes
    wrong is one line on the standard error stream.

    Args:
        argv: the words after ``mtl-bench``; None: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a file in another encoding has no sign for every one that is printed, such as Δ: better a
        # question mark than hours of training that end in an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        raise_at_interrupt()
        with _modules_beside_the_command():
            code = _run(words)
            sys.stdout.flush()  # here, where an error has words
    except BaseException as error:  # noqa: BLE001 - the last door
        # An import that it broke off may have made another error of it.
        if (signalled := ended_by(error)) is not None:
            leave_at_interrupt(said=True)
            code, word = signalled
            goes_on = words[:1] and words[0] in _GO_ON
            return _said(f"{word}{'; the same command goes on from the last checkpoint' * bool(goes_on)}.", code)
        code = _answer(error)
    leave_at_interrupt()
    return code


def _answer(error: BaseException) -> int:
    """Say what went wrong, in one line; what is no error goes on its way."""
    try:
        raise error
    except (SolverError, RankError, NonFiniteLossError, NonFiniteGradientError, NonFiniteStateError) as failure:
        return _said(failure, FAILED)
    except (InvalidInputError, MissingExtraError) as wrong:
        return _said(wrong, BAD_INPUT)
    except BrokenPipeError:
        # Whoever read the output has seen enough; without this Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as refused:
        return _said(_system(refused), BAD_INPUT)
    except Exception as other:  # noqa: BLE001 - the last door: code of others may raise anything
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        return _said(f"{_place(other)}{type(other).__name__}: {other}. {TRACEBACK}=1 shows the traceback.", FAILED)


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage(), end="")
        return DONE if words else _said("a command must follow, got none.", BAD_INPUT)
    if words[0] in ("--version", "-V"):
        print(_versions())
        return DONE
    find_command(words[0]).run(words[1:])
    return DONE


def _said(what: object, code: int) -> int:
    print(f"mtl-bench: {' '.join(str(what).split())}", file=sys.stderr)
    return code


def _place(error: Exception) -> str:
    """File and line where an error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}: " if frames else ""


def _usage() -> str:
    lines = ["usage: mtl-bench COMMAND …", ""]
    for name in COMMANDS:
        command = find_command(name)
        lines.append(f"  {f'{name} {command.usage}':<36}{command.summary}")
    lines += [
        "",
        "NAME and BENCHMARK are names of `mtl-bench list`, or package.module:Class of your own.",
        "mtl-bench COMMAND --help says more about one; mtl-bench --version prints versions.",
        "",
        "examples:",
        "  mtl-bench run digits --method fairgrad --method.alpha 2 --teleport cost --seeds 3",
        "  mtl-bench compare runs",
        "",
        EXIT_CODES,
    ]
    return "\n".join(lines) + "\n"


def _versions() -> str:
    import torch

    import mtl_aggregators
    import mtl_benchmarks
    import mtl_core
    import mtl_teleport

    packages = (mtl_benchmarks, mtl_core, mtl_aggregators, mtl_teleport)
    named = [f"{package.__name__.replace('_', '-')} {package.__version__}" for package in packages]
    return f"{named[0]} ({', '.join(named[1:])}, torch {torch.__version__}, Python {sys.version.split()[0]})"


def _system(error: OSError) -> str:
    """What the system says of a file that is none of a run's, such as a figure or a module."""
    what = "a file" if error.filename is None else repr(os.fspath(error.filename))
    return f"{what} must be usable, got {error.strerror or error}. See to it, and give the same command again."


@contextlib.contextmanager
def _modules_beside_the_command() -> Iterator[None]:
    """Let ``mine:Method`` be found in the current directory, as ``python -m`` does and a console script does not."""
    try:
        here = os.getcwd()
    except OSError:  # a directory that was removed beneath the process
        yield
        return
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)  # last, so that no file there hides an installed package
    try:
        yield
    finally:
        sys.path.remove(here)
