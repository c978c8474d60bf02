"""Data files inside installed packages, found without importing the packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mtl_core import InvalidInputError, MissingExtraError

__all__ = ["packaged_files"]


def packaged_files(
    package: str, names: Sequence[str], *, what: str, extra: str, dependencies: bool = True
) -> list[Path]:
    """Files of an installed package, by their paths inside it.

    Args:
        package: its import name.
        names: paths below the package's folder.
        what: what needs them, in the reader's words.
        extra: the extra of mtl-benchmarks that brings the package.
        dependencies: whether an error names the package with its dependencies, none of which its files need.

    Raises:
        MissingExtraError: the package is not installed.
        InvalidInputError: it is, and a file is not where it was.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(what, f"mtl-benchmarks[{extra}]", dependencies=dependencies)
    folder = Path(next(iter(found.submodule_search_locations)))
    files = [folder / name for name in names]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise InvalidInputError(
            f"the package {package} must hold {', '.join(names)}, got none at {missing[0]}. Install it again."
        )
    return files
