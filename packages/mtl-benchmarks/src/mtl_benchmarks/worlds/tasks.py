"""The ten tasks of MT10."""

from __future__ import annotations

__all__ = ["MT10_TASKS"]

MT10_TASKS = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)
"""In the papers' order."""
