"""Draw the pictures of the concepts and of the first page into ``docs/figures``, where pages and forges find them."""

from __future__ import annotations

from docsite.pictures import CONCEPTS, heat_map, svg
from docsite.repository import ROOT


def main() -> None:
    """Draw all of them."""
    folder = ROOT / "docs" / "figures" / "concepts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in CONCEPTS.items():
        (folder / f"{name}.svg").write_bytes(svg(draw()))
        print(folder / f"{name}.svg")
    (folder.parent / "start.svg").write_bytes(svg(heat_map()))
    print(folder.parent / "start.svg")


if __name__ == "__main__":
    main()
