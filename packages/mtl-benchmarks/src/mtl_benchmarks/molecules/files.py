"""How to come by QM9's raw files, and whether those that lie there are all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_benchmarks.data_files import DataSource
from mtl_benchmarks.molecules.raw import RAW_FILES, read_raw
from mtl_core import InvalidInputError
from mtl_core.extension import install_line

__all__ = ["QM9Files"]

_STRUCTURES = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/molnet_publish/qm9.zip"
_SKIPPED = "https://ndownloader.figshare.com/files/3195404"
_MOLECULES, _LAST = 130_831, 133_885

_INSTRUCTIONS = """\
QM9: 130,831 molecules, from either of

1. the package qm9pack (104 MB): {install}. Nothing else is needed, and no --root.
2. the raw files of torch_geometric.datasets.QM9, which fetches them where it may, under {raw}:
     {structures}
       (zip) with {names}
     {skipped}
       (text), to be named {last}
   No digests of them are published: what is checked is that every line can be read and that all molecules are there.
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
        )

    def problems(self, root: Path) -> Sequence[str]:
        """The first file that is missing or cannot be read, with its line, or how many molecules are missing.

        Args:
            root: the folder of the data; it need not exist.
        """
        try:
            molecules = read_raw(root)
        except InvalidInputError as error:
            return [str(error).rstrip(".")]
        last = int(molecules.numbers[-1]) if len(molecules) else 0
        if (len(molecules), last) == (_MOLECULES, _LAST):
            return []
        wrong = f"must leave {_MOLECULES} molecules up to number {_LAST}, got {len(molecules)} up to number {last}"
        return [f"{', '.join(RAW_FILES)} {wrong}: they are cut off or of another edition"]
