"""Molecules for tests, written as the package qm9pack and PyG's raw files have them."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mtl_benchmarks.molecules.units import HARTREE, KCAL_PER_MOL, atomisation_energies

Written = tuple[str, list[tuple[str, tuple[float, float, float]]]]
"""SMILES, then symbol and position of each atom."""

Bonds = set[tuple[int, int, int]]
"""First atom, second atom, order."""

SYMBOLS = ("H", "C", "N", "O", "F")

# Methanol, fluoroacetonitrile and ring-shaped ethylene oxide.
METHANOL: Written = (
    "CO",
    [
        ("C", (0.0, 0.0, 0.0)),
        ("O", (1.42, 0.0, 0.0)),
        ("H", (-0.4, 1.0, 0.0)),
        ("H", (-0.4, -0.5, 0.9)),
        ("H", (-0.4, -0.5, -0.9)),
        ("H", (1.75, 0.9, 0.0)),
    ],
)
NITRILE: Written = (
    "N#CCF",
    [
        ("N", (-2.6, 0.0, 0.0)),
        ("C", (-1.45, 0.0, 0.0)),
        ("C", (0.0, 0.0, 0.0)),
        ("F", (0.5, 1.3, 0.0)),
        ("H", (0.4, -0.5, 0.9)),
        ("H", (0.4, -0.5, -0.9)),
    ],
)
OXIRANE: Written = (
    "C1CO1",
    [
        ("C", (-0.73, 0.0, 0.0)),
        ("C", (0.73, 0.0, 0.0)),
        ("O", (0.0, 1.2, 0.0)),
        ("H", (-1.3, -0.3, 0.9)),
        ("H", (-1.3, -0.3, -0.9)),
        ("H", (1.3, -0.3, 0.9)),
        ("H", (1.3, -0.3, -0.9)),
    ],
)
WRITTEN: dict[int, Written] = {4: METHANOL, 2: NITRILE, 9: OXIRANE}
BONDS: dict[int, Bonds] = {
    4: {(0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1), (1, 5, 1)},
    2: {(0, 1, 3), (1, 2, 1), (2, 3, 1), (2, 4, 1), (2, 5, 1)},
    9: {(0, 1, 1), (1, 2, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1), (1, 5, 1), (1, 6, 1)},
}
PACKAGE_COLUMNS = (
    "Dipole_debye",
    "Polarizability_bohr3",
    "HOMO_au",
    "LUMO_au",
    "HOMO_LUMO_gap_au",
    "R2_bohr2",
    "ZPVE_au",
    "InternalEnergy_0K_au",
    "InternalEnergy_298K_au",
    "Enthalphy_298K_au",
    "GibbsFreeEnergy_298K_au",
    "Heatcapacity_Cv_cal_mol_K",
    "RotA_GHz",
    "RotB_GHz",
    "RotC_GHz",
)


def raw_values(number: int) -> dict[str, float]:
    """Values in the units of the package, a different one for each column."""
    return {column: number + k / 8 for k, column in enumerate(PACKAGE_COLUMNS)}


def _written(value: float) -> str:
    """As the package writes numbers: zero and whole ones end in a point."""
    return f"{value:.0f}." if value == round(value) else repr(value)


def write_package(
    folder: Path,
    edit: Callable[[dict[str, str]], None] = lambda row: None,
    *,
    molecules: Mapping[int, Written] = WRITTEN,
) -> Path:
    file = folder / "qm9_part1.csv"
    rows = []
    for number, (smiles, atoms) in molecules.items():
        row = {
            "Index": str(number),
            "SMILES": smiles,
            "Elements": str([symbol for symbol, _ in atoms]).replace(" ", ""),
            "XYZ_Ang": str([[_written(x) for x in place] for _, place in atoms]).replace("'", "").replace(" ", ""),
            **{column: repr(value) for column, value in raw_values(number).items()},
        }
        edit(row)
        rows.append(row)
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_raw(
    root: Path,
    *,
    skipped: tuple[int, ...] = (),
    last_newline: bool = True,
    molecules: Mapping[int, Written] = WRITTEN,
    bonds: Mapping[int, Bonds] = BONDS,
) -> Path:
    """The same molecules as PyG's raw files, numbered 1, 2, 3 in their order."""
    (root / "raw").mkdir(parents=True, exist_ok=True)
    records, rows = [], []
    for place, (number, (_, atoms)) in enumerate(molecules.items(), start=1):
        links = sorted(bonds[number])
        lines = [f"gdb_{place}", "  made", "", f"{len(atoms):3d}{len(links):3d}  0  0  0  0  0  0  0  0999 V2000"]
        lines += [f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3s} 0  0  0  0  0  0" for symbol, (x, y, z) in atoms]
        lines += [f"{one + 1:3d}{other + 1:3d}{kind:3d}  0  0  0  0" for one, other, kind in links]
        records.append("\n".join([*lines, "M  END", "$$$$"]))
        raw = raw_values(number)
        mol = [raw[column] for column in PACKAGE_COLUMNS]
        counts = torch.tensor([[sum(s == symbol for s, _ in atoms) for symbol in SYMBOLS]], dtype=torch.float64)
        above = atomisation_energies(HARTREE * torch.tensor([mol[7:11]], dtype=torch.float64), counts)[0] / KCAL_PER_MOL
        rows.append([f"gdb_{place}", *mol[12:15], *mol[:12], *above.tolist()])
    header = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + ("\n" if last_newline else "")
    (root / "raw" / "gdb9.sdf").write_text("\n".join(records) + "\n")
    (root / "raw" / "gdb9.sdf.csv").write_text(text)
    listed = "".join(f"   {number}   SMILES  SMILES  0.1\n" for number in skipped)
    (root / "raw" / "uncharacterized.txt").write_text("heading\n" * 9 + listed + "footer\n")
    return root


def chains(n: int, *, seed: int = 0) -> tuple[dict[int, Written], dict[int, Bonds]]:
    """Straight molecules of 2 to 5 heavy atoms with 1 or 2 hydrogens on each, numbered from 1, and their bonds."""
    draw = random.Random(seed)
    molecules: dict[int, Written] = {}
    bonds: dict[int, Bonds] = {}
    for number in range(1, n + 1):
        heavy = [draw.choice("CNO") for _ in range(draw.randint(2, 5))]
        atoms = [(symbol, (1.4 * k, draw.uniform(-0.2, 0.2), 0.0)) for k, symbol in enumerate(heavy)]
        found = {(k, k + 1, 1) for k in range(len(heavy) - 1)}
        for k in range(len(heavy)):
            for side in (1.0, -1.0)[: draw.randint(1, 2)]:
                found.add((k, len(atoms), 1))
                atoms.append(("H", (1.4 * k, atoms[k][1][1], side)))
        molecules[number], bonds[number] = ("".join(heavy), atoms), found
    return molecules, bonds
