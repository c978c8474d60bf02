"""Several runs at a time, each in a process of its own that ends when this one does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.interrupts import shielded
from mtl_benchmarks.runs.rehearsal import rehearse
from mtl_benchmarks.runs.runner import RunResult, run, warn
from mtl_benchmarks.storage.marker import refuse_kind
from mtl_benchmarks.storage.results import Collection
from mtl_core import ResultsDirectoryError
from mtl_core.checks import positive_int

__all__ = ["run_all"]

Job = tuple[RunConfig, Path]
Lost = Callable[[Job, Exception], None]

_PR_SET_PDEATHSIG = 1
_PATIENCE = 10.0
"""Seconds that a process without a job has to end by itself."""


def run_all(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    processes: int = 1,
    progress: Callable[[RunResult], None] | None = None,
    say: Callable[[str], None] | None = None,
    spare: Callable[[RunConfig, Exception], bool] | None = None,
) -> list[RunResult]:
    """Train every configuration in a collection of runs; complete runs are only read, broken-off ones finished.

    What the first step of any of them would refuse is refused before the first of them begins. What a run computes does
    not depend on how many run beside it; the seconds it takes do. The first run that fails
    ends the others where they are; they go on from their checkpoints when they are started again. The processes end
    with this one, however it ends.

    Args:
        configs: the runs.
        out: the collection.
        processes: how many runs at a time; with 1 they run in this process.
        progress: called with each result, in the order of ``configs``.
        say: called with what a person should know, and while a benchmark makes what is made once on a machine, see
            ``run``; None: a warning, and silence.
        spare: called with a run that has failed, and its error; true: the others go on without it. None: never.

    Returns:
        the results, in the same order, without those that were spared.

    Raises:
        ResultsDirectoryError: ``out`` holds something else, or the process of a run was ended from outside.
        InvalidParameterError: ``processes`` is not a positive whole number.
        InvalidInputError: a run would be refused at its first step.
    """
    positive_int("processes", processes)
    refuse_kind(Path(out), "collection")
    rehearse(configs, out, say=say)
    collection = Collection(out)
    jobs = [(config, collection.run_path(config.name)) for config in configs]

    def lost(job: Job, error: Exception) -> None:
        if spare is None or not spare(job[0], error):
            raise error

    finished = _run_in_turn(jobs, lost, say) if processes == 1 else _run_beside_each_other(jobs, processes, lost, say)
    results: list[RunResult] = []
    for result in finished:
        if result is not None:
            results.append(result)
            if progress is not None:
                progress(result)
    return results


def _run_in_turn(jobs: Sequence[Job], lost: Lost, say: Callable[[str], None] | None) -> Iterator[RunResult | None]:
    """The results in the order of the jobs, None for a run that was spared."""
    for job in jobs:
        config, path = job
        try:
            result = run(config, path, say=say, preparing=say)
        except Exception as error:  # noqa: BLE001 - it is raised, or told to whoever spares the run
            lost(job, error)
            yield None
        else:
            yield result


def _run_beside_each_other(
    jobs: Sequence[Job], processes: int, lost: Lost, say: Callable[[str], None] | None
) -> Iterator[RunResult | None]:
    """As :func:`_run_in_turn`, each as soon as those before it are there."""
    # Numbers, not jobs: results are handed out in the order of the jobs, whichever ends first.
    waiting = deque(range(len(jobs)))
    results: dict[int, RunResult | None] = {}
    with _workers(min(processes, len(jobs))) as workers:
        for worker in workers:
            worker.give(waiting, jobs)
        for number in range(len(jobs)):
            # While this result is not there, whatever comes from any process is dealt with, and those that are done get
            # the next.
            while number not in results:
                for worker in _heard_from(workers):
                    kind, content = worker.hear(jobs)
                    if kind == "said":
                        (say or warn)(content)
                    if kind == "prepares" and say is not None:
                        say(content)
                    if kind == "failed":
                        lost(jobs[worker.job], content)
                    if kind in ("done", "failed"):
                        results[worker.job] = content if kind == "done" else None
                        worker.give(waiting, jobs)
            yield results.pop(number)


class _Worker:
    """Another process, which trains one run after the other."""

    def __init__(self) -> None:
        # Spawned: a forked process would have torch's threads in whatever state they were, and CUDA cannot be used in
        # one at all.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs,))
        with shielded():
            self.process.start()
        theirs.close()  # so that this end hears when the process is gone
        self.job = -1
        self.began = False

    def give(self, waiting: deque[int], jobs: Sequence[Job]) -> None:
        """Hand it the next job, or nothing if there is none."""
        self.job = waiting.popleft() if waiting else -1
        try:
            self.connection.send(None if self.job < 0 else jobs[self.job])
        except OSError:
            if self.job >= 0:
                raise self._gone(jobs) from None

    def hear(self, jobs: Sequence[Job]) -> tuple[str, Any]:
        """What it has to say."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            raise self._gone(jobs) from None
        self.began = True
        return kind, content

    def _gone(self, jobs: Sequence[Job]) -> ResultsDirectoryError:
        # The pipe may break before the process is gone; its exit code is known only then.
        self.process.join(_PATIENCE)
        code = self.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = (
            "If memory ran out, give fewer `processes`."
            if self.began
            else "A script that calls this must do so under `if __name__ == '__main__':`."
        )
        return ResultsDirectoryError(
            f"the process of the run {str(jobs[self.job][1])!r} must live until the run is complete, got one that was "
            f"ended by {how}. {hint} Give the same command again: complete runs are read, and this one goes on from "
            "its last checkpoint."
        )


def _heard_from(workers: Sequence[_Worker]) -> list[_Worker]:
    ready = wait([worker.connection for worker in workers if worker.job >= 0])
    return [worker for worker in workers if worker.connection in ready]


@contextmanager
def _workers(n: int) -> Iterator[list[_Worker]]:
    """Processes that are gone afterwards; those that still work are killed, from which a run recovers."""
    workers: list[_Worker] = []
    try:
        while len(workers) < n:
            workers.append(_Worker())
        yield workers
        for worker in workers:
            worker.process.join(_PATIENCE)
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _work(connection: Connection) -> None:
    """The life of such a process."""
    # First of all: what is done before it would go on without a parent.
    _end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent sees to its end
        signal.signal(number, signal.SIG_IGN)
    # Tells a process that ended at its start, as where the script has no main guard, from one that ended at work.
    connection.send(("began", None))
    while (job := connection.recv()) is not None:
        config, path = job
        try:
            result = run(
                config,
                path,
                say=lambda text: connection.send(("said", text)),
                preparing=lambda text: connection.send(("prepares", text)),
            )
        except Exception as error:  # noqa: BLE001 - it is raised in the parent
            # A traceback cannot be pickled, and that of the parent ends at the pipe.
            error.add_note("".join(traceback.format_exception(error)))
            connection.send(("failed", _portable(error)))
            continue
        connection.send(("done", result))


def _portable(error: Exception) -> Exception:
    """The error, or where another process could not make it again, one that says the same."""
    try:
        # Tried here: an error that cannot be read in the parent would raise another one there, without its text.
        again = pickle.loads(pickle.dumps(error))
    except (pickle.PickleError, AttributeError, ImportError, RecursionError, TypeError, ValueError):
        again = None
    # Some come back as another type without a word.
    return error if type(again) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """End this process when its parent is gone, even one that was killed.

    Linux does that by itself, in the middle of a long computation too. Elsewhere, and in case that the parent was gone
    before this was asked for, a thread waits for the pipe that only the parent holds open.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="end with parent").start()
