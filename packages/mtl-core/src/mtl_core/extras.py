"""What an extra of a package stands for, as a line that installs it."""

from __future__ import annotations

import importlib.metadata
import re
import shlex

__all__ = ["install_line"]

_WITH_EXTRAS = re.compile(r"([A-Za-z0-9._-]+)\s*\[([^\]]+)\]")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def install_line(extra: str, *, dependencies: bool = True) -> str:
    """The command that installs what an extra brings, by the names and bounds of the packages themselves.

    They are read from what the installed package declares, so that its ``pyproject.toml`` is the only place where they
    stand. The extra itself is no help to someone whose index has no package of that name, or another one; it is named
    where the environment does not know the package, as in a checkout that was never installed.

    Args:
        extra: a package with one of its extras, such as ``"mtl-benchmarks[figures]"``.
        dependencies: whether what it brings needs its own dependencies; not where only its files are read.

    Example:
        >>> install_line("mtl-core[testing]")
        "pip install 'hypothesis>=6.131'"
        >>> install_line("nobody-knows[me]", dependencies=False)
        "pip install --no-deps 'nobody-knows[me]'"
    """
    words = ["pip", "install", *([] if dependencies else ["--no-deps"])]
    return shlex.join([*words, *(_brought_by(extra) or [extra])])


def _brought_by(requirement: str) -> list[str]:
    """The requirements behind a package's extras, an extra of an extra followed to its end; none where it is unknown.

    Each once, in the order in which they are declared.
    """
    match = _WITH_EXTRAS.match(requirement)
    if match is None:
        return [requirement]
    wanted = {name.strip() for name in match[2].split(",")}
    try:
        declared = importlib.metadata.requires(match[1]) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found: list[str] = []
    for line in declared:
        needed, _, marker = line.partition(";")
        asked_by = _EXTRA.search(marker)
        if asked_by is not None and asked_by[1] in wanted:
            found += _brought_by(needed.strip()) or [needed.strip()]
    return list(dict.fromkeys(found))
