"""From runs to tables: which runs may stand beside each other, what they reached, and how it is printed."""

from mtl_benchmarks.comparison.estimates import Estimate, paired_difference
from mtl_benchmarks.comparison.finding import find_runs, incomplete_runs
from mtl_benchmarks.comparison.formats import FORMATS, Format, as_csv, as_latex, as_markdown, as_rich
from mtl_benchmarks.comparison.groups import Comparison, Group, compare
from mtl_benchmarks.comparison.moves import Moves, moves
from mtl_benchmarks.comparison.protocols import own_protocol, protocol_of
from mtl_benchmarks.comparison.tables import all_tables, moves_table, paired_table, published_rows_table, result_table
from mtl_benchmarks.comparison.tabular import Column, Pair, Row, Table, cell_text

__all__ = [
    "FORMATS",
    "Column",
    "Comparison",
    "Estimate",
    "Format",
    "Group",
    "Moves",
    "Pair",
    "Row",
    "Table",
    "all_tables",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_rich",
    "cell_text",
    "compare",
    "find_runs",
    "incomplete_runs",
    "moves",
    "moves_table",
    "own_protocol",
    "paired_difference",
    "paired_table",
    "protocol_of",
    "published_rows_table",
    "result_table",
]
