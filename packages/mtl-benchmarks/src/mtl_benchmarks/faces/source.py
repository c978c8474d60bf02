"""Where the files of CelebA come from: they are fetched by a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_benchmarks.data_files import DataSource, other_digests
from mtl_benchmarks.faces.folder import (
    COUNTS,
    LABELS,
    PARTITION,
    PICTURES,
    FaceFolder,
    FaceSplit,
    folder_problems,
    picture_problems,
    picture_size,
)
from mtl_core import MissingExtraError

__all__ = ["OfficialCelebA"]

_DIGESTS = {LABELS: "75e246fa4810816ffd6ee81facbd244c", PARTITION: "d32c9cbf5e040fd4025c592c306e6668"}
_ARCHIVE = "00d2c5bc6d35e252742224ab0c1e8fcb"
"""MD5, as torchvision's loader of this data set has them; the authors publish none."""

_SIZE = (178, 218)


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
            "project neither has nor may pass on a copy. Fetch the aligned pictures (img_align_celeba.zip, MD5 "
            f"{_ARCHIVE}), the attributes and the partition, and unpack them so that there are\n"
            f"  {root}/{PICTURES}/000001.jpg, 000002.jpg, …   ({train + validation + test:,} files)\n"
            f"  {root}/{LABELS}      the number of pictures, a line of 40 names, a row of -1 and 1 each\n"
            f"  {root}/{PARTITION}   a name and 0 (train: {train:,}), 1 (validation: {validation:,}) or 2 "
            f"(test: {test:,}) each\n"
            "Both text files end with a newline; their MD5 are\n"
            + "\n".join(f"  {digest}  {name}" for name, digest in _DIGESTS.items())
        )

    def problems(self, root: Path) -> Sequence[str]:
        """What is wrong with the files, by name.

        Missing, cut off and contradictory files, then pictures that are not whole, then a wrong number of them, another
        size than that of the aligned ones, and text files whose digest is not the known one.

        Args:
            root: the folder of the data; it need not exist.
        """
        return folder_problems(root) or picture_problems(root) or self._other_edition(root)

    def _other_edition(self, root: Path) -> list[str]:
        splits: dict[FaceSplit, int] = {split: len(FaceFolder(root, split)) for split in COUNTS}
        found = [
            f"{root / PARTITION}: must have {COUNTS[split]:,} pictures of split {split}, got {n:,}"
            for split, n in splits.items()
            if n != COUNTS[split]
        ]
        try:
            size = picture_size(root)
        except MissingExtraError:  # one may check files where one does not train on them
            size = _SIZE
        if size != _SIZE:
            found.append(
                f"{root / PICTURES}: must hold the aligned pictures of {_SIZE[0]} × {_SIZE[1]}, got one of {size[0]} × "
                f"{size[1]}"
            )
        return [*found, *other_digests({root / name: digest for name, digest in _DIGESTS.items()}, "md5")]
