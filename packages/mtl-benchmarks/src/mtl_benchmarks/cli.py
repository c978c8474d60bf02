"""The command ``mtl-bench``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtl_core import InvalidInputError, MissingExtraError, NonFiniteStateError, SolverError, UnknownNameError

__all__ = ["main"]

_USAGE = """usage: mtl-bench COMMAND …

  list                              benchmarks, methods and teleports
  describe NAME                     one of them: tasks, metrics, options, reference
  run BENCHMARK [options]           train; `mtl-bench run BENCHMARK --help` lists the options
  compare RUNS… [--figures DIR]     tables over finished runs, and figures
  study BENCHMARK [options]         methods beside each other, alone and with teleports; --help lists the options
  ablate BENCHMARK [options]        what of a teleport matters, beside a random move; --help lists the options

NAME is one of `mtl-bench list`, or package.module:Class for a benchmark, method or teleport of your own.

example: mtl-bench run digits --method fairgrad --method.alpha 2 --teleport cost --seeds 3
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 a computation failed, 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    commands = {
        "list": _list,
        "describe": _describe,
        "run": _run,
        "compare": _compare,
        "study": _study,
        "ablate": _ablate,
    }
    try:
        if arguments[0] not in commands:
            raise UnknownNameError("command", arguments[0], commands)
        with _modules_beside_the_command():
            commands[arguments[0]](arguments[1:])
    except (InvalidInputError, MissingExtraError) as error:
        print(f"mtl-bench: {error}", file=sys.stderr)
        return 2
    except (SolverError, NonFiniteStateError) as error:
        print(f"mtl-bench: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read the output has stopped. What Python would flush at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"mtl-bench: {_system(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mtl-bench: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def _system(error: OSError) -> str:
    """What the system says of a file that is none of a run's, such as a figure or a module."""
    what = "a file" if error.filename is None else repr(os.fspath(error.filename))
    return f"{what} must be usable, got {error.strerror or error}. See to it, and give the same command again."


@contextlib.contextmanager
def _modules_beside_the_command() -> Iterator[None]:
    """Let ``mine:Method`` be found in the current directory, as ``python -m`` does and a console script does not."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)  # last, so that no file there hides an installed package
    try:
        yield
    finally:
        sys.path.remove(here)


def _list(arguments: Sequence[str]) -> None:
    from mtl_benchmarks.description import overview
    from mtl_benchmarks.session import open_console

    _no_more("list", arguments)
    open_console().print(overview())


def _describe(arguments: Sequence[str]) -> None:
    from mtl_benchmarks.description import describe

    if not arguments:
        raise InvalidInputError("`describe` must be followed by a name, got none. `mtl-bench list` shows the names.")
    _no_more("describe", arguments[1:])
    print(describe(arguments[0]))


def _run(arguments: Sequence[str]) -> None:
    from mtl_benchmarks.command_line import parse_run
    from mtl_benchmarks.ranks import joined
    from mtl_benchmarks.runner import run
    from mtl_benchmarks.session import execute, open_console, planned, print_report

    with joined() as ranks:
        plan = parse_run(arguments)
        if plan is None:
            return
        if not ranks.is_first:
            for config in planned(plan):
                run(config, plan.out)  # takes part in it, and touches no file
            return
        console = open_console()
        with ranks.leading():
            results = execute(plan, console)
    print_report(results, console)
    for result in results:
        # Plain lines, so that a path is never wrapped and other programs can read it.
        print(f"run: {result.directory}")


def _compare(arguments: Sequence[str]) -> None:
    from mtl_benchmarks.report import find_runs
    from mtl_benchmarks.session import open_console, print_report

    parser = argparse.ArgumentParser(prog="mtl-bench compare")
    parser.add_argument("runs", nargs="*", help="directories of runs, or of collections of runs")
    parser.add_argument("--figures", type=Path, help="write figures to this directory")
    options, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        raise UnknownNameError("option", unknown[0], ["--figures"])
    if not options.runs:
        raise InvalidInputError(
            "`compare` must be followed by directories of runs, got none, e.g. mtl-bench compare runs/*"
        )
    asked, others = find_runs(options.runs)
    print_report(asked, open_console(), others=others, figures=options.figures)


def _study(arguments: Sequence[str]) -> None:
    from mtl_benchmarks.session import open_console
    from mtl_benchmarks.study import main as study

    study(arguments, open_console())


def _ablate(arguments: Sequence[str]) -> None:
    from mtl_benchmarks.ablation import main as ablate
    from mtl_benchmarks.session import open_console

    ablate(arguments, open_console())


def _no_more(command: str, arguments: Sequence[str]) -> None:
    if arguments:
        raise InvalidInputError(f"`{command}` must stand without further arguments, got {' '.join(arguments)}.")


if __name__ == "__main__":
    raise SystemExit(main())
