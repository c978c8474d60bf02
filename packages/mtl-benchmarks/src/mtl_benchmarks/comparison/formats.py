"""One table in four ways of writing: for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Literal, get_args

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from mtl_benchmarks.comparison.estimates import Estimate
from mtl_benchmarks.comparison.tabular import Cell, Pair, Table

__all__ = ["FORMATS", "Format", "as_csv", "as_latex", "as_markdown", "as_rich"]

Format = Literal["text", "markdown", "csv", "latex"]
FORMATS: tuple[str, ...] = get_args(Format)


def as_rich(table: Table) -> RichTable:
    """For the terminal. Names are taken literally, whatever brackets they hold."""
    shown = RichTable(title=Text(table.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    shown.add_column(Text(table.corner), no_wrap=True)
    for column in table.columns:
        first, _, rest = column.heading.partition(" ")
        # The words over each other, so that narrow numbers make narrow columns.
        heading = f"{first}\n{' '.join(word for word in (rest, column.suffix) if word)}"
        shown.add_column(Text(heading, justify="right"), justify="right", no_wrap=True)
    for cells in table.texts():
        shown.add_row(*(Text(cell) for cell in cells))
    if table.notes:
        shown.caption = Text(" ".join(table.notes))
        shown.caption_justify = "left"
    return shown


def as_markdown(table: Table) -> str:
    """A pipe table under its title in bold, the notes below it."""
    headings = [table.corner, *(f"{c.heading} [{c.suffix}]" if c.suffix else c.heading for c in table.columns)]
    lines = [f"**{_markdown(table.title)}**", ""]
    lines += [_pipes(headings), "|---|" + "---:|" * len(table.columns)]
    lines += [_pipes(cells) for cells in table.texts()]
    if table.notes:
        lines += ["", _markdown(" ".join(table.notes))]
    return "\n".join(lines) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_markdown, cells)) + " |"


def _markdown(text: str) -> str:
    for sign in "\\|*_`[]<>":
        text = text.replace(sign, "\\" + sign)
    return text


_CSV_HEADER = ("table", "comparison", "row", "kind", "column", "unit", "better", "value", "half_width", "n")


def as_csv(tables: Sequence[Table]) -> str:
    """Tidy: one line per number, all digits; before and after are two lines."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for table in tables:
        for row in table.rows:
            for column in table.columns:
                for key, value, half, n in _numbers(column.key, row.cells.get(column.key)):
                    about = (table.name, table.title, row.label, row.kind)
                    writer.writerow((*about, key, column.unit, column.better, value, half, n))
    return buffer.getvalue()


def _numbers(key: str, cell: Cell | None) -> list[tuple[str, str, str, str]]:
    if cell is None:
        return []
    if isinstance(cell, Estimate):
        return [(key, repr(cell.mean), "" if cell.half_width is None else repr(cell.half_width), str(cell.n))]
    if isinstance(cell, Pair):
        return [(f"{key}_before", repr(cell.before), "", ""), (f"{key}_after", repr(cell.after), "", "")]
    return [(key, repr(cell) if isinstance(cell, float) else str(cell), "", "")]


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "‖": r"$\|$",
    "°": r"$^\circ$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "Å": r"\AA{}",
    "²": r"$^2$",
    "³": r"$^3$",
    "α": r"$\alpha$",
    "ε": r"$\varepsilon$",
    "μ": r"$\mu$",
    "—": "---",
    "’": "'",
}


def as_latex(table: Table) -> str:
    r"""A ``table`` with ``booktabs`` rules; the document needs ``\usepackage{booktabs}``."""
    headings = [table.corner, *(column.heading for column in table.columns)]
    below = ["", *(column.suffix for column in table.columns)]
    notes = " ".join(table.notes)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{_latex(table.title)}. {_latex(notes)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        _ampersands(headings),
        _ampersands(below),
        r"\midrule",
        *(_ampersands(cells) for cells in table.texts()),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    written = "".join(_LATEX.get(sign, sign) for sign in text)
    return re.sub(r"(?:(?<=^)|(?<= ))-(?=\d)", "$-$", written)  # a minus, no hyphen
