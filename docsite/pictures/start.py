"""The heat map on the page that one starts with, drawn by the page's own code."""

from __future__ import annotations

import re
from typing import Any

from docsite.repository import ROOT

__all__ = ["heat_map"]


def heat_map() -> Any:
    """The figure that the blocks of docs/start.md draw, up to the one that saves it."""
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S))
    before, saved, _ = code.partition("figure.savefig(")
    if not saved:
        raise ValueError("docs/start.md must save its heat map by `figure.savefig(...)`, got no such line.")
    page: dict[str, Any] = {"__name__": "__page__"}
    exec(compile(before, "docs/start.md", "exec"), page)
    return page["figure"]
