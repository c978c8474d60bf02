"""What was computed for the site is kept under ``.nox`` for as long as nothing that it may depend on changes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable

import torch

from docsite.repository import ROOT

__all__ = ["kept"]

_FOLDER = ROOT / ".nox" / "docsite"
_INPUTS = ("packages/*/src/**/*.py", "docsite/**/*.py", "docs/methods.md", "docs/when_methods_fail.md")


@functools.cache
def _sources() -> str:
    """A digest of everything that a page may be computed from, the versions of Python and torch included."""
    digest = hashlib.sha256(f"{sys.version_info[:3]} {torch.__version__}".encode())
    for pattern in _INPUTS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def kept(what: str, compute: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The files that ``compute`` makes, by name, from the last time if nothing has changed since.

    Args:
        what: tells this from everything else that is computed.
        compute: makes the files.
    """
    place = _FOLDER / f"{hashlib.sha256((_sources() + what).encode()).hexdigest()[:32]}.json"
    if place.is_file():
        found: dict[str, str] = json.loads(place.read_text(encoding="utf-8"))
        return found
    made = compute()
    _FOLDER.mkdir(parents=True, exist_ok=True)
    written = place.with_suffix(f".{os.getpid()}")  # whole, or not at all under the name that is looked for
    written.write_text(json.dumps(made), encoding="utf-8")
    written.replace(place)
    return made
