"""Pieces of a page: every text is escaped here and nowhere else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from mtl_benchmarks.comparison import Table

__all__ = ["bullets", "element", "facts", "picture", "preformatted", "table_of"]


def element(tag: str, text: str, **attributes: str) -> str:
    """An element with a text; attributes that Python reserves end in an underscore."""
    written = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{written}>{escape(text)}</{tag}>"


def bullets(items: Iterable[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(element("li", item) for item in items) + "</ul>"


def preformatted(lines: Iterable[str]) -> str:
    """Lines to copy."""
    return element("pre", "\n".join(lines))


def facts(rows: Mapping[str, Any]) -> str:
    """Names beside values."""
    lines = (f"<tr>{element('th', name, scope='row')}{element('td', str(value))}</tr>" for name, value in rows.items())
    return '<table class="facts"><tbody>' + "".join(lines) + "</tbody></table>"


def table_of(table: Table) -> str:
    """A table that is scrolled by itself where the screen is narrower, and its notes."""
    headings = [element("th", table.corner, scope="col")]
    for column in table.columns:
        small = f"<small>{escape(column.suffix)}</small>" if column.suffix else ""
        headings.append(f'<th scope="col">{escape(column.heading)}{small}</th>')
    lines = []
    before = None
    for row, cells in zip(table.rows, table.texts(), strict=True):
        classes = row.kind + (" first-of-kind" if before not in (None, row.kind) else "")
        before = row.kind
        inner = element("th", cells[0], scope="row") + "".join(element("td", cell) for cell in cells[1:])
        lines.append(f'<tr class="{classes}">{inner}</tr>')
    head = f"<thead><tr>{''.join(headings)}</tr></thead>"
    notes = element("p", " ".join(table.notes), class_="notes") if table.notes else ""
    label = escape(table.title)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
        f'<table class="{escape(table.name)}">{head}<tbody>{"".join(lines)}</tbody></table></div>{notes}'
    )


def picture(content: bytes, caption: str) -> str:
    """A PNG file inside the page."""
    data = base64.b64encode(content).decode()
    return (
        f'<figure><div class="scroll"><img src="data:image/png;base64,{data}" alt="{escape(caption)}"></div>'
        f"{element('figcaption', caption)}</figure>"
    )
