"""What griffe, which reads the sources for the reference, calls for every object."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parents[1]))

from docsite.docstrings import as_markdown

__all__ = ["Markdown"]


class Markdown(griffe.Extension):
    """Turns every docstring into Markdown before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, itself=obj.name)
