"""How to come by QM9's raw files, and whether those that lie there are all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_benchmarks.data_files import DataSource, other_digests
from mtl_benchmarks.molecules.raw import RAW_FILES, find_raw, read_raw
from mtl_core import InvalidInputError
from mtl_core.extension import install_line

__all__ = ["QM9Files"]

_STRUCTURES = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/molnet_publish/qm9.zip"
_SKIPPED = "https://ndownloader.figshare.com/files/3195404"
_MOLECULES, _LAST = 130_831, 133_885

_ARCHIVE = "f11d3f8ecc3097a72656a35c4847767852e6f346bf99a54619a1a3b6389ddc02"
_DIGESTS = (
    "98c4e97d50ac549b8c9f0b2114b348a9a944718e17e50d9a724b729f1deaa28e",
    "73a67793e3cfa9660f001278bd019c143f57e4785db537a01811cf2ce72aa7eb",
    "3aa5115d540b356de94791d4a74c3bf1ed91c469ecf52a4f5d7cc0506fe02e24",
)
"""SHA-256 of the raw files: that of the last is in TensorFlow Datasets; the publishers give none of the others, which
independent projects wrote down alike."""

_INSTRUCTIONS = """\
QM9: 130,831 molecules, from either of

1. the package qm9pack (104 MB): {install}. Nothing else is needed, and no --root.
2. the raw files of torch_geometric.datasets.QM9, which fetches them where it may, under {raw}:
     {structures}
       (zip, SHA-256 {archive})
       with {names}
     {skipped}
       (text of 486,752 bytes), to be named {last}
   Checked are every line, that all molecules are there, and the SHA-256 of each file:
{digests}
"""


class QM9Files(DataSource):
    """QM9 as torch-geometric's raw files, or from the package qm9pack."""

    def instructions(self, root: Path) -> str:
        """Both ways, with addresses.

        Args:
            root: the folder of the data; it need not exist.
        """
        return _INSTRUCTIONS.format(
            install=install_line("mtl-benchmarks[qm9]"),
            raw=root / "raw",
            structures=_STRUCTURES,
            names=" and ".join(RAW_FILES[:2]),
            skipped=_SKIPPED,
            last=RAW_FILES[2],
            archive=_ARCHIVE,
            digests="\n".join(f"     {digest}  {name}" for digest, name in zip(_DIGESTS, RAW_FILES, strict=True)),
        )

    def problems(self, root: Path) -> Sequence[str]:
        """What is wrong with the files, by name.

        The first that is missing or cannot be read, with its line; else a wrong number of molecules, and each file
        whose digest is not the one that is known.

        Args:
            root: the folder of the data; it need not exist.
        """
        try:
            molecules = read_raw(root)
        except InvalidInputError as error:
            return [str(error).rstrip(".")]
        last = int(molecules.numbers[-1]) if len(molecules) else 0
        found = []
        if (len(molecules), last) != (_MOLECULES, _LAST):
            wrong = f"must leave {_MOLECULES} molecules up to number {_LAST}, got {len(molecules)} up to number {last}"
            found.append(f"{', '.join(RAW_FILES)} {wrong}: they are cut off or of another edition")
        return [*found, *other_digests(dict(zip(find_raw(root), _DIGESTS, strict=True)), "sha256")]
