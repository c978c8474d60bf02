"""Every reader of data files, and files that are empty, cut off, of other bytes, a folder, or not to be opened.

Either the reader has what was written, or one error of ours names the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks.benchmarks.movielens_files import read_movielens
from mtl_benchmarks.benchmarks.yeast_table import read_yeast
from mtl_benchmarks.faces import ATTRIBUTES, FaceFolder
from mtl_benchmarks.molecules.qm9pack import read_tables
from mtl_benchmarks.molecules.raw import read_raw
from mtl_core import InvalidInputError

sys.path.insert(0, str(Path(__file__).parent))
from written_molecules import write_package, write_raw


def _yeast(root: Path) -> tuple[list[Path], Callable[[], Any]]:
    draw, file = random.Random(0), root / "yeast.csv.gz"
    rows = [[*(f"Att{k}" for k in range(1, 104)), *(f"Class{k}" for k in range(1, 15))]]
    rows += [[*(f"{draw.gauss(0, 0.1):.6f}" for _ in range(103)), *(["0", "1"] * 7)] for _ in range(20)]
    with gzip.open(file, "wt", newline="") as text:
        csv.writer(text).writerows(rows)
    return [file], lambda: read_yeast(file)


def _movielens(root: Path) -> tuple[list[Path], Callable[[], Any]]:
    tables = {
        "inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "1\t7\t3\t2", "2\t9\t5\t1"],
        "user": [
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
            "1\t24\tM\tother\t85711",
            "2\t53\tF\tother\t94043",
        ],
        "item": [
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
            "7\tToy Story\t1995\tAnimation",
            "9\tGoldenEye\t1995\tAction",
        ],
    }
    files = [root / f"ml-100k.{name}" for name in tables]
    for file, lines in zip(files, tables.values(), strict=True):
        file.write_text("\n".join(lines) + "\n")
    return files, lambda: read_movielens(files)


def _raw(root: Path) -> tuple[list[Path], Callable[[], Any]]:
    write_raw(root)
    names = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
    return [root / "raw" / name for name in names], lambda: read_raw(root)


def _package(root: Path) -> tuple[list[Path], Callable[[], Any]]:
    file = write_package(root)
    return [file], lambda: read_tables([file])


def _faces(root: Path) -> tuple[list[Path], Callable[[], Any]]:
    image = pytest.importorskip("PIL.Image")
    for folder in ("Img/img_align_celeba", "Anno", "Eval"):
        (root / folder).mkdir(parents=True)
    rows, parts = [], []
    for k in range(4):
        name = f"{k + 1:06d}.jpg"
        image.new("RGB", (178, 218), (40 * k, 80, 120)).save(root / "Img/img_align_celeba" / name)
        rows.append(f"{name}  " + " ".join([" 1", "-1"] * 20))
        parts.append(f"{name} {0 if k < 2 else k - 1}")
    labels, listed = root / "Anno/list_attr_celeba.txt", root / "Eval/list_eval_partition.txt"
    labels.write_text("\n".join(["4", " ".join(ATTRIBUTES), *rows]) + "\n")
    listed.write_text("\n".join(parts) + "\n")

    def read() -> list[Any]:
        folder = FaceFolder(root, "train")
        return [folder[k] for k in range(len(folder))]

    return [root / "Img/img_align_celeba/000001.jpg", labels, listed], read


READERS = {"yeast": _yeast, "movielens": _movielens, "qm9 raw": _raw, "qm9pack": _package, "celeba": _faces}
FILES = [(name, k) for name in READERS for k in range({"yeast": 1, "qm9pack": 1}.get(name, 3))]


def _share(part: float) -> Callable[[Path], None]:
    def cut(file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: int(part * len(data))])

    return cut


def _bytes(file: Path) -> None:
    file.write_bytes(random.Random(0).randbytes(500))


def _zeros(file: Path) -> None:
    file.write_bytes(b"\0" * 500)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _gone(file: Path) -> None:
    file.unlink()


def _flipped(place: float) -> Callable[[Path], None]:
    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(place * len(data))] ^= 0x80
        file.write_bytes(data)

    return flip


DAMAGES = {
    "empty": _share(0.0),
    **{f"cut at {part:.0%}": _share(part) for part in (0.02, 0.3, 0.62, 0.97)},
    "other bytes": _bytes,
    "zeros": _zeros,
    "a folder": _folder,
    "gone": _gone,
    **{f"a byte at {place:.0%}": _flipped(place) for place in (0.0, 0.01, 0.4, 0.99)},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "which"), FILES, ids=[f"{name} {k}" for name, k in FILES])
def test_whole_or_refused_by_name(name: str, which: int, damage: str, tmp_path: Path) -> None:
    files, read = READERS[name](tmp_path)
    read()
    DAMAGES[damage](files[which])
    try:
        read()
    except InvalidInputError as error:
        said = str(error)
    else:
        # A bit of a number in a text is another number, and a picture has no checksum; all else is seen.
        assert damage.startswith(("a byte", "cut at 97")), damage
        return
    assert files[which].name in said or files[which].as_posix() in said, said
    assert "Traceback" not in said


@pytest.mark.parametrize(("name", "which"), FILES, ids=[f"{name} {k}" for name, k in FILES])
def test_what_may_not_be_read(name: str, which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the system's refusal: root may read whatever a file's rights are."""
    files, read = READERS[name](tmp_path)
    own = io.open

    def refuse(file: Any, *arguments: Any, **settings: Any) -> Any:
        if not isinstance(file, int) and Path(file).name == files[which].name:
            raise PermissionError(13, "Permission denied", str(file))
        return own(file, *arguments, **settings)

    for place in ("builtins.open", "io.open"):
        monkeypatch.setattr(place, refuse)
    with pytest.raises((InvalidInputError, PermissionError)) as caught:
        read()
    assert files[which].name in str(caught.value)
