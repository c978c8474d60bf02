"""A table as data: what its cells hold, apart from how they are printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mtl_benchmarks.comparison.estimates import Estimate

__all__ = ["Cell", "Column", "Pair", "Row", "Table", "cell_text"]


@dataclass(frozen=True)
class Pair:
    """A value before and after something."""

    before: float
    after: float


Cell = Estimate | Pair | float | int | str
"""What a cell may hold; one that holds nothing is absent."""


@dataclass(frozen=True)
class Column:
    """One quantity.

    Attributes:
        key: its name in files.
        heading: its name for readers.
        unit: what one unit of it is; empty for a pure number.
        better: which direction is better, if one is.
        digits: decimals that are printed; files hold all of them.
    """

    key: str
    heading: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    digits: int = 2

    @property
    def suffix(self) -> str:
        """Unit and arrow."""
        arrow = {"higher": "↑", "lower": "↓", "": ""}[self.better]
        return " ".join(word for word in (self.unit, arrow) if word)


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        label: what it is about.
        kind: ``"multi-task"``, ``"single-task"``, ``"published"`` or ``"difference"``.
        cells: column key → what it holds.
    """

    label: str
    kind: Literal["multi-task", "single-task", "published", "difference"]
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Columns, rows and what has to be known to read them.

    Attributes:
        name: what kind of table, for files: ``"results"``, ``"differences"``, ``"teleports"`` or ``"published"``.
        title: the heading above it.
        columns: in order; the row's label stands before the first.
        rows: in order.
        notes: sentences below it.
        corner: heading of the labels.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())
    corner: str = "method"

    def texts(self) -> list[list[str]]:
        """The printed cells, row by row, each row after its label."""
        return [[row.label, *(cell_text(row.cells.get(c.key), c) for c in self.columns)] for row in self.rows]

    def without_empty_columns(self) -> Table:
        """The same table with those columns that hold something."""
        kept = tuple(column for column in self.columns if any(column.key in row.cells for row in self.rows))
        return Table(self.name, self.title, kept, self.rows, self.notes, self.corner)

    def with_first(self, *keys: str) -> Table:
        """The same table with the columns of these keys before the others, where it has them.

        Example:
            >>> table = Table("results", "t", (Column("error", "error"), Column("delta_m", "Δm")), ())
            >>> [column.key for column in table.with_first("delta_m").columns]
            ['delta_m', 'error']
        """
        first = [column for key in keys for column in self.columns if column.key == key]
        rest = [column for column in self.columns if column.key not in keys]
        return Table(self.name, self.title, (*first, *rest), self.rows, self.notes, self.corner)


def cell_text(cell: Cell | None, column: Column) -> str:
    """A cell as every format prints it, up to the format's own way to write signs.

    Example:
        >>> cell_text(Estimate.of([1.0, 2.0, 3.0]), Column("error", "error", digits=1))
        '2.0 ±2.5'
        >>> cell_text(Pair(0.25, 1.0), Column("norm", "norm")), cell_text(3, Column("seeds", "seeds"))
        ('0.25 → 1.00', '3')
    """
    if cell is None:
        return ""
    if isinstance(cell, Estimate):
        return cell.text(column.digits) if not abs(cell.mean) >= 1e6 else f"{cell.mean:.1e}"
    if isinstance(cell, Pair):
        return f"{cell.before:.{column.digits}f} → {cell.after:.{column.digits}f}"
    return f"{cell:.{column.digits}f}" if isinstance(cell, float) else str(cell)
