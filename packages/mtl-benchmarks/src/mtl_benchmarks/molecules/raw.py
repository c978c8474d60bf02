"""QM9 from the raw files that ``torch_geometric.datasets.QM9`` downloads: ``gdb9.sdf`` and its two tables.

The files are read without RDKit and without torch-geometric. Atoms, positions and bonds come from the SD file in the
order of the file, as PyG reads it unsanitised; the numbers of the targets are converted as PyG converts them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from mtl_benchmarks.molecules.store import ELEMENTS, MOST_ATOMS, Molecules
from mtl_benchmarks.molecules.text import finite, readable
from mtl_benchmarks.molecules.units import HARTREE, KCAL_PER_MOL
from mtl_core import InvalidInputError

__all__ = ["RAW_FILES", "find_raw", "read_raw"]

RAW_FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
"""What PyG keeps in ``raw/``, of the archives ``qm9.zip`` (MoleculeNet) and figshare's file 3195404."""

_WAY_OUT = "torch_geometric.datasets.QM9(root) downloads them; `mtl-bench data qm9` says from where."
_ENERGIES = ("zpve", "u0", "u298", "h298", "g298")
_ATOMISED = ("u0_atom", "u298_atom", "h298_atom", "g298_atom")
_COLUMNS = ["A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", *_ENERGIES, "cv", *_ATOMISED]
_FACTORS = [1.0] * 5 + [HARTREE] * 3 + [1.0] + [HARTREE] * 5 + [1.0] + [KCAL_PER_MOL] * 4
_HEADER_LINES = 9
"""Of ``uncharacterized.txt``, before the molecules whose geometry is not that of their SMILES."""
_LISTED, _LEFT_OUT = 133_885, 3_054
"""Molecules of the official files, and how many of them the last one names."""


def find_raw(root: Path) -> list[Path]:
    """The three files in ``root`` or ``root/raw``.

    Raises:
        InvalidInputError: one is missing.
    """
    for folder in (root / "raw", root):
        files = [folder / name for name in RAW_FILES]
        missing = [file.name for file in files if not file.is_file()]
        if not missing:
            return files
        if len(missing) < len(files):
            raise InvalidInputError(
                f"`root` must hold {', '.join(RAW_FILES)}, got {str(folder)!r} without {', '.join(missing)}. {_WAY_OUT}"
            )
    raise InvalidInputError(
        f"`root` must hold {', '.join(RAW_FILES)}, got {str(root)!r}, which has none of them, nor a folder raw with "
        f"them. {_WAY_OUT}"
    )


def read_raw(root: str | Path) -> Molecules:
    """All characterised molecules.

    Raises:
        InvalidInputError: a file is missing or cannot be read, or the SD file and its table do not list the same
            molecules in the same order.
    """
    structures, table, skipped = find_raw(Path(root))
    left_out = _uncharacterised(skipped)
    with readable(table):
        rows = list(_targets(table))
    with readable(structures):
        found = list(_structures(structures))
    if len(found) != len(rows):
        raise InvalidInputError(
            f"{structures.name} and {table.name} must list the same molecules, got {len(found)} and {len(rows)}. "
            "One of the two is cut off: fetch it again."
        )
    _refuse_other_order([title for title, *_ in found], [name for name, _ in rows], structures.name, table.name)
    beyond = [number for number in left_out if not 1 <= number <= len(found)]
    if beyond:
        raise InvalidInputError(
            f"{skipped.name} must name molecules from 1 to {len(found)}, got {beyond[0]}. It belongs to other files."
        )
    if len(found) == _LISTED and len(left_out) != _LEFT_OUT:
        raise InvalidInputError(
            f"{skipped.name} must name {_LEFT_OUT:,} of all {_LISTED:,} molecules, got {len(left_out):,}. It is cut "
            "off or of another edition: fetch it again."
        )
    kept = [index for index in range(len(found)) if index + 1 not in left_out]
    return Molecules.pack(
        [index + 1 for index in kept],
        [found[index][1] for index in kept],
        [found[index][2] for index in kept],
        [found[index][3] for index in kept],
        [rows[index][1] for index in kept],
    )


def _refuse_other_order(titles: list[str], names: list[str], structures: str, table: str) -> None:
    """Both files name each molecule by its number, by which the third file leaves out: a row elsewhere is another's."""
    for number, (title, name) in enumerate(zip(titles, names, strict=True), start=1):
        for file, got in ((structures, title), (table, name)):
            if got != f"gdb_{number}":
                raise InvalidInputError(
                    f"{file} must list molecule {number} as gdb_{number}, got {got!r}: rows are missing or in another "
                    "order. Fetch it again."
                )


def _uncharacterised(file: Path) -> frozenset[int]:
    with readable(file):
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    # A line stands below the list, too: where there is none, molecules would be taken that are to be left out.
    if len(lines) <= _HEADER_LINES or (lines[-1] and lines[-1][0].isdecimal()):
        raise InvalidInputError(
            f"{file.name} must have {_HEADER_LINES} lines of heading, a line per molecule and one below them, got "
            f"{len(lines)} lines up to {' '.join(lines[-1][:1]) if lines else 'none'!r}: it is cut off. Fetch it again."
        )
    words = {number: line for number, line in enumerate(lines[:-1], start=1) if number > _HEADER_LINES and line}
    for number, line in words.items():
        if not line[0].isdecimal():
            raise InvalidInputError(
                f"{file.name}, line {number}, must begin with a molecule's number, got {line[0]!r}."
            )
    return frozenset(int(line[0]) for line in words.values())


def _targets(file: Path) -> Iterator[tuple[str, list[float]]]:
    """Names, and rows in the order of ``TARGETS``: PyG moves A, B and C to the end."""
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        if header[1:] != _COLUMNS:
            raise InvalidInputError(
                f"{file.name} must have the columns mol_id, {', '.join(_COLUMNS)}, got {', '.join(header) or 'none'}."
            )
        for row in reader:
            try:
                values = [factor * finite(word) for factor, word in zip(_FACTORS, row[1:], strict=True)]
            except ValueError as error:
                raise InvalidInputError(f"{file.name}, line {reader.line_num}, cannot be read: {error}.") from None
            yield row[0], values[3:] + values[:3]


_Structure = tuple[str, list[int], list[list[float]], list[tuple[int, int, int]]]
"""Title, elements, positions and bonds."""


def _structures(file: Path) -> Iterator[_Structure]:
    """The molecules of an SD file in the V2000 form: three lines of heading, counts, atoms, bonds, ``$$$$``."""
    lines: list[str] = []
    number = 0
    with file.open(encoding="utf-8") as text:
        for line in text:
            if line.startswith("$$$$"):
                number += 1
                yield _structure(lines, f"{file.name}, molecule {number},")
                lines = []
            else:
                lines.append(line)
    if any(line.strip() for line in lines):
        raise InvalidInputError(f"{file.name} must end with $$$$, got a last molecule that is cut off. Fetch it again.")


def _structure(lines: list[str], where: str) -> _Structure:
    try:
        # By columns: the form has fixed widths, and numbers of three digits touch.
        n_atoms, n_bonds = int(lines[3][0:3]), int(lines[3][3:6])
        if not 1 <= n_atoms <= MOST_ATOMS:
            raise ValueError(f"a molecule must have 1 to {MOST_ATOMS} atoms, got {n_atoms}")
        atoms, bonds = lines[4 : 4 + n_atoms], lines[4 + n_atoms : 4 + n_atoms + n_bonds]
        if len(atoms) != n_atoms or len(bonds) != n_bonds:
            raise ValueError(f"{n_atoms} atoms and {n_bonds} bonds are announced, and fewer follow")
        places = [[finite(line[k : k + 10]) for k in (0, 10, 20)] for line in atoms]
        elements = [ELEMENTS.index(line[31:34].strip()) for line in atoms]
        pairs = [(int(line[0:3]) - 1, int(line[3:6]) - 1, int(line[6:9])) for line in bonds]
        if any(not (0 <= one < n_atoms and 0 <= other < n_atoms and 1 <= kind <= 4) for one, other, kind in pairs):
            raise ValueError("a bond names an atom that is not there, or a kind that is not 1 to 4")
        if len({frozenset(pair[:2]) for pair in pairs if pair[0] != pair[1]}) != n_bonds:
            raise ValueError("a bond must link two atoms and be listed once")
    except (IndexError, ValueError) as error:
        raise InvalidInputError(f"{where} cannot be read: {error}.") from None
    return lines[0].strip(), elements, places, pairs
