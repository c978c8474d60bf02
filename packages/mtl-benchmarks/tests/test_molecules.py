"""QM9 from the package's tables and from PyG's raw files, on molecules that are written here in both forms."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_benchmarks.molecules import TARGETS, MoleculeBatch, Molecules, collate, load_qm9
from mtl_benchmarks.molecules.qm9pack import read_tables
from mtl_benchmarks.molecules.raw import RAW_FILES, read_raw
from mtl_benchmarks.molecules.smiles import heavy_bonds
from mtl_benchmarks.molecules.units import HARTREE, KCAL_PER_MOL, REFERENCE_ENERGIES, atomisation_energies
from mtl_core import InvalidInputError

SYMBOLS = ("H", "C", "N", "O", "F")

# Methanol, fluoroacetonitrile and ring-shaped ethylene oxide: SMILES, then symbol and position of each atom.
METHANOL = ("CO", [("C", (0.0, 0.0, 0.0)), ("O", (1.42, 0.0, 0.0)), ("H", (-0.4, 1.0, 0.0)), ("H", (-0.4, -0.5, 0.9)),
            ("H", (-0.4, -0.5, -0.9)), ("H", (1.75, 0.9, 0.0))])  # fmt: skip
NITRILE = ("N#CCF", [("N", (-2.6, 0.0, 0.0)), ("C", (-1.45, 0.0, 0.0)), ("C", (0.0, 0.0, 0.0)), ("F", (0.5, 1.3, 0.0)),
           ("H", (0.4, -0.5, 0.9)), ("H", (0.4, -0.5, -0.9))])  # fmt: skip
OXIRANE = ("C1CO1", [("C", (-0.73, 0.0, 0.0)), ("C", (0.73, 0.0, 0.0)), ("O", (0.0, 1.2, 0.0)),
           ("H", (-1.3, -0.3, 0.9)), ("H", (-1.3, -0.3, -0.9)),
           ("H", (1.3, -0.3, 0.9)), ("H", (1.3, -0.3, -0.9))])  # fmt: skip
WRITTEN = {4: METHANOL, 2: NITRILE, 9: OXIRANE}
BONDS = {
    4: {(0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1), (1, 5, 1)},
    2: {(0, 1, 3), (1, 2, 1), (2, 3, 1), (2, 4, 1), (2, 5, 1)},
    9: {(0, 1, 1), (1, 2, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1), (1, 5, 1), (1, 6, 1)},
}
PACKAGE_COLUMNS = (
    "Dipole_debye", "Polarizability_bohr3", "HOMO_au", "LUMO_au", "HOMO_LUMO_gap_au", "R2_bohr2", "ZPVE_au",
    "InternalEnergy_0K_au", "InternalEnergy_298K_au", "Enthalphy_298K_au", "GibbsFreeEnergy_298K_au",
    "Heatcapacity_Cv_cal_mol_K", "RotA_GHz", "RotB_GHz", "RotC_GHz",
)  # fmt: skip


def _raw_values(number: int) -> dict[str, float]:
    """Values in the units of the package, a different one for each column."""
    return {column: number + k / 8 for k, column in enumerate(PACKAGE_COLUMNS)}


def _written(value: float) -> str:
    """As the package writes numbers: zero and whole ones end in a point."""
    return f"{value:.0f}." if value == round(value) else repr(value)


def write_package(folder: Path, edit: Callable[[dict[str, str]], None] = lambda row: None) -> Path:
    file = folder / "qm9_part1.csv"
    rows = []
    for number, (smiles, atoms) in WRITTEN.items():
        row = {
            "Index": str(number),
            "SMILES": smiles,
            "Elements": str([symbol for symbol, _ in atoms]).replace(" ", ""),
            "XYZ_Ang": str([[_written(x) for x in place] for _, place in atoms]).replace("'", "").replace(" ", ""),
            **{column: repr(value) for column, value in _raw_values(number).items()},
        }
        edit(row)
        rows.append(row)
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_raw(root: Path, *, skipped: tuple[int, ...] = (), last_newline: bool = True) -> Path:
    """The same molecules as PyG's raw files, in the order 1, 2, 3 of WRITTEN."""
    (root / "raw").mkdir(parents=True, exist_ok=True)
    records, rows = [], []
    for place, (number, (_, atoms)) in enumerate(WRITTEN.items(), start=1):
        bonds = sorted(BONDS[number])
        lines = [f"gdb_{place}", "  made", "", f"{len(atoms):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000"]
        lines += [f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3s} 0  0  0  0  0  0" for symbol, (x, y, z) in atoms]
        lines += [f"{one + 1:3d}{other + 1:3d}{kind:3d}  0  0  0  0" for one, other, kind in bonds]
        records.append("\n".join([*lines, "M  END", "$$$$"]))
        raw = _raw_values(number)
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


def bonds_of(molecules: Molecules, row: int) -> set[tuple[int, int, int]]:
    one = molecules.take(torch.tensor([row]))
    pairs = [(min(a, b), max(a, b)) for a, b in one.bonded.tolist()]
    return {(a, b, kind) for (a, b), kind in zip(pairs, one.orders.tolist(), strict=True)}


def test_the_package_is_read_by_number(tmp_path: Path) -> None:
    molecules = read_tables([write_package(tmp_path)])
    assert molecules.numbers.tolist() == [2, 4, 9]
    assert molecules.sizes.tolist() == [6, 6, 7]
    for row, number in enumerate((2, 4, 9)):
        assert bonds_of(molecules, row) == BONDS[number]
    by_name = dict(zip([name for name, _ in TARGETS], molecules.targets[1].tolist(), strict=True))
    raw = _raw_values(4)
    assert by_name["mu"] == raw["Dipole_debye"]
    assert by_name["homo"] == pytest.approx(raw["HOMO_au"] * HARTREE)
    assert by_name["cv"] == raw["Heatcapacity_Cv_cal_mol_K"]
    assert by_name["c"] == raw["RotC_GHz"]
    atoms = 4 * REFERENCE_ENERGIES[0][0] + REFERENCE_ENERGIES[0][1] + REFERENCE_ENERGIES[0][3]
    assert by_name["u0_atom"] == pytest.approx(HARTREE * (raw["InternalEnergy_0K_au"] - atoms))


def test_both_sources_give_the_same_molecules(tmp_path: Path) -> None:
    package = read_tables([write_package(tmp_path)])
    raw = read_raw(write_raw(tmp_path))
    order = torch.tensor([1, 0, 2])  # number 4 is written first
    again = package.take(order)
    assert raw.elements.equal(again.elements)
    torch.testing.assert_close(raw.positions, again.positions, rtol=0, atol=1e-4)
    assert [bonds_of(raw, k) for k in range(3)] == [bonds_of(again, k) for k in range(3)]
    torch.testing.assert_close(raw.targets, again.targets, rtol=1e-12, atol=1e-9)


def test_uncharacterised_molecules_are_left_out(tmp_path: Path) -> None:
    raw = read_raw(write_raw(tmp_path, skipped=(2,)))
    assert raw.numbers.tolist() == [1, 3]
    assert raw.sizes.tolist() == [6, 7]


def test_a_table_without_its_last_newline_loses_nothing(tmp_path: Path) -> None:
    assert len(read_raw(write_raw(tmp_path, last_newline=False))) == 3


def test_atoms_in_another_order_than_in_the_smiles_are_matched(tmp_path: Path) -> None:
    def reverse(row: dict[str, str]) -> None:
        if row["SMILES"] == "N#CCF":
            row["SMILES"] = "FCC#N"

    molecules = read_tables([write_package(tmp_path, reverse)])
    assert bonds_of(molecules, 0) == BONDS[2]


@pytest.mark.parametrize(
    ("smiles", "elements", "bonds"),
    [
        ("C", "C", []),
        ("C#N", "CN", [(0, 1, 3)]),
        ("CC(=O)O", "CCOO", [(0, 1, 1), (1, 2, 2), (1, 3, 1)]),
        ("C1CC=1", "CCC", [(0, 1, 1), (1, 2, 1), (2, 0, 2)]),
        ("C=1CC1", "CCC", [(0, 1, 1), (1, 2, 1), (2, 0, 2)]),
        ("[NH3+]C[O-]", "NCO", [(0, 1, 1), (1, 2, 1)]),
        ("[H]C([H])=O", "CO", [(0, 1, 2)]),
        ("C12CC1N2", "CCCN", [(0, 1, 1), (1, 2, 1), (2, 0, 1), (2, 3, 1), (3, 0, 1)]),
    ],
)
def test_smiles(smiles: str, elements: str, bonds: list[tuple[int, int, int]]) -> None:
    assert heavy_bonds(smiles) == (list(elements), bonds)


@pytest.mark.parametrize("smiles", ["c1ccccc1", "C1CC", "C(C", "CSC", "C?C"])
def test_smiles_of_another_form_are_refused(smiles: str) -> None:
    with pytest.raises(InvalidInputError, match="`smiles` must be a kekulised"):
        heavy_bonds(smiles)


def test_the_graph_is_complete_with_bonds_distances_and_hydrogens(tmp_path: Path) -> None:
    molecules = read_tables([write_package(tmp_path)])
    batch = collate(molecules, torch.arange(6.0).reshape(3, 2))
    assert isinstance(batch, MoleculeBatch)
    assert batch.nodes.shape == (3, 7, 11)
    assert batch.mask.sum(1).tolist() == [6, 6, 7]
    nitrogen, carbon = batch.nodes[0, 0], batch.nodes[1, 0]
    assert nitrogen.tolist() == [0, 0, 1, 0, 0, 7, 0, 0, 0, 0, 0]
    assert carbon.tolist() == [0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 3]
    assert not batch.nodes[0, 6].any()
    assert batch.edges[0, 0, 1].tolist() == pytest.approx([0, 0, 1, 0, 1.15])
    assert batch.edges[0, 1, 0].equal(batch.edges[0, 0, 1])
    assert batch.edges[0, 0, 3].tolist() == pytest.approx([0, 0, 0, 0, math.hypot(3.1, 1.3)])
    assert not batch.edges[0, 6].any()
    assert not batch.edges[0, :, 6].any()
    assert not batch.edges.diagonal(dim1=1, dim2=2).any()


def test_the_cache_is_read_again_and_refused_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    root = write_raw(tmp_path)
    first = load_qm9(root)
    (file,) = (tmp_path / "cache").glob("*.npz")
    before = file.stat().st_mtime_ns
    again = load_qm9(root)
    assert file.stat().st_mtime_ns == before
    assert all(first.as_arrays()[name].tolist() == again.as_arrays()[name].tolist() for name in first.as_arrays())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InvalidInputError, match=r"cache file .*Delete it"):
        load_qm9(root)


def test_other_raw_files_have_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    assert len(load_qm9(write_raw(tmp_path))) == 3
    assert len(load_qm9(write_raw(tmp_path, skipped=(1,)))) == 2


def _cut_structures(raw: Path) -> None:
    file = raw / "gdb9.sdf"
    file.write_text(file.read_text().rpartition("M  END")[0])


def _one_molecule_less(raw: Path) -> None:
    file = raw / "gdb9.sdf"
    file.write_text(file.read_text().partition("$$$$\n")[2])


def _other_element(raw: Path) -> None:
    file = raw / "gdb9.sdf"
    file.write_text(file.read_text().replace(" F  ", " Cl ", 1))


def _no_number(raw: Path) -> None:
    file = raw / "gdb9.sdf.csv"
    file.write_text(file.read_text().replace("gdb_2,", "gdb_2,x", 1))


def _other_columns(raw: Path) -> None:
    file = raw / "gdb9.sdf.csv"
    file.write_text(file.read_text().replace("mol_id,A,B", "mol_id,B,A", 1))


def _beyond(raw: Path) -> None:
    file = raw / "uncharacterized.txt"
    file.write_text(file.read_text().replace("footer", "   77   SMILES SMILES 0.1\nfooter"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw: (raw / RAW_FILES[1]).unlink(), r"without gdb9\.sdf\.csv"),
        (lambda raw: [file.unlink() for file in raw.iterdir()], "has none of them"),
        (_cut_structures, r"must end with \$\$\$\$"),
        (_one_molecule_less, "must list the same molecules, got 2 and 3"),
        (_other_element, "molecule 2, cannot be read"),
        (_no_number, "line 3, cannot be read"),
        (_other_columns, "must have the columns mol_id, A, B"),
        (_beyond, "must name molecules from 1 to 3, got 77"),
    ],
)
def test_damaged_raw_files_are_refused_by_name(tmp_path: Path, damage: Callable[[Path], Any], says: str) -> None:
    root = write_raw(tmp_path)
    damage(root / "raw")
    with pytest.raises(InvalidInputError, match=says):
        read_raw(root)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda row: row.update(SMILES="CN"), "heavy atoms"),
        (lambda row: row.update(Index="x"), "line 2, cannot be read"),
        (lambda row: row.update(XYZ_Ang="[[0.,0.]]"), "elements beside 2 coordinates"),
        (lambda row: row.update(Index="4"), "number 4 twice"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, edit: Callable[[dict[str, str]], None], says: str) -> None:
    def only_heavy(row: dict[str, str]) -> None:
        edit(row)

    with pytest.raises(InvalidInputError, match=says):
        read_tables([write_package(tmp_path, only_heavy)])
