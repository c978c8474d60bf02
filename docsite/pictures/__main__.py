"""Draw the pictures of the concepts into ``docs/figures/concepts``, where pages and forges find them."""

from __future__ import annotations

from docsite.pictures import CONCEPTS, svg
from docsite.repository import ROOT


def main() -> None:
    """Draw all of them."""
    folder = ROOT / "docs" / "figures" / "concepts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in CONCEPTS.items():
        (folder / f"{name}.svg").write_bytes(svg(draw()))
        print(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
