"""The real QM9 out of the package ``qm9pack``: 130,831 molecules in three CSV files.

The package's files are read and nothing of it is imported, since importing it needs ``setuptools``. Bonds are not in
the files: those between heavy atoms come from the SMILES string, whose heavy atoms stand in the order of the positions,
and each hydrogen is bonded to the nearest heavy atom. Bonds taken from distances alone are wrong for 5.5 % of the
molecules. The SMILES are kekulised, so that no bond is aromatic.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from mtl_benchmarks.molecules.smiles import heavy_bonds
from mtl_benchmarks.molecules.store import ELEMENTS, TARGETS, Molecules
from mtl_benchmarks.molecules.text import finite, readable
from mtl_benchmarks.molecules.units import HARTREE, atomisation_energies
from mtl_benchmarks.packaged_files import packaged_files
from mtl_core import InvalidInputError

__all__ = ["package_files", "read_package", "read_tables"]

_PARTS = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")

_COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("Dipole_debye", "mu", 1.0),
    ("Polarizability_bohr3", "alpha", 1.0),
    ("HOMO_au", "homo", HARTREE),
    ("LUMO_au", "lumo", HARTREE),
    ("HOMO_LUMO_gap_au", "gap", HARTREE),
    ("R2_bohr2", "r2", 1.0),
    ("ZPVE_au", "zpve", HARTREE),
    ("InternalEnergy_0K_au", "u0", HARTREE),
    ("InternalEnergy_298K_au", "u298", HARTREE),
    ("Enthalphy_298K_au", "h298", HARTREE),
    ("GibbsFreeEnergy_298K_au", "g298", HARTREE),
    ("Heatcapacity_Cv_cal_mol_K", "cv", 1.0),
    ("RotA_GHz", "a", 1.0),
    ("RotB_GHz", "b", 1.0),
    ("RotC_GHz", "c", 1.0),
)
"""Column of the file, name of the target, factor into its unit."""


@dataclass(frozen=True)
class _Row:
    number: int
    elements: list[int]
    positions: list[list[float]]
    bonds: list[tuple[int, int, int]]
    targets: list[float]


def package_files() -> tuple[list[Path], str]:
    """The package's files with molecules, and its version.

    Raises:
        MissingExtraError: it is not installed.
        InvalidInputError: it is, and its files are not where they were.
    """
    names = [f"data/{name}" for name in _PARTS]
    files = packaged_files("qm9pack", names, what="the real QM9 out of the package qm9pack", extra="qm9")
    return files, metadata.version("qm9pack")


def read_package() -> Molecules:
    """All molecules of the installed package, by their number in QM9."""
    files, _ = package_files()
    return read_tables(files)


def read_tables(files: list[Path]) -> Molecules:
    """The molecules of CSV files in the package's form, sorted by their number.

    Raises:
        InvalidInputError: a column is missing, a row cannot be read, or a number occurs twice.
    """
    rows = sorted((row for file in files for row in _rows(file)), key=lambda row: row.number)
    numbers = [row.number for row in rows]
    for one, other in itertools.pairwise(numbers):
        if one == other:
            raise InvalidInputError(f"the files must list each molecule once, got number {one} twice.")
    molecules = Molecules.pack(
        numbers,
        [row.elements for row in rows],
        [row.positions for row in rows],
        [row.bonds for row in rows],
        [row.targets for row in rows],
    )
    _add_atomisation(molecules)
    return molecules


def _add_atomisation(molecules: Molecules) -> None:
    names = [name for name, _ in TARGETS]
    owner = torch.arange(len(molecules)).repeat_interleave(molecules.sizes)
    counts = torch.zeros(len(molecules), len(ELEMENTS), dtype=torch.float64)
    # Accumulated: the same molecule and element occurs once per atom, and a plain assignment would count one.
    counts.index_put_((owner, molecules.elements.long()), torch.ones((), dtype=torch.float64), accumulate=True)
    first, start = names.index("u0"), names.index("u0_atom")
    molecules.targets[:, start : start + 4] = atomisation_energies(molecules.targets[:, first : first + 4], counts)


def _rows(file: Path) -> Iterator[_Row]:
    way_out = "Install qm9pack again."
    with readable(file, way_out=way_out), file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        wanted = ["Index", "SMILES", "Elements", "XYZ_Ang", *(column for column, _, _ in _COLUMNS)]
        missing = [column for column in wanted if column not in (reader.fieldnames or ())]
        if missing:
            raise InvalidInputError(
                f"{file.name} must have the columns of qm9pack, got a file without {', '.join(missing[:4])}."
            )
        for row in reader:
            try:
                # What a short row lacks is None to the reader, and what a long one has too much is named None.
                if None in row or None in row.values():
                    raise ValueError(f"it must have {len(reader.fieldnames or ())} cells")
                yield _read(row)
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidInputError(f"{file.name}, line {reader.line_num}, cannot be read: {error}.") from None


def _read(row: dict[str, str]) -> _Row:
    # A Python list as text; element symbols hold no quotes.
    symbols = json.loads(row["Elements"].replace("'", '"'))
    # Not JSON: whole numbers are written "0.".
    flat = [finite(word) for word in row["XYZ_Ang"].replace("[", "").replace("]", "").split(",")]
    elements = [ELEMENTS.index(symbol) for symbol in symbols]
    if len(flat) != 3 * len(elements):
        raise ValueError(f"{len(elements)} elements beside {len(flat)} coordinates")
    positions = [flat[k : k + 3] for k in range(0, len(flat), 3)]
    places = {column: factor * finite(row[column]) for column, _, factor in _COLUMNS}
    by_name = {name: places[column] for column, name, _ in _COLUMNS}
    targets = [by_name.get(name, math.nan) for name, _ in TARGETS]
    if not all(map(math.isfinite, [*flat, *places.values()])):
        raise ValueError("a number is not finite")
    return _Row(int(row["Index"]), elements, positions, _bonds(row["SMILES"], symbols, positions), targets)


_LONGEST_BOND = 2.5
"""No two bonded heavy atoms of QM9 are further apart, in ångström: 2.2 is the most that was found, and 3.7 where atoms
are listed in another order than in the SMILES."""

_NEAR = 1.8
"""Heavy atoms nearer than this are taken for bonded where the order has to be found."""


def _bonds(smiles: str, symbols: list[str], positions: list[list[float]]) -> list[tuple[int, int, int]]:
    # math.dist on short lists: arrays of nine atoms cost ten times as much, and there are 130,831 molecules.
    heavy = [index for index, symbol in enumerate(symbols) if symbol != "H"]
    listed, bonds = heavy_bonds(smiles)
    # Another molecule, or a SMILES that is read wrongly: either would give bonds that look right.
    if sorted(listed) != sorted(symbols[index] for index in heavy):
        raise ValueError(f"the heavy atoms of {smiles!r} are not those of the positions")
    # The usual case; the longest bond shows where it is another order.
    order = heavy
    if listed != [symbols[index] for index in heavy] or _longest(positions, heavy, bonds) > _LONGEST_BOND:
        order = _matched(listed, bonds, symbols, positions, heavy)
        if not order:
            raise ValueError(f"the bonds of {smiles!r} are not those of the positions")
    found = [(order[one], order[other], kind) for one, other, kind in bonds]
    for index, symbol in enumerate(symbols):
        if symbol == "H" and heavy:
            apart = [math.dist(positions[index], positions[other]) for other in heavy]
            # Nearest by distance: a hydrogen has one bond, of about 1.1 Å, and the next heavy atom is at 2.
            found.append((heavy[apart.index(min(apart))], index, 1))
    return found


def _longest(positions: list[list[float]], heavy: list[int], bonds: list[tuple[int, int, int]]) -> float:
    return max((math.dist(positions[heavy[one]], positions[heavy[other]]) for one, other, _ in bonds), default=0.0)


def _matched(
    listed: list[str],
    bonds: list[tuple[int, int, int]],
    symbols: list[str],
    positions: list[list[float]],
    heavy: list[int],
) -> list[int]:
    """For each atom of the SMILES its place among the positions, so that what is bonded is near; empty if none fits.

    Six molecules of QM9 need it: their atoms are listed in another order (numbers 23, 24, 486, 52466, 59818, 133487).
    """
    earlier: list[list[int]] = [[] for _ in listed]
    for one, other, _ in bonds:
        # For each atom the bonded ones that are placed before it, against which it is tested.
        earlier[max(one, other)].append(min(one, other))

    def extended(found: list[int]) -> list[int]:
        if len(found) == len(listed):
            return found
        for index in heavy:
            fits = symbols[index] == listed[len(found)] and index not in found
            bonded = [positions[found[other]] for other in earlier[len(found)]]
            if fits and all(math.dist(positions[index], place) < _NEAR for place in bonded):
                whole = extended([*found, index])
                if whole:
                    return whole
        return []

    return extended([])
