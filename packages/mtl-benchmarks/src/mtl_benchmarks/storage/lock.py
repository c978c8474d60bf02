"""A lock on a directory, so that one process at a time works in it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtl_benchmarks.storage.files import on_disk
from mtl_core import ResultsDirectoryError

try:
    import fcntl
except ImportError:  # no such locks on this platform
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(path: Path) -> Iterator[str | None]:
    """Hold the lock file of a directory; a process that dies lets go, whatever its children do.

    Args:
        path: the lock file; it is made if it does not exist, stays, and its content is of no account.

    Yields:
        None, or why there can be no lock here: it is for the user to see to it that no other process is at work.

    Raises:
        ResultsDirectoryError: another process holds it.
    """
    if fcntl is None:
        yield "this platform has no file locks"
        return
    with on_disk(path, "writable"):
        # The file stays when the lock ends: removed, a second process might hold a lock on a file that is no longer
        # there, and a third on a new one.
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with on_disk(path, "writable"):
            reason = _flock(handle, path)
        with _not_in_children(handle):
            yield reason
    finally:
        with suppress(OSError):
            # Closing alone ends a lock only once no child has it open: one just forked may not have closed it yet.
            fcntl.flock(handle, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(handle)


def _flock(handle: int, path: Path) -> str | None:
    try:
        # Without waiting: who starts a run twice is to hear of it.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsDirectoryError(
            f"`directory` {str(path.parent)!r} must be free, got a run that another process is working on. Wait for "
            "it, or choose another directory."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return f"this file system has no locks ({error.strerror})"
    return None


_held: set[int] = set()
_closing_registered = False


@contextmanager
def _not_in_children(handle: int) -> Iterator[None]:
    """Forked children close the lock file: a lock lasts as long as any process has it open.

    Without this the data workers of a killed run keep its directory locked until they notice.
    """
    global _closing_registered
    if not _closing_registered and sys.platform != "win32":
        os.register_at_fork(after_in_child=_close_held)
        _closing_registered = True
    _held.add(handle)
    try:
        yield
    finally:
        _held.discard(handle)


def _close_held() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()
