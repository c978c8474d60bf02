"""What is read of the tables of a run, as far as they are written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mtl_benchmarks.storage.files import damaged, exists, parsed, read
from mtl_benchmarks.storage.tables import events_from, rows_from

__all__ = ["RunTables"]


class RunTables:
    """The tables in a run's directory.

    Args:
        path: of the run. Nothing is looked at yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read_events(self) -> list[dict[str, Any]]:
        """The events recorded so far."""
        file = self.path / "events.jsonl"
        return events_from(read(file), file) if exists(file) else []

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows of ``metrics.csv`` written so far."""
        return self._named_rows("metrics.csv")

    def read_sessions(self) -> list[dict[str, Any]]:
        """The processes that worked on the run: when each began, its environment, from where to where it went."""
        file = self.path / "environment.json"
        if not exists(file):
            return []
        try:
            return [dict(session) for session in parsed(read(file))]
        except (ValueError, TypeError) as error:
            raise damaged(file, f"content that cannot be read ({type(error).__name__})") from None

    def read_cosines(self) -> list[dict[str, str]]:
        """The rows of ``cosines.csv`` written so far."""
        return self._named_rows("cosines.csv")

    def read_steps(self) -> list[dict[str, str]]:
        """The rows of ``steps.csv`` written so far."""
        return self._named_rows("steps.csv")

    def read_gradients(self) -> list[tuple[int, list[float], list[list[float]]]]:
        """Per recorded step its number, each task's cosine with the update (NaN if not known), and the Gramian."""
        rows = self._rows("gradients.csv")
        n_tasks = len(rows[0]) - 3 if rows else 1
        found = []
        try:
            for k in range(1, len(rows), n_tasks):
                block = [[math.nan if cell == "" else float(cell) for cell in row[2:]] for row in rows[k : k + n_tasks]]
                found.append((int(rows[k][0]), [row[0] for row in block], [row[1:] for row in block]))
        except ValueError as error:
            raise damaged(self.path / "gradients.csv", str(error)) from None
        return found

    def read_trace(self) -> list[list[float]]:
        """The recorded path, one row per step, or nothing."""
        try:
            return [[float(cell) for cell in row] for row in self._rows("trace.csv")[1:]]
        except ValueError as error:
            raise damaged(self.path / "trace.csv", str(error)) from None

    def _named_rows(self, name: str) -> list[dict[str, str]]:
        rows = self._rows(name)
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]] if rows else []

    def _rows(self, name: str) -> list[list[str]]:
        file = self.path / name
        return rows_from(read(file), file) if exists(file) else []
