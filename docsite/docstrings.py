r"""Docstrings, which are written for ``help()`` and reStructuredText's mathematics, as Markdown."""

from __future__ import annotations

import functools
import importlib
import re
import textwrap

__all__ = ["as_markdown", "public_modules"]

_ROLE = re.compile(r":math:`((?:[^`\\]|\\.)*)`", re.S)
_BLOCK = re.compile(r"^(?P<indent> *)\.\. math::(?P<first>[^\n]*)\n(?P<rest>(?:(?P=indent) +\S[^\n]*\n|[ ]*\n)*)", re.M)
_TABLE = re.compile(
    r"^(?P<indent> *)(?P<rule>=+(?: +=+)+)\n(?P<rows>(?: *\S[^\n]*\n)*?)(?P=indent)(?P=rule)\n(?=\s*\n|$)", re.M
)
_EXAMPLE = re.compile(r"^( *)Example:$", re.M)
_NAME = re.compile(r"(?<![`\[])``([A-Z][A-Za-z0-9]+)``(?!`)")


def public_modules() -> dict[str, tuple[str, ...]]:
    """The modules whose ``__all__`` is what users may import, and the names there."""
    modules = (
        "mtl_core",
        "mtl_core.extension",
        "mtl_core.checks",
        "mtl_core.testing",
        "mtl_aggregators",
        "mtl_aggregators.conformance",
        "mtl_teleport",
        "mtl_benchmarks",
        "mtl_benchmarks.models",
    )
    return {name: tuple(importlib.import_module(name).__all__) for name in modules}


@functools.cache
def _linked() -> dict[str, str]:
    """Public class → the name under which the reference has it."""
    return {
        name: f"{module}.{name}"
        for module, names in reversed(public_modules().items())
        for name in names
        if name[0].isupper()
    }


def as_markdown(text: str, *, itself: str = "") -> str:
    r"""A docstring with formulas between ``\(…\)`` and ``\[…\]``, Markdown tables, and links to public classes.

    Args:
        text: the docstring.
        itself: the name of what it belongs to, which is not linked.

    Example:
        >>> as_markdown(":math:`x` and ``FAMO``")
        '\\(x\\) and [``FAMO``][mtl_aggregators.FAMO]'
    """
    text = _BLOCK.sub(_display, text + "\n")
    text = _ROLE.sub(lambda match: rf"\({' '.join(match[1].split())}\)", text)
    text = _TABLE.sub(_table, text)
    text = _EXAMPLE.sub(r"\1Examples:", text)
    linked = _linked()
    text = _NAME.sub(
        lambda match: f"[{match[0]}][{linked[match[1]]}]" if match[1] in linked and match[1] != itself else match[0],
        text,
    )
    return text.rstrip("\n")


def _display(match: re.Match[str]) -> str:
    body = " ".join([match["first"].strip(), *textwrap.dedent(match["rest"]).split("\n")]).strip()
    indent = match["indent"]
    return f"{indent}\\[{body}\\]\n\n"


def _table(match: re.Match[str]) -> str:
    """A simple table: the widths of its columns are those of its rule; a row without a first cell goes on the last."""
    indent = len(match["indent"])
    edges = [found.start() for found in re.finditer(r"=+", match["rule"])]
    rows: list[list[str]] = []
    for line in match["rows"].splitlines():
        if set(line.strip()) <= {"=", " "}:
            continue
        line = line[indent:]
        cells = [line[begin:end].strip() for begin, end in zip(edges, [*edges[1:], len(line)], strict=True)]
        if cells[0] or not rows:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    headed = any(set(line.strip()) <= {"=", " "} for line in match["rows"].splitlines())
    lines = [" | ".join(row) for row in (rows if headed else [[" "] * len(edges), *rows])]
    lines.insert(1, " | ".join("---" for _ in edges))
    return "".join(f"{match['indent']}| {line} |\n" for line in lines)
