r"""Formulas as MathML, which browsers draw themselves: no script, nothing fetched.

Markdown's arithmatex leaves ``\(…\)`` and ``\[…\]`` in elements of class *arithmatex*; here they become ``<math>``.
"""

from __future__ import annotations

import html
import re

import latex2mathml.converter

__all__ = ["with_mathml"]

_SPAN = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?P<open>\\\(|\\\[)(?P<latex>.*?)(?:\\\)|\\\])</(?P=tag)>', re.S
)


_OPERATORS = re.compile(r"\\arg(?![a-zA-Z])(?:\\(min|max))?")


def with_mathml(page: str) -> str:
    r"""The HTML of a page with its formulas in MathML.

    Raises:
        ValueError: a formula has a command that is not known.

    Example:
        >>> "<msup>" in with_mathml('<span class="arithmatex">\\(x^2\\)</span>')
        True
    """
    return _SPAN.sub(_converted, page)


def _converted(match: re.Match[str]) -> str:
    latex = html.unescape(match["latex"]).strip()
    latex = _OPERATORS.sub(lambda found: rf"\operatorname{{arg{found[1] or ''}}}", latex)
    block = match["open"] == r"\["
    if block and (r"\\" in latex or "&" in latex) and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    made = latex2mathml.converter.convert(latex, display="block" if block else "inline")
    unknown = re.search(r"<mi>\\+([A-Za-z]+)</mi>|<mo>\\+([A-Za-z]+)</mo>", made)
    if unknown:
        raise ValueError(f"a formula has the unknown command \\{unknown[1] or unknown[2]}: {latex}")
    return f'<div class="formula">{made}</div>' if block else made
