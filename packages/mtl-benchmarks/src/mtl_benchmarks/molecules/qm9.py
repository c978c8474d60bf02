"""The one door to QM9: from the installed package or from PyG's raw files, parsed once and kept in the user's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mtl_benchmarks.cache import cache_folder, held_in, read_arrays, write_arrays
from mtl_benchmarks.molecules.qm9pack import package_files, read_tables
from mtl_benchmarks.molecules.raw import find_raw, read_raw
from mtl_benchmarks.molecules.store import Molecules

__all__ = ["load_qm9"]

_VERSION = 1
"""Of what the parser makes of the files; a cache of another version is refused."""


def load_qm9(root: str | Path | None = None) -> Molecules:
    """QM9's molecules in the order of their numbers.

    The first call parses the text files, about 45 seconds for the whole package on one core, and writes what it found
    to the user's cache folder (``MTL_CACHE``); later calls read that.

    Args:
        root: the folder of PyG's raw files, or PyG's root with ``raw/`` in it; None: the installed package ``qm9pack``.

    Raises:
        MissingExtraError: no ``root``, and the package is not installed.
        InvalidInputError: files are missing or cannot be read, or the cache is damaged or of another version.
    """
    if root is None:
        files, version = package_files()
        name, made_from = f"qm9pack-{version}", f"qm9pack {version}"
    else:
        files = find_raw(Path(root))
        # The raw files have no version: their content names the cache, so that other files get another one.
        digest = _digest(files)
        # The number stands for what is checked when they are read: a reader before let pass what this one refuses.
        name, made_from = f"qm9-raw-2-{digest}", f"raw files {digest}"
    path = cache_folder() / f"{name}.npz"
    layout = f"molecules of {made_from}, version {_VERSION}"
    arrays = read_arrays(path, layout=layout)
    if arrays is not None:
        with held_in(path, "molecules"):
            return Molecules.from_arrays(arrays)
    molecules = read_tables(files) if root is None else read_raw(root)
    write_arrays(path, molecules.as_arrays(), layout=layout)
    return molecules


def _digest(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]
