"""One line per run of a study: what it came to, apart from the directory that it was trained in.

Directories of runs hold checkpoints and tables and are large; a table of records is small enough to be kept beside a
text, and everything that a study says is computed from it (:mod:`mtl_benchmarks.studies.rows`,
:mod:`mtl_benchmarks.studies.verdict`), whether the runs are still there or not.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtl_benchmarks.benchmarks import benchmark_class
from mtl_benchmarks.storage.files import read, write_atomically
from mtl_benchmarks.storage.output import writable_file
from mtl_core import InvalidInputError, ResultsDirectoryError

__all__ = ["ALONE", "COLUMNS", "OPTIONS", "Record", "label", "read_records", "table_path", "write_records"]

ALONE = "none"
"""The way of a method without teleports."""

COLUMNS = ("benchmark", "case", "protocol", "task", "method", "way", "control", "seed", "moves", "seconds", "diverged")
"""What every table of records begins with; those of options and metrics follow."""

OPTIONS = "options"
"""The column of digests of options, which tables of a version before do not have."""


def label(way: str, control: str = "") -> str:
    """How a way of training is called: a teleport's name, or the control of one."""
    return f"{control} as {way}" if control else way


@dataclass(frozen=True)
class Record:
    """What a run came to.

    Attributes:
        benchmark: its registered name.
        case: the options that make its case, as titles have them; empty where there are no cases.
        protocol: digest of everything but method, teleport and seed; runs of different ones do not mix.
        task: the task that was trained alone; empty for a joint run.
        method: the weighting, with the options that were named.
        way: what moves the parameters: :data:`ALONE`, or the name of a teleport.
        control: which control of ``way`` this is; empty for the way itself.
        seed: of the run.
        moves: teleports that were kept.
        seconds: of training, on the clock.
        diverged: whether it ended because its numbers became none, or with a metric that is not finite; then it has no
            values.
        values: metric → value at the reported epoch.
        options: digest of all options of method and way, those that names leave out among them: what is called by one
            name may have had other defaults in another version. Empty where it is not known.
    """

    benchmark: str
    case: str
    protocol: str
    task: str
    method: str
    way: str
    control: str
    seed: int
    moves: int
    seconds: float
    diverged: bool
    values: Mapping[str, float]
    options: str = ""

    @property
    def title(self) -> str:
        """The benchmark and its case."""
        return " ".join(filter(None, (self.benchmark, self.case)))


def table_path(name: str, path: str | Path) -> Path:
    """Where a table of records can be written; looked at before the runs that it is to hold.

    Args:
        name: of the argument, for the error: ``"--csv"``.
        path: of the table.

    Raises:
        ResultsDirectoryError: it cannot be written, or is a file that is no table of records.
    """
    target = writable_file(name, path)
    if target.exists() and target.stat().st_size and not read(target).startswith(",".join(COLUMNS).encode()):
        raise ResultsDirectoryError(
            f"`{name}` must be a new file or a table of records, got {str(path)!r}, which holds something else and "
            "would be replaced. Name another file."
        )
    return target


def write_records(path: str | Path, records: Iterable[Record], *, durable: bool = True) -> None:
    """Write a table of records, all of one benchmark, numbers to their last digit; never a part of it.

    Args:
        path: of the table.
        records: what it holds.
        durable: flush it to the disk; not for one that is soon written again.

    Raises:
        InvalidInputError: there is none, or they are of several benchmarks, whose metrics differ.
        ResultsDirectoryError: it cannot be written; what was there before still is.
    """
    records = list(records)
    names = sorted({record.benchmark for record in records})
    if len(names) != 1:
        raise InvalidInputError(f"`records` must be of one benchmark, got {', '.join(names) or 'none'}.")
    metrics = [metric.name for metric in benchmark_class(names[0]).metrics]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, OPTIONS, *metrics])
    for record in records:
        own = [getattr(record, name) for name in COLUMNS]
        own[COLUMNS.index("seconds")] = f"{record.seconds:.3f}"
        own[COLUMNS.index("diverged")] = "yes" if record.diverged else ""
        own.append(record.options)
        writer.writerow([*own, *(repr(record.values[name]) if name in record.values else "" for name in metrics)])
    write_atomically(writable_file("path", path), text.getvalue(), durable=durable)


def read_records(paths: Sequence[str | Path]) -> list[Record]:
    """Read tables of records, in the order of their names; a run that stands in several of them counts once.

    Raises:
        InvalidInputError: a file is not such a table, or holds no run, or two tables say different things of one run.
            The text names the file and the line.
        OSError: one cannot be read.
    """
    found: dict[tuple[object, ...], tuple[Record, str]] = {}
    # In an order of their own: what is said from several tables does not depend on which was named first.
    for path in sorted(paths, key=str):
        for record, where in _records_in(path):
            key = tuple(getattr(record, name) for name in COLUMNS[:8])
            other, before = found.setdefault(key, (record, where))
            is_other = record.options != other.options and bool(record.options and other.options)
            if is_other or (other.values, other.moves, other.diverged) != (
                record.values,
                record.moves,
                record.diverged,
            ):
                raise InvalidInputError(f"a run must stand in one way in all tables, got two in {before} and {where}.")
            if record.options and not other.options:
                found[key] = record, where
    return [record for record, _ in found.values()]


def _records_in(path: str | Path) -> list[tuple[Record, str]]:
    """The records of one table, and where each stands."""
    found = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or ()
            for number, cells in enumerate(reader, 2):
                where = f"line {number} of {str(path)!r}"
                found.append((_record(cells, names, where), where))
    except InvalidInputError:
        raise
    except (ValueError, csv.Error) as error:  # no text, no table, or a name that no file can have
        raise InvalidInputError(f"{str(path)!r} must be a table of records, got another file ({error}).") from None
    if not found:
        what = "one without a run" if names else "an empty file"
        raise InvalidInputError(f"{str(path)!r} must be a table of records, got {what}.")
    return found


def _record(cells: Mapping[str | None, str | None], names: Sequence[str], where: str) -> Record:
    if tuple(names[: len(COLUMNS)]) != COLUMNS:
        raise InvalidInputError(f"{where} must begin with the columns {', '.join(COLUMNS)}, got {', '.join(names)}.")
    if None in cells or None in cells.values():
        raise InvalidInputError(f"{where} must have {len(names)} cells, got more or fewer.")
    text = {str(name): str(cell) for name, cell in cells.items()}
    options = text.get(OPTIONS, "")
    try:
        values = {name: float(text[name]) for name in names[len(COLUMNS) :] if text[name] and name != OPTIONS}
        seed, moves, seconds = int(text["seed"]), int(text["moves"]), float(text["seconds"])
    except ValueError as error:
        raise InvalidInputError(f"{where} must hold numbers from `seed` on, got {error}.") from None
    if text["diverged"] not in ("", "yes") or not all(map(math.isfinite, values.values())):
        raise InvalidInputError(f"{where} must hold finite values, and 'yes' or nothing for `diverged`.")
    # A run that has both, or neither, was edited or cut off.
    if bool(values) == (text["diverged"] == "yes"):
        raise InvalidInputError(f"{where} must hold values, or say that the run diverged, got both or neither.")
    benchmark, case, protocol, task, method, way, control = (text[name] for name in COLUMNS[:7])
    diverged = text["diverged"] == "yes"
    run = (benchmark, case, protocol, task, method, way, control, seed, moves, seconds, diverged)
    return Record(*run, values, options)
