"""What a process that works on a run is made of, and which processes have worked on it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

import mtl_aggregators
import mtl_core
import mtl_teleport

__all__ = ["Sessions", "differences", "environment"]

_NAMED = {"packages": "{}", "code": "code of {}", "data": "files of `{}`"}
"""What of an environment has several entries, and how each of them is called."""
_OF_NO_ACCOUNT = ("argv", "cpu_count", "threads")
"""What of an environment may differ between two sessions without a word; the threads of a run are in its config."""


def environment() -> dict[str, Any]:
    """Versions and hardware of this process, for the record."""
    import mtl_benchmarks

    own = (mtl_core, mtl_aggregators, mtl_teleport, mtl_benchmarks)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": {
            "torch": str(torch.__version__),  # a class of its own otherwise, which a checkpoint cannot hold
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            # The module that is imported and not what is installed under its name, which may be another one.
            **{module.__name__.replace("_", "-"): module.__version__ for module in own},
        },
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "argv": [*_program(Path(sys.argv[0])), *sys.argv[1:]],
    }


def _program(path: Path) -> list[str]:
    """The words that start a program, wherever it is installed; of a package that is run its name, not its file's."""
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two environments differ that numbers may depend on, in words.

    Example:
        >>> differences(
        ...     {"python": "3.11.4", "packages": {"torch": "2.9.0"}, "argv": ["mtl-bench"]},
        ...     {"python": "3.11.4", "packages": {"torch": "2.9.1"}, "argv": ["demo"]},
        ... )
        ['torch 2.9.1 after 2.9.0']
    """
    # What a version before did not record is no difference.
    groups = [group for group in _NAMED if group in before and group in now]
    # Nor is a module that only one of them had imported yet, or a folder that is no longer there: modules that are
    # used elsewhere now show in the text of those that use them.
    shared = {group: before[group].keys() & now[group].keys() for group in groups if group != "packages"}
    old, new = (
        {
            **each,
            **{
                _NAMED[group].format(key): value
                for group in groups
                for key, value in each[group].items()
                if key in shared.get(group, each[group])
            },
        }
        for each in (before, now)
    )
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in (*_NAMED, *_OF_NO_ACCOUNT)]
    return [f"{key} {new.get(key)} after {old.get(key)}" for key in keys if old.get(key) != new.get(key)]


class Sessions:
    """The processes that have worked on a run, the last of them this one.

    A session is plain data: ``began`` (UTC), ``environment``, ``from`` and ``until`` (epoch and steps of the run that
    were done, both counted from 0) and ``notes``, what was said in it. The list is part of the checkpoint.

    Args:
        earlier: those before, from the checkpoint.
        say: is called with each note.
    """

    def __init__(self, earlier: Sequence[Mapping[str, Any]] = (), *, say: Callable[[str], None]) -> None:
        self.listed: list[dict[str, Any]] = [dict(session) for session in earlier]
        self._say = say

    def begin(self, position: Mapping[str, int], beside: Mapping[str, Any] | None = None) -> None:
        """This process goes on from ``position``; other versions than before are said.

        Args:
            position: epoch and step.
            beside: what else the numbers depend on, recorded and compared with the versions: ``code``, ``data``.
        """
        now = {**environment(), **(beside or {})}
        changed = differences(self.listed[-1]["environment"], now) if self.listed else []
        began = datetime.now(UTC).isoformat(timespec="seconds")
        self.listed.append(
            {"began": began, "environment": now, "from": dict(position), "until": dict(position), "notes": []}
        )
        if changed:
            self.note(
                f"goes on with {', '.join(changed)}: the numbers may differ from those of a run that was not broken off"
            )

    def note(self, text: str) -> None:
        """Say something, and record it with the run."""
        self.listed[-1]["notes"].append(text)
        self._say(text)

    def reached(self, position: Mapping[str, int]) -> None:
        """This process has come to ``position``."""
        self.listed[-1]["until"] = dict(position)

    @property
    def notes(self) -> list[str]:
        """What was said in all of them."""
        return [note for session in self.listed for note in session["notes"]]

    def table(self) -> bytes:
        """The content of ``environment.json``."""
        return (json.dumps(self.listed, indent=2) + "\n").encode()
