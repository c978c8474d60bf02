"""A few processes that stay, each with its simulators, and work through jobs side by side."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, TypeVar

import torch

from mtl_benchmarks.interrupts import shielded
from mtl_core import InvalidParameterError
from mtl_core.checks import positive_int

__all__ = ["WorkerError", "Workers", "counted", "shared_workers"]

R = TypeVar("R")


class WorkerError(RuntimeError):
    """A worker process ended, or failed with an error that cannot be handed on."""


class Workers:
    """Processes that are started when they are first needed and end with this one, however it ends.

    What a job gives does not depend on which process does it, nor on how many there are.

    Args:
        processes: how many; with 1 the jobs run in this process.

    Example:
        >>> with Workers(1) as workers:
        ...     workers.map(abs, [-2, 3])
        [2, 3]
    """

    def __init__(self, processes: int) -> None:
        self._n = positive_int("processes", processes)
        self._started: list[tuple[Any, Connection]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(
        self, function: Callable[[Any], R], jobs: Sequence[Any], *, done: Callable[[int], None] | None = None
    ) -> list[R]:
        """``[function(job) for job in jobs]``.

        Args:
            function: of a module, so that it can be found from another process.
            jobs: what can be pickled.
            done: called with the number of jobs that are done, after each.

        Raises:
            WorkerError: a process ended, or raised an error that cannot be handed on.
        """
        found: dict[int, R] = {}

        def keep(number: int, value: R) -> None:
            found[number] = value
            if done is not None:
                done(len(found))

        if self._n == 1:
            for number, job in enumerate(jobs):
                keep(number, function(job))
            return list(found.values())
        self._start()
        todo = iter(enumerate(jobs))
        busy: dict[Connection, int] = {}

        def give(pipe: Connection) -> None:
            following = next(todo, None)
            if following is not None:
                number, job = following
                with _alive():
                    pipe.send((function, job))
                busy[pipe] = number

        try:
            for _, pipe in self._started:
                give(pipe)
            while busy:
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    pipe = ready
                    # The pipe alone: an OSError of the job's own comes through it and says something else.
                    with _alive():
                        error, value = pipe.recv()
                    if error is not None:
                        raise error
                    keep(busy.pop(pipe), value)
                    give(pipe)
        finally:
            # After an error some jobs are still under way, and nobody waits for what they give.
            if busy:
                self.close()
        return [found[number] for number in range(len(jobs))]

    def _start(self) -> None:
        # Spawned, not forked: a forked child would hold the other children's pipes open, and none of them would see
        # this process end.
        context = multiprocessing.get_context("spawn")
        while len(self._started) < self._n:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            with shielded():
                process.start()
            # Only the child holds that end then, so that this one sees when it is gone.
            theirs.close()
            self._started.append((process, ours))

    def close(self) -> None:
        """End the processes."""
        for _, pipe in self._started:
            # The processes end when their pipe does.
            pipe.close()
        for process, _ in self._started:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        self._started = []


def counted(what: str, total: int, say: Callable[[str], None] | None) -> Callable[[int], None] | None:
    """For ``Workers.map(..., done=...)``: a line at the beginning, after every hundred jobs and at the end.

    Args:
        what: is done.
        total: of the jobs.
        say: called with the lines; None: nobody is told.
    """
    if say is None:
        return None

    def done(n: int) -> None:
        if n % 100 == 0 or n == total:
            say(f"mt10, once on this machine: {what}, {n:,} of {total:,} episodes")

    done(0)
    return done


@contextmanager
def _alive() -> Iterator[None]:
    """Say that the process at the other end of a pipe is gone."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise WorkerError(
            f"a worker process ended in the middle of its work ({type(error).__name__}): it was killed, or ran out of "
            "memory. Try again, with fewer processes if memory is short."
        ) from None


def shared_workers() -> Workers:
    """The workers of this process, which stay from one evaluation and one run to the next.

    As many as there are CPUs for this process, and 8 at most; ``MTL_WORKERS`` names another number. What they compute
    does not depend on it.

    Raises:
        InvalidParameterError: ``MTL_WORKERS`` is no whole number of at least 1.
    """
    named = os.environ.get("MTL_WORKERS")
    if named is None:
        allowed: Callable[[int], set[int]] | None = vars(os).get("sched_getaffinity")  # Linux has it
        return _workers(min(8, os.cpu_count() or 1 if allowed is None else len(allowed(0))))
    if not named.isdecimal() or int(named) == 0:
        raise InvalidParameterError(f"`MTL_WORKERS` must be a whole number of at least 1, got {named!r}.")
    return _workers(int(named))


@cache
def _workers(processes: int) -> Workers:
    return Workers(processes)


def _serve(pipe: Connection) -> None:
    """Do what comes until the other end is closed, which it is when that process ends."""
    # As many processes as CPUs: threads of each would only wait for one another.
    torch.set_num_threads(1)
    while True:
        try:
            function, job = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Exception | None, Any]
        try:
            answer = (None, function(job))
        except Exception as error:  # noqa: BLE001 - raised again where the job came from
            answer = (_portable(error), None)
        try:
            pipe.send(answer)
        except OSError:
            return


def _portable(error: Exception) -> Exception:
    """The error itself if another process can read it, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever an error's own constructor raises
        return WorkerError(f"a worker process failed: {type(error).__name__}: {error}")
    return error
