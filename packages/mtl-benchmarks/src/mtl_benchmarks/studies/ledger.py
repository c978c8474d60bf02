"""The runs of a study as they are planned and as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.studies.planned import PlannedRun
from mtl_benchmarks.studies.records import Record

__all__ = ["Ledger"]


class Ledger:
    """Which runs are planned, what each came to, and which are still to be trained.

    Args:
        protocol: digest of what the runs have in common.
        known: name of a run → its record in the table of an earlier study.
        recorded: called with all records there are whenever there are more; ``None`` where nobody asks.
    """

    def __init__(
        self,
        protocol: str,
        known: Mapping[str, Record],
        recorded: Callable[[Sequence[Record]], None] | None,
    ) -> None:
        self._protocol = protocol
        self._known = known
        self._recorded = recorded
        self._planned: list[PlannedRun] = []
        self._records: dict[int, Record] = {}
        self.results: dict[str, RunResult] = {}
        """Name of a run that was not known before → its result, in the order in which they ended."""

    @property
    def records(self) -> list[Record]:
        """Of all planned runs that have ended or were known, in the order in which they were planned."""
        return [self._records[number] for number in sorted(self._records)]

    def plan(self, planned: Iterable[PlannedRun]) -> list[PlannedRun]:
        """Add runs, and return those that are to be trained, each once.

        One run can be planned several times: controls of two COSTs that never moved are both the method alone.
        """
        new = list(planned)
        self._planned += new
        self._fill()
        wanted = {run.name: run for run in new}
        return [run for name, run in wanted.items() if name not in self._known and name not in self.results]

    def ended(self, results: Iterable[RunResult]) -> None:
        """Take down what came of some runs."""
        self.results.update((result.config.name, result) for result in results)
        self._fill()

    def _fill(self) -> None:
        for number, run in enumerate(self._planned):
            if number in self._records:
                continue
            if run.name in self._known:
                self._records[number] = run.filled_from(self._protocol, self._known[run.name])
            elif run.name in self.results:
                self._records[number] = run.filled(self._protocol, self.results[run.name])
        if self._recorded is not None:
            self._recorded(self.records)
