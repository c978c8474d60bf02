"""Tutorials are programs in the percent format of jupytext; on the site pages with what they print, and notebooks."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Cell", "cells_of", "executed", "notebook", "tutorials"]

_MARK = re.compile(r"^# %%(?P<kind>[^\n]*)\n", re.M)


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook.

    Attributes:
        kind: ``"markdown"`` or ``"code"``.
        text: without comment signs, if it is Markdown.
        line: where its text begins in the file, counted from 1.
    """

    kind: str
    text: str
    line: int


def tutorials(folder: Path) -> list[Path]:
    """The tutorials, in the order of their names."""
    return sorted(folder.glob("*.py"))


def cells_of(source: str) -> list[Cell]:
    r"""The cells of a program in the percent format.

    Example:
        >>> [(cell.kind, cell.text) for cell in cells_of("# %% [markdown]\n# # Title\n\n# %%\nx = 1\n")]
        [('markdown', '# Title'), ('code', 'x = 1')]
    """
    marks = list(_MARK.finditer(source))
    found = []
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(source)], strict=True):
        text = source[mark.end() : end].strip("\n")
        markdown = "[markdown]" in mark["kind"]
        if markdown:
            text = re.sub(r"^# ?", "", text, flags=re.M)
        found.append(Cell("markdown" if markdown else "code", text, source.count("\n", 0, mark.end()) + 1))
    return found


def notebook(source: str) -> str:
    r"""A program in the percent format as a Jupyter notebook of format 4.5, not yet run.

    Example:
        >>> [cell["cell_type"] for cell in json.loads(notebook("# %% [markdown]\n# # Title\n\n# %%\nx = 1\n"))["cells"]]
        ['markdown', 'code']
    """
    cells = []
    for number, cell in enumerate(cells_of(source)):
        made = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": cell.text}
        cells.append(made | ({"execution_count": None, "outputs": []} if cell.kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def executed(path: Path) -> tuple[str, dict[str, bytes]]:
    """A tutorial's page, and its pictures by file name, from running it cell by cell in one namespace."""
    import matplotlib.pyplot as plt

    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    namespace: dict[str, Any] = {"__name__": "__tutorial__"}
    for cell in cells_of(path.read_text(encoding="utf-8")):
        if cell.kind == "markdown":
            parts.append(cell.text)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (cell.line - 1) + cell.text, str(path), "exec"), namespace)
        parts.append(f"```python\n{cell.text}\n```")
        if printed.getvalue():
            parts.append(f"```{{ .text .output }}\n{printed.getvalue().rstrip()}\n```")
        for number in plt.get_fignums():
            name = f"{path.stem}-{len(pictures)}.svg"
            buffer = io.BytesIO()
            plt.figure(number).savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
            pictures[name] = buffer.getvalue()
            parts.append(f"![What the lines above draw](../pictures/tutorials/{name})")
        plt.close("all")
    title, _, rest = parts[0].partition("\n")
    parts[0] = f"{title}\n\n[This page as a notebook]({path.stem}.ipynb){{ download }}\n{rest}"
    return "\n\n".join(parts) + "\n", pictures
