"""The tables of a run as bytes, and back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_benchmarks.storage.files import damaged, parsed

__all__ = ["TABLES", "events_from", "lines", "rows_from", "table"]

TABLES = (
    "metrics.csv",
    "times.csv",
    "steps.csv",
    "cosines.csv",
    "gradients.csv",
    "events.jsonl",
    "trace.csv",
    "environment.json",
)
"""Names of the files that are written from the checkpoint and vouched for by the result."""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file. Floats are written so that reading them gives the same bits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    # repr() of a float reads back to the same bits, and is the same on every machine.
    writer.writerows([repr(cell) if isinstance(cell, float) else cell for cell in row] for row in rows)
    return buffer.getvalue().encode()


def events_from(content: bytes, path: Path) -> list[dict[str, Any]]:
    """The objects of an ``events.jsonl``.

    Raises:
        DamagedFileError: a line is none.
    """
    try:
        return [dict(parsed(line)) for line in content.splitlines()]
    except (ValueError, TypeError) as error:
        raise damaged(path, f"a line that cannot be read ({type(error).__name__})") from None


def lines(events: Sequence[Mapping[str, Any]]) -> bytes:
    """An ``events.jsonl``, one object per line."""
    return "".join(json.dumps(event) + "\n" for event in events).encode()


def rows_from(content: bytes, path: Path) -> list[list[str]]:
    """The rows of a CSV file, its heading first.

    Raises:
        DamagedFileError: it is none, or its rows differ in length.
    """
    try:
        rows = list(csv.reader(content.decode().splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, str(error)) from None
    if any(len(row) != len(rows[0]) for row in rows):
        raise damaged(path, "rows of different lengths")
    return rows
