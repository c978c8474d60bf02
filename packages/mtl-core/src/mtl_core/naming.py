"""The names of the tasks of the step that is under way, for messages of what is only handed their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["called_tasks", "naming_tasks"]

_names: ContextVar[tuple[str, ...] | None] = ContextVar("_names", default=None)


@contextmanager
def naming_tasks(names: Sequence[str]) -> Iterator[None]:
    """Within it, tasks are called by these names."""
    token = _names.set(tuple(names))
    try:
        yield
    finally:
        _names.reset(token)


def called_tasks(n_tasks: int) -> tuple[str, ...]:
    """How messages call so many tasks: by the names of the step that is under way, or by their numbers.

    A method that is called on a vector of losses knows neither problem nor names. Where the step has another number of
    tasks, as for a method that is handed some of them, whose they are is not known.

    Args:
        n_tasks: how many there are.
    """
    names = _names.get()
    return names if names is not None and len(names) == n_tasks else tuple(f"task {i}" for i in range(n_tasks))
