"""Pages that take computing: one for each method, and the tutorials, which are executed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from docsite import method_page, pictures, tutorials
from docsite.memory import kept

__all__ = ["pages", "tutorial"]


def pages(files: Sequence[Path], methods: Sequence[str]) -> dict[str, str]:
    """The pages of tutorials and methods with their pictures: file of the site → its text."""
    found: dict[str, str] = {}
    # The long ones first. Processes are forked: a fresh one would import torch again.
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), get_context("fork"), torch.set_num_threads, (1,)) as pool:
        jobs = [pool.submit(tutorial, path) for path in reversed(files)]
        jobs += [pool.submit(_method, name) for name in methods]
        for job in jobs:
            found |= job.result()
    return found


def _method(name: str) -> dict[str, str]:
    return kept(
        f"method {name}",
        lambda: {
            f"methods/{name}.md": method_page.method_page(name),
            f"pictures/methods/{name}.svg": pictures.method_paths(name).decode(),
        },
    )


def tutorial(path: Path) -> dict[str, str]:
    """The page of a tutorial, its pictures and its notebook: file of the site → its text.

    Run once for as long as no source changes, whether a test asks first or the site does.
    """

    def run() -> dict[str, str]:
        page, drawn = tutorials.executed(path)
        found = {f"pictures/tutorials/{name}": content.decode() for name, content in drawn.items()}
        found[f"tutorials/{path.stem}.ipynb"] = tutorials.notebook(path.read_text(encoding="utf-8"))
        return {f"tutorials/{path.stem}.md": page, **found}

    return kept(path.read_text(encoding="utf-8"), run)
