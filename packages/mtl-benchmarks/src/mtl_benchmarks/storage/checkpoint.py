"""A checkpoint as bytes: the state of a run, whose it is, and a digest over all of it."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mtl_benchmarks.storage.files import canonical, damaged, digest_of, exists, part_of, read, rename
from mtl_core import DamagedFileError, InvalidInputError, ResultsDirectoryError

__all__ = ["Checkpoint", "Checkpoints", "config_digest"]

_SEAL = b"\nsha256 "
_SEAL_LENGTH = len(_SEAL) + 64 + 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    The file is what ``torch.save`` writes, with a last line that holds the SHA-256 of everything before it;
    ``torch.load(file, weights_only=True)`` reads it as any other.

    Attributes:
        run: the run's identity, drawn when it began; a copy has the same one.
        config: digest of its configuration.
        sessions: the processes that have worked on it; see ``Sessions``.
        state: of the trainer.
        observers: what those of the run have to know after a restart, by the name of their class; one after the other
            where there are several of a class.
    """

    run: str
    config: str
    sessions: Sequence[Mapping[str, Any]]
    state: Mapping[str, Any]
    observers: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def position(self) -> dict[str, int]:
        """``epoch`` and ``step``, both done and counted from 0."""
        return dict(self.sessions[-1]["until"])

    def to_bytes(self) -> bytes:
        """The content of its file."""
        buffer = io.BytesIO()
        content = {
            "run": self.run,
            "config": self.config,
            "sessions": list(self.sessions),
            "state": dict(self.state),
            "observers": {name: list(states) for name, states in self.observers.items()},
        }
        torch.save(content, buffer)
        data = buffer.getvalue()
        # Behind the archive: a reader of zip files looks for their directory from the end backwards, past other bytes.
        return b"".join((data, _SEAL, digest_of(data).encode(), b"\n"))

    @classmethod
    def from_bytes(cls, content: bytes, path: Path) -> Checkpoint:
        """What :meth:`to_bytes` gave, with all tensors on the CPU.

        Raises:
            DamagedFileError: the content is not what was written.
            InvalidInputError: it is, and holds something that is neither plain data nor tensors.
        """
        data, seal = content[:-_SEAL_LENGTH], content[-_SEAL_LENGTH:]
        if seal[: len(_SEAL)] != _SEAL or seal[-1:] != b"\n":
            raise damaged(path, f"{len(content)} bytes that do not end in a digest")
        if seal[len(_SEAL) : -1] != digest_of(data).encode():
            raise damaged(path, "content with another digest")
        try:
            # weights_only, since a pickle can run anything: a checkpoint may come from somebody else.
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = "an object" if named is None else f"an object of {named[1]}"
            raise InvalidInputError(
                f"`{path.name}` must hold plain data and tensors, got {what}, which is not read back. "
                "Let `state_dict` of method and optimiser give numbers, strings, lists, dictionaries and tensors."
            ) from error
        return cls(**found)


class Checkpoints:
    """The last two checkpoints of a run.

    Args:
        directory: of the run.

    Attributes:
        newest: ``checkpoint.pt``.
        previous: ``checkpoint.previous.pt``, the one before that.
    """

    def __init__(self, directory: Path) -> None:
        self.newest = directory / "checkpoint.pt"
        self.previous = directory / "checkpoint.previous.pt"

    def write(self, checkpoint: Checkpoint, *, verify: bool = False) -> str:
        """Write a checkpoint; the last one before it is kept under another name.

        Wherever this is broken off there is a whole checkpoint: the new one is on the disk before the old one makes
        room, and the one before is renamed and never rewritten.

        Args:
            checkpoint: of the run as it stands.
            verify: read it back before anything else is touched.

        Returns:
            its digest, by which the result knows it.

        Raises:
            ResultsDirectoryError: it cannot be written.
            InvalidInputError: it cannot be read back, being neither plain data nor tensors.
        """
        content = checkpoint.to_bytes()
        if verify:
            Checkpoint.from_bytes(content, self.newest)
        # The new one is on the disk, under a passing name, before either of the others is touched.
        with part_of(self.newest, content) as part:
            # Killed between the two renames, there is no file of this name, and the one before stands in; see `read`.
            if exists(self.newest):
                rename(self.newest, self.previous)
            rename(part, self.newest)
        return _seal_of(content)

    def seal(self) -> str | None:
        """The digest that stands in the newest checkpoint, whether it is right or not; None if there is none."""
        return _seal_of(read(self.newest, last=_SEAL_LENGTH)) if exists(self.newest) else None

    def read(self, config: Mapping[str, Any]) -> Checkpoint | None:
        """The last checkpoint, or the one before where there is none of that name, or None.

        Args:
            config: of the run that it must be of.

        Raises:
            DamagedFileError: it is damaged. Which one is good is said; it is for the user to choose it.
            ResultsDirectoryError: it is of another configuration.
        """
        if not exists(self.newest):
            return self._read(self.previous, config) if exists(self.previous) else None
        try:
            return self._read(self.newest, config)
        except DamagedFileError as error:
            raise DamagedFileError(f"{error} {self._way_on(config)}", path=self.newest) from None

    def _read(self, path: Path, config: Mapping[str, Any]) -> Checkpoint:
        found = Checkpoint.from_bytes(read(path), path)
        if found.config != config_digest(config):
            raise ResultsDirectoryError(
                f"`{path.name}` in {str(self.newest.parent)!r} must belong to the configuration of this run, got one "
                f"of another configuration ({found.config[:12]} and not {config_digest(config)[:12]}). Put back "
                "the file that belongs here, or choose another directory."
            )
        return found

    def _way_on(self, config: Mapping[str, Any]) -> str:
        begin_anew = "Move both away to begin anew, or choose another directory."
        if not exists(self.previous):
            return "There is no checkpoint before it. Move it away to begin anew, or choose another directory."
        try:
            position = self._read(self.previous, config).position
        except ResultsDirectoryError as error:
            return f"The one before it is no better: {error} {begin_anew}"
        return (
            f"The one before it, {self.previous.name}, is good (epoch {position['epoch']}, step "
            f"{position['step']}): move {self.newest.name} away and give the same command again to go on "
            "from there."
        )


def _seal_of(content: bytes) -> str:
    return content[-_SEAL_LENGTH:][len(_SEAL) : -1].decode(errors="replace")


def config_digest(config: Mapping[str, Any]) -> str:
    """Digest of a configuration, the same for equal ones."""
    return digest_of(canonical(config))
