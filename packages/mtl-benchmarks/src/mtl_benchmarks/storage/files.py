"""The files of a run, one at a time: read whole, written whole, with a digest, and under a lock.

Nothing else in this package opens a run's files, so that what a disk can do wrong is put into words here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mtl_core import DamagedFileError, InvalidInputError, ResultsDirectoryError

__all__ = [
    "PART",
    "canonical",
    "damaged",
    "digest_of",
    "entries",
    "exists",
    "is_directory",
    "make_directory",
    "on_disk",
    "parsed",
    "part_of",
    "read",
    "remove",
    "remove_parts",
    "rename",
    "sealed",
    "unsealed",
    "write_atomically",
]

PART = ".mtl-bench-"
"""How the name of a file begins that is still being written."""

_BINARY: int = vars(os).get("O_BINARY", 0)  # Windows has it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def digest_of(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical(data: Any) -> bytes:
    """Plain data as JSON that is the same for equal data, to take a digest of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def parsed(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is none, or has entries within entries without end, which Python's reader has an error of its own
            for.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("entries within entries without end") from None


def sealed(data: Mapping[str, Any], path: Path) -> str:
    """Plain data as JSON with the name of its file and the digest of all of it, for :func:`unsealed`."""
    # With its name: a whole file copied over another would have a right digest.
    whole = {"file": path.name, **data}
    return json.dumps({**whole, "digest": digest_of(canonical(whole))}, indent=2) + "\n"


def unsealed(content: bytes, path: Path) -> dict[str, Any]:
    """What :func:`sealed` was given.

    Raises:
        DamagedFileError: the content is not what was written.
    """
    try:
        data = parsed(content)
        found = data.pop("digest")
        whole = digest_of(canonical(data)) == found
        name = data.pop("file")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise damaged(path, f"{len(content)} bytes that cannot be read ({type(error).__name__})") from None
    if not whole:
        raise damaged(path, "content with another digest")
    if name != path.name:
        raise damaged(path, f"the content of {name}")
    return dict(data)


def damaged(path: Path, found: str, way_out: str = "") -> DamagedFileError:
    """The error that names a damaged file."""
    text = f"`{path.name}` in {str(path.parent)!r} must be as it was written, got {found}. {way_out}"
    return DamagedFileError(text.rstrip(), path=path)


def read(path: Path, *, last: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        last: how many bytes of its end, at most; None: all of it.

    Raises:
        ResultsDirectoryError: it is not there, or cannot be read.
    """
    with on_disk(path, "readable"):
        handle = os.open(path, os.O_RDONLY | _BINARY)
        try:
            if last is not None:
                os.lseek(handle, max(0, os.fstat(handle).st_size - last), os.SEEK_SET)
            parts = []
            while part := os.read(handle, 1 << 24):
                parts.append(part)
        finally:
            os.close(handle)
    return b"".join(parts)


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new one and never a part.

    The content goes to a file of another name in the same directory, which is then renamed over ``path``.

    Args:
        path: the file.
        content: what it is to hold.
        durable: flush to the disk before and after renaming, so that not even a power failure leaves a part. Tables
            can be written again from the checkpoint and do without.

    Raises:
        ResultsDirectoryError: it cannot be written; the old content is still there.
    """
    with part_of(path, content, durable=durable) as part:
        rename(part, path, durable=durable)


@contextmanager
def part_of(path: Path, content: bytes | str, *, durable: bool = True) -> Iterator[Path]:
    """The content under a passing name beside ``path``, to be renamed; it is removed if that does not come about."""
    part = path.with_name(f"{PART}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    data = memoryview(content.encode() if isinstance(content, str) else content)
    try:
        with on_disk(path, "writable"):
            # By the system's calls rather than open(): each error then has its number, and nothing is buffered that
            # could fail on closing.
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
            try:
                while data:
                    # A write may take a part only, as on a disk that is nearly full.
                    data = data[os.write(handle, data) :]
                if durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
        yield part
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def rename(old: Path, new: Path, *, durable: bool = True) -> None:
    """Give a file another name, in place of what had it."""
    with on_disk(new, "writable"):
        # In one step, as POSIX promises within one directory: a reader finds the old file or the new one.
        os.replace(old, new)
        if durable:
            _flush_names(new.parent)


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    with on_disk(path, "writable"), suppress(FileNotFoundError):
        os.unlink(path)


def remove_parts(directory: Path) -> None:
    """Remove what a killed process left half written. Only for who holds the lock of the directory."""
    for name in entries(directory, parts=True):
        if name.startswith(PART):
            remove(directory / name)


def exists(path: Path) -> bool:
    """Whether there is anything of that name, a link that leads nowhere included."""
    try:
        with on_disk(path, "readable"):
            # Not the target: a link that leads nowhere is something in the way.
            os.lstat(path)
    except ResultsDirectoryError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return False
        raise
    return True


def entries(directory: Path, *, parts: bool = False) -> list[str]:
    """Names in a directory, sorted; those that are still being written only if asked for."""
    with on_disk(directory, "readable"):
        names = sorted(os.listdir(directory))
    return [name for name in names if parts or not name.startswith(PART)]


def is_directory(path: Path) -> bool:
    """Whether there is a directory; there could be one if not.

    Raises:
        ResultsDirectoryError: something else has its name or that of a directory above it, or it cannot be looked at.
    """
    for place in (path, *path.parents):
        if os.path.isdir(place):
            return place == path
        if os.path.islink(place) and not os.path.exists(place):
            raise ResultsDirectoryError(
                f"`directory` must be a directory, got {str(place)!r}, a link to {os.readlink(place)!r}, which is not "
                "there. Make that directory, or choose another one."
            )
        if exists(place):
            raise ResultsDirectoryError(f"`directory` must be a directory, got the file {str(place)!r}.")
    return False


def make_directory(path: Path) -> None:
    """Make a directory with those above it; one that is there is left alone.

    Raises:
        ResultsDirectoryError: it cannot be made, or something else has its name.
    """
    is_directory(path)
    with on_disk(path, "writable"):
        os.makedirs(path, exist_ok=True)


def _flush_names(directory: Path) -> None:
    if sys.platform == "win32":  # directories cannot be opened there
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def on_disk(path: Path, rule: str) -> Iterator[None]:
    """Put what the system says about a file into words.

    Args:
        path: the file.
        rule: what it must be: ``"readable"`` or ``"writable"``.

    Raises:
        ResultsDirectoryError: instead of an ``OSError``, or where no file can have the name.
    """
    try:
        yield
    except OSError as error:
        raise ResultsDirectoryError(_told(path, rule, error)) from error
    except InvalidInputError:  # an own error, in words already, and a ValueError too
        raise
    except ValueError as error:  # a name with a null character, or one that this system cannot encode
        raise ResultsDirectoryError(
            f"`path` must be a name that a file can have, got {str(path)!r} ({error}). Choose another one."
        ) from error


def _told(path: Path, rule: str, error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    again = "and give the same command again: a run goes on from its last checkpoint."
    if error.errno in _FULL:
        way_out = f"Make room {again}"
    elif error.errno in _FORBIDDEN:
        way_out = f"Make it {rule} {again} Or choose another directory."
    else:
        way_out = f"See to the disk {again} Or choose another directory."
    return f"`{path.name}` in {str(path.parent)!r} must be {rule}, got {error.strerror or error} ({name}). {way_out}"
