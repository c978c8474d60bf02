"""The packages that ours need, with their versions and licences, as the environment has them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from collections import deque
from pathlib import Path
from typing import Any

__all__ = ["bill", "cyclonedx", "page"]

PACKAGES = ("mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks")

_KNOWN = re.compile(r"[A-Za-z0-9._-]+")
_CLASSIFIER = "License :: OSI Approved :: "


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence that a distribution declares, in the form that says most briefly."""
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    classified = [
        value.removeprefix(_CLASSIFIER) for value in metadata.get_all("Classifier") or () if _CLASSIFIER in value
    ]
    text = (metadata.get("License") or "").strip()
    return "; ".join(classified) or (text.splitlines()[0][:60] if text else "not declared")


def bill(extras: tuple[str, ...] = ("digits", "figures")) -> list[tuple[str, str, str, str]]:
    """Name, version, licence and who needs it, of everything that our packages need to run.

    Args:
        extras: of mtl-benchmarks, that count as needed.
    """
    found: dict[str, tuple[str, str, str]] = {}
    waiting = deque((package, "", extras if package == "mtl-benchmarks" else ()) for package in PACKAGES)
    while waiting:
        name, needed_by, wanted = waiting.popleft()
        plain = _plain(name)
        if plain in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found[plain] = (distribution.version, _licence(distribution.metadata), needed_by)
        for requirement in distribution.requires or ():
            marker = requirement.partition(";")[2]
            extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
            if extra and extra[1] not in wanted:
                continue
            match = _KNOWN.match(requirement)
            if match:
                waiting.append((match[0], plain, ()))
    return sorted((name, *rest) for name, rest in found.items())


def page() -> str:
    """The bill of materials as a page of the site."""
    rows = "\n".join(f"| {name} | {version} | {licence} | {by or '—'} |" for name, version, licence, by in bill())
    return f"""# Licences

The four packages are under the MIT licence. What they need to run, with the versions in the environment in which this
page was built, the licence that each distribution declares, and which package asked for it first. `python -m nox -s
build` writes the same list as a CycloneDX file, for tools that read one.

| package | version | licence | needed by |
|---|---|---|---|
{rows}

The digits that `mtl-benchmarks` trains on are scikit-learn's copy of the UCI set *Optical Recognition of Handwritten
Digits* (Alpaydin and Kaynak, 1998), under CC BY 4.0.
"""


def cyclonedx() -> dict[str, Any]:
    """The same list in the form of CycloneDX 1.5, which tools for audits read."""
    components = [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            "licenses": [{"license": {"name": licence}}],
        }
        for name, version, licence, _ in bill()
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def main() -> None:
    """Print the page, or write the list for tools."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cyclonedx", type=Path, metavar="FILE", help="write the list as CycloneDX JSON")
    options = parser.parse_args()
    if options.cyclonedx is None:
        print(page(), end="")
        return
    options.cyclonedx.write_text(json.dumps(cyclonedx(), indent=1) + "\n", encoding="utf-8")
    print(f"{options.cyclonedx}: {len(bill())} packages")


if __name__ == "__main__":
    main()
