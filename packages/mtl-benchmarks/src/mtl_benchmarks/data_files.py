"""Files that a benchmark reads: what to fetch, whether what lies there is right, and what can be written.

A benchmark that reads files offers :class:`ReadsFiles`. ``mtl-bench data NAME --root DIR`` then says what to fetch,
writes what can be made here, and checks what it finds. A benchmark that makes its data in memory offers nothing.
"""

from __future__ import annotations

import hashlib
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from mtl_core import InvalidInputError

__all__ = ["DataSource", "ReadsFiles", "other_digests", "refuse_missing"]


class DataSource(ABC):
    """One way to come by the files of a benchmark: official ones to be fetched, or ones that are generated.

    The constructor's keyword arguments are options of ``mtl-bench data``: ``--data.OPTION``.
    """

    @abstractmethod
    def instructions(self, root: Path) -> str:
        """What a person has to fetch, from where, how large it is, and where under ``root`` it belongs.

        Args:
            root: the folder of the data; it need not exist.
        """

    @abstractmethod
    def problems(self, root: Path) -> Sequence[str]:
        """What is wrong with the files under ``root``, each with the file's name; empty where a run can begin.

        Args:
            root: the folder of the data; it need not exist.
        """

    def write(self, root: Path, said: Callable[[str], None]) -> None:
        """Make what can be made here and is not there yet; by default nothing.

        Args:
            root: the folder of the data; it is made if something is written.
            said: called with a line of text about each thing that was written.
        """
        return None


@runtime_checkable
class ReadsFiles(Protocol):
    """What a benchmark's class offers whose data lie in files.

    The benchmark takes the folder as its option ``root``.
    """

    @staticmethod
    def data_sources() -> Mapping[str, type[DataSource]]:
        """Name → source; the one under the benchmark's own name is what its name alone means."""
        ...


def other_digests(digests: Mapping[Path, str], algorithm: Literal["md5", "sha256"]) -> list[str]:
    """Which files are not those whose digests are known, each with both digests.

    Args:
        digests: file that is there → its digest in hexadecimal digits, in small letters.
        algorithm: which digest.

    Example:
        >>> other_digests({}, "md5")
        []
    """
    found = []
    for path, expected in digests.items():
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, algorithm).hexdigest()
        if digest != expected:
            found.append(
                f"{path}: must have the {algorithm.upper()} {expected}, got {digest}: it was changed, if only in its "
                "line ends, or is of another edition"
            )
    return found


def refuse_missing(what: str, root: Path, missing: Sequence[str], sources: Mapping[str, type[DataSource]]) -> None:
    """Say what is not there, and by which command one comes by it.

    Args:
        what: the data's name.
        root: the folder of the data.
        missing: folders and files below it; where there is none, nothing happens.
        sources: as a benchmark's ``data_sources()``.

    Raises:
        InvalidInputError: something is missing; all of it is named.
    """
    if not missing:
        return
    made = {name for name, source in sources.items() if source.write is not DataSource.write}
    ways = [f"`mtl-bench data {name}` says what to fetch" for name in sources if name not in made]
    ways += [
        f"of generated {name}, the same `mtl-bench data {name} --root {shlex.quote(str(root))} …` makes what is missing"
        for name in sources
        if name in made
    ]
    raise InvalidInputError(
        f"`root` must hold {what}, got {str(root)!r} without {', '.join(missing)}. What to do: {'; '.join(ways)}."
    )
