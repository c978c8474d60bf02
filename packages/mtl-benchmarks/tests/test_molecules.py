"""QM9 from the package's tables and from PyG's raw files, on molecules that are written here in both forms."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from mtl_benchmarks.molecules import TARGETS, MoleculeBatch, Molecules, collate, load_qm9
from mtl_benchmarks.molecules.qm9pack import read_tables
from mtl_benchmarks.molecules.raw import RAW_FILES, read_raw
from mtl_benchmarks.molecules.smiles import heavy_bonds
from mtl_benchmarks.molecules.units import HARTREE, REFERENCE_ENERGIES
from mtl_core import InvalidInputError

sys.path.insert(0, str(Path(__file__).parent))
from written_molecules import BONDS, raw_values, write_package, write_raw


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
    raw = raw_values(4)
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


def _as_array(file: Path) -> None:
    with file.open("wb") as content:
        numpy.save(content, numpy.zeros(3))


def _without_bonds(file: Path) -> None:
    with numpy.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "bonds"}
    with file.open("wb") as content:
        numpy.savez(content, **arrays)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_as_array, "must be readable, got ValueError: it is no archive of arrays"),
        (lambda file: file.write_text("text"), "must be readable, got ValueError: it is no archive of arrays"),
        (lambda file: file.write_bytes(b""), "must be readable, got ValueError: it is no archive of arrays"),
        (_without_bonds, "must hold molecules, got: no array 'bonds'"),
    ],
)
def test_a_cache_that_is_something_else_is_refused(
    damage: Callable[[Path], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    root = write_raw(tmp_path)
    load_qm9(root)
    (file,) = (tmp_path / "cache").glob("*.npz")
    damage(file)
    with pytest.raises(InvalidInputError, match=rf"cache file .*{says}.*Delete it"):
        load_qm9(root)


def test_a_cache_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path / "cache"))
    root = write_raw(tmp_path)
    load_qm9(root)
    monkeypatch.setattr("mtl_benchmarks.molecules.qm9._VERSION", 99)
    with pytest.raises(InvalidInputError, match=r"version 99', got .*version 1', of another version\. Delete it"):
        load_qm9(root)
    (file,) = (tmp_path / "cache").glob("*.npz")
    file.unlink()
    assert len(load_qm9(root)) == 3


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


def _swapped_rows(raw: Path) -> None:
    file = raw / "gdb9.sdf.csv"
    head, first, second, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, second, first, *rest]) + "\n")


def _swapped_structures(raw: Path) -> None:
    file = raw / "gdb9.sdf"
    *records, last = file.read_text().split("$$$$\n")
    file.write_text("$$$$\n".join([*records[::-1], last]))


def _without_the_first(raw: Path) -> None:
    # From both, so that they agree: the numbers of the third file, which are places, would mean others.
    _one_molecule_less(raw)
    file = raw / "gdb9.sdf.csv"
    head, _, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, *rest]) + "\n")


def _heading_alone(raw: Path) -> None:
    (raw / "uncharacterized.txt").write_text("heading\n" * 9)


def _replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(raw: Path) -> None:
        content = (raw / file).read_bytes()
        assert old.encode() in content
        # Latin, so that one may ask for a byte that is no text.
        (raw / file).write_bytes(content.replace(old.encode(), new.encode("latin-1"), 1))

    return damage


def _no_atoms(raw: Path) -> None:
    file = raw / "gdb9.sdf"
    nothing = "gdb_1\n  made\n\n  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n"
    file.write_text(nothing + file.read_text().partition("$$$$\n")[2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_swapped_rows, r"gdb9\.sdf\.csv must list molecule 1 as gdb_1, got 'gdb_2'"),
        (_swapped_structures, r"gdb9\.sdf must list molecule 1 as gdb_1, got 'gdb_3'"),
        (_without_the_first, r"gdb9\.sdf must list molecule 1 as gdb_1, got 'gdb_2'"),
        (_heading_alone, "got 9 lines"),
        (
            _replaced("uncharacterized.txt", "footer", "   x   SMILES\nfooter"),
            "line 10, must begin with a .*number, got 'x'",
        ),
        (_replaced("gdb9.sdf", "  made", "\xff\xfe"), r"gdb9\.sdf must be readable text"),
        (_replaced("gdb9.sdf.csv", "gdb_2", "\xff\xfe"), r"gdb9\.sdf\.csv must be readable text"),
        (_replaced("gdb9.sdf.csv", "gdb_2", "9" * 200_000), r"gdb9\.sdf\.csv must be readable text, got: field larger"),
        (_replaced("uncharacterized.txt", "heading", "\xff\xfe"), r"uncharacterized\.txt must be readable text"),
        (
            _replaced("gdb9.sdf", "    1.4200", "       nan"),
            "molecule 1, cannot be read: numbers must be finite, got 'nan'",
        ),
        (_replaced("gdb9.sdf", "    1.4200", "      -inf"), "molecule 1, cannot be read: numbers must be finite"),
        (
            _replaced("gdb9.sdf.csv", "gdb_2,3.5,", "gdb_2,nan,"),
            "line 3, cannot be read: numbers must be finite, got 'nan'",
        ),
        (_no_atoms, "molecule 1, cannot be read: a molecule must have 1 to 255 atoms, got 0"),
        (_replaced("gdb9.sdf", "  1  2  1", "  1  1  1"), "molecule 1, cannot be read: a bond must link two atoms"),
        (_replaced("gdb9.sdf", "  1  3  1", "  2  1  1"), "molecule 1, cannot be read: a bond must link two atoms"),
        (_replaced("uncharacterized.txt", "heading\n", ""), "got 9 lines up to 'footer': it is cut off"),
        (_replaced("uncharacterized.txt", "footer\n", "   1   SMILES  SM"), "got 10 lines up to '1': it is cut off"),
        (_replaced("uncharacterized.txt", "footer\n", "   13"), "got 10 lines up to '13': it is cut off"),
        (lambda raw: (raw / RAW_FILES[2]).write_text(""), "got 0 lines up to 'none': it is cut off"),
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


def test_of_all_molecules_as_many_are_left_out_as_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_benchmarks.molecules.raw._LISTED", 3)
    monkeypatch.setattr("mtl_benchmarks.molecules.raw._LEFT_OUT", 2)
    assert len(read_raw(write_raw(tmp_path, skipped=(1, 3)))) == 1
    with pytest.raises(InvalidInputError, match=r"uncharacterized\.txt must name 2 of all 3 molecules, got 1\."):
        read_raw(write_raw(tmp_path, skipped=(2,)))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda row: row.update(SMILES="CN"), "heavy atoms"),
        (lambda row: row.update(Index="x"), "line 2, cannot be read"),
        (lambda row: row.update(XYZ_Ang="[[0.,0.]]"), "elements beside 2 coordinates"),
        (lambda row: row.update(Index="4"), "number 4 twice"),
        (lambda row: row.update(HOMO_au="nan"), "line 2, cannot be read: numbers must be finite, got 'nan'"),
        (lambda row: row.update(XYZ_Ang=row["XYZ_Ang"].replace("[0.", "[inf", 1)), "line 2, .* finite, got 'inf'"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, edit: Callable[[dict[str, str]], None], says: str) -> None:
    def only_heavy(row: dict[str, str]) -> None:
        edit(row)

    with pytest.raises(InvalidInputError, match=says):
        read_tables([write_package(tmp_path, only_heavy)])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        # In the middle of the last row, in each of three columns, and one cell too many.
        (lambda text: text.rpartition("C1CO1")[0] + "C1C", "line 4, cannot be read: it must have 19 cells"),
        (lambda text: text.rpartition(",")[0], "line 4, cannot be read: it must have 19 cells"),
        (lambda text: text.rstrip() + ",1", "line 4, cannot be read: it must have 19 cells"),
        (lambda text: text.replace("Index", "\xff\xfe"), "must be readable text.*Install qm9pack again"),
        (lambda text: text + "9" * 200_000, "must be readable text, got: field larger"),
    ],
)
def test_tables_that_are_cut_off_are_refused_by_name(tmp_path: Path, damage: Callable[[str], str], says: str) -> None:
    file = write_package(tmp_path)
    file.write_bytes(damage(file.read_text()).encode("latin-1"))
    with pytest.raises(InvalidInputError, match=rf"qm9_part1\.csv.*{says}"):
        read_tables([file])


def test_a_table_of_the_package_without_its_last_newline_loses_nothing(tmp_path: Path) -> None:
    file = write_package(tmp_path)
    file.write_text(file.read_text().rstrip())
    assert read_tables([file]).numbers.tolist() == [2, 4, 9]


@pytest.mark.parametrize("below", ["footer", "", "footer\n", " \n"])
def test_what_stands_below_the_list_of_uncharacterised_molecules_is_anything(tmp_path: Path, below: str) -> None:
    root = write_raw(tmp_path, skipped=(2,))
    file = root / "raw" / "uncharacterized.txt"
    file.write_text(file.read_text().replace("footer\n", below or "\n"))
    assert read_raw(root).numbers.tolist() == [1, 3]
