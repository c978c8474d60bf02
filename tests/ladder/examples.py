"""Run the Python blocks of a page in order, as one program: `python -I tests/ladder/examples.py README.md`.

For environments that hold a package and what it needs, and no pytest; `tests/test_readme.py` is for the others.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Run them in a folder of their own."""
    page = Path(sys.argv[1]).resolve()
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__page__"}
    found = list(FENCE.finditer(text))
    if not found:
        raise SystemExit(f"examples: {page} has no Python block")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for match in found:
            line = text.count("\n", 0, match.start(1))
            exec(compile("\n" * line + match[1], str(page), "exec"), namespace)
        os.chdir(page.parent)
    print(f"examples: {len(found)} blocks of {page.name} in {page.parent.name} ran")


if __name__ == "__main__":
    main()
