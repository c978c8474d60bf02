"""Where the files of CelebA come from: they are fetched by a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_benchmarks.data_files import DataSource
from mtl_benchmarks.faces.folder import COUNTS, LABELS, PARTITION, PICTURES, FaceFolder, FaceSplit, folder_problems
from mtl_benchmarks.faces.folder import picture_problems as _picture_problems

__all__ = ["OfficialCelebA"]


class OfficialCelebA(DataSource):
    """CelebA's aligned pictures, which a person fetches; no faces come with this package, and none are made."""

    def instructions(self, root: Path) -> str:
        """What to fetch, and how it lies.

        Args:
            root: the folder of the data; it need not exist.
        """
        train, validation, test = COUNTS.values()
        return (
            "CelebA, aligned and cropped pictures of 178 × 218 with 40 attributes: the authors' page, "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, says under which terms and where to get it; this "
            "project neither has nor may pass on a copy, and knows no digests of it. Fetch the aligned pictures, the "
            "attributes and the partition, and unpack them so that there are\n"
            f"  {root}/{PICTURES}/000001.jpg, 000002.jpg, …   ({train + validation + test:,} files)\n"
            f"  {root}/{LABELS}      the number of pictures, a line of 40 names, a row of -1 and 1 each\n"
            f"  {root}/{PARTITION}   a name and 0 (train: {train:,}), 1 (validation: {validation:,}) or 2 "
            f"(test: {test:,}) each\n"
            "Both text files end with a newline."
        )

    def problems(self, root: Path) -> Sequence[str]:
        """Missing, cut off and contradictory files, then pictures that are not whole, then a wrong number of them.

        Args:
            root: the folder of the data; it need not exist.
        """
        found = folder_problems(root) or _picture_problems(root)
        return found or self._wrong_size(root)

    def _wrong_size(self, root: Path) -> list[str]:
        splits: dict[FaceSplit, int] = {split: len(FaceFolder(root, split)) for split in COUNTS}
        return [
            f"{root / PARTITION}: must have {COUNTS[split]:,} pictures of split {split}, got {n:,}"
            for split, n in splits.items()
            if n != COUNTS[split]
        ]
