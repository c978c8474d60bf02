"""Reading the folder of CelebA: two text files and a picture per face."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from mtl_core import InvalidInputError, MissingExtraError
from mtl_core.checks import one_of

__all__ = [
    "ATTRIBUTES",
    "COUNTS",
    "FaceFolder",
    "FaceSplit",
    "Faces",
    "folder_problems",
    "missing_files",
    "picture_problems",
    "picture_size",
]

ATTRIBUTES: tuple[str, ...] = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
"""The forty attributes in the order of the official file."""

FaceSplit = Literal["train", "validation", "test"]
_SPLITS: tuple[FaceSplit, ...] = ("train", "validation", "test")

COUNTS: dict[FaceSplit, int] = {"train": 162_770, "validation": 19_867, "test": 19_962}
"""Official pictures per split."""

PICTURES, LABELS, PARTITION = "Img/img_align_celeba", "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"

_SIDE = 64
_SHOWN = 3
_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
"""How a whole JPEG begins and ends."""

_TAIL = 64
"""Bytes within which the end is looked for: what writes pictures may leave a few behind it."""


@dataclass(frozen=True)
class Faces:
    """Pictures with their labels.

    Attributes:
        images: [b, 3, 64, 64] uint8.
        labels: [b, 40] float32, 1 where the attribute is there and 0 where not.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self) -> Tensor:
        """The pictures in [0, 1], float32."""
        return self.images.float() / 255

    def to(self, device: str | torch.device) -> Faces:
        """The same on another device."""
        return Faces(self.images.to(device), self.labels.to(device))

    @classmethod
    def stack(cls, parts: Sequence[Faces]) -> Faces:
        """Several as one, in their order."""
        return cls(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


class FaceFolder:
    """One split of the pictures under ``root``.

    Both text files are read at the start, every picture is looked for, and each one of the split at its beginning and
    end, so that what is missing or cut off is found before a run begins; a picture is read when it is asked for.

    Args:
        root: the data set's folder.
        split: which part of it.
        limit: take so many from the beginning of the split; None: all of it.

    Raises:
        InvalidInputError: something is wrong with the files; all that is wrong is named.
    """

    def __init__(self, root: str | Path, split: FaceSplit, *, limit: int | None = None) -> None:
        one_of("split", split, _SPLITS)
        self.root = Path(root)
        _refuse(folder_problems(root))
        names, labels, parts = _tables(self.root)
        rows = [k for k, part in enumerate(parts) if part == _SPLITS.index(split)]
        if limit is not None and limit > len(rows):
            raise InvalidInputError(
                f"`n_{split}` must be at most {len(rows)}, the pictures of that split there are, got {limit}."
            )
        rows = rows[:limit]
        self.names = [names[k] for k in rows]
        _refuse(picture_problems(root, self.names))
        self.labels = torch.tensor([labels[k] for k in rows], dtype=torch.float32).view(-1, len(ATTRIBUTES))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Faces:
        path = self.root / PICTURES / self.names[index]
        return Faces(_picture(path)[None], self.labels[index : index + 1])


def missing_files(root: str | Path) -> list[str]:
    """Which of the folder of pictures and the two text files are not there, as paths below ``root``."""
    base = Path(root)
    there = {PICTURES: (base / PICTURES).is_dir(), **{name: (base / name).is_file() for name in (LABELS, PARTITION)}}
    return [name for name, is_there in there.items() if not is_there]


def folder_problems(root: str | Path) -> list[str]:
    """What is wrong with the files, each with its name; empty where a run can begin.

    The text files are read, and every picture they list must be there and not empty.

    Args:
        root: the data set's folder; it need not exist.
    """
    base = Path(root)
    missing = missing_files(root)
    if missing:
        how = {PICTURES: "there is no such folder"}
        return [f"{base / name}: {how.get(name, 'is missing')}" for name in missing]
    found = [*_label_problems(base / LABELS), *_partition_problems(base / PARTITION)]
    if found:
        return found
    names, _, _ = _tables(base)
    listed = [line.split()[0] for line in _lines(base / PARTITION)]
    if names != listed:
        pairs = zip(names, listed, strict=False)
        row = 1 + next((k for k, (own, other) in enumerate(pairs) if own != other), min(len(names), len(listed)))
        what = f"must list the pictures of {LABELS} in the same order, got another one in row {row}"
        return [f"{base / PARTITION}: {what} ({len(listed)} and {len(names)} rows)"]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        # It could be trained on and tested on at once.
        return [f"{base / LABELS}: must list each picture once, got {twice[0]} more than once"]
    # One pass over the folder instead of a question per file: there are 202,599.
    with os.scandir(base / PICTURES) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    missing = [f"{base / PICTURES / name}: is missing" for name in names if name not in sizes]
    empty = [f"{base / PICTURES / name}: is empty" for name in names if sizes.get(name) == 0]
    return [*_few(missing), *_few(empty)]


def picture_problems(root: str | Path, names: Sequence[str] | None = None) -> list[str]:
    """Pictures that do not begin and end as a whole JPEG does; looks into every file.

    Args:
        root: the data set's folder, without other problems.
        names: of the pictures; None: of all.
    """
    base = Path(root) / PICTURES
    found = []
    for name in _tables(Path(root))[0] if names is None else names:
        try:
            with (base / name).open("rb") as file:
                begin = file.read(len(_BEGIN))
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                is_whole = begin == _BEGIN and _END in file.read()
        except OSError as error:
            found.append(f"{base / name}: cannot be read: {error.strerror}")
            continue
        if not is_whole:
            found.append(f"{base / name}: is no whole JPEG file")
    return _few(found)


def picture_size(root: str | Path) -> tuple[int, int]:
    """Width and height of the first picture that is listed.

    Raises:
        MissingExtraError: pillow is not installed.
        InvalidInputError: it cannot be read.
    """
    path = Path(root) / PICTURES / _tables(Path(root))[0][0]
    try:
        with _imaging().open(path) as picture:
            width, height = picture.size
    except OSError as error:
        raise InvalidInputError(f"{path} must be a readable picture, got: {error}") from error
    return width, height


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise InvalidInputError(
            f"`root` must hold CelebA, got {len(problems)} problem(s):\n"
            + "\n".join(f"- {problem}" for problem in problems)
            + "\n`mtl-bench data celeba` says how it must lie."
        )


def _few(items: list[str]) -> list[str]:
    return items if len(items) <= _SHOWN else [*items[:_SHOWN], f"and {len(items) - _SHOWN} more like the last"]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _cut(path: Path) -> list[str]:
    if path.read_bytes().endswith(b"\n"):
        return []
    return [f"{path}: must end with a newline; it may have been cut off"]


def _label_problems(path: Path) -> list[str]:
    lines = _lines(path)
    if len(lines) < 2 or not lines[0].strip().isdecimal():
        return [f"{path}: must begin with the number of pictures and the names of the attributes"]
    if tuple(lines[1].split()) != ATTRIBUTES:
        names = lines[1].split()
        return [f"{path}: line 2 must name the {len(ATTRIBUTES)} attributes, got {len(names)}: {' '.join(names[:3])} …"]
    found = _cut(path)
    if int(lines[0]) != len(lines) - 2:
        found.append(f"{path}: must have {int(lines[0])} rows as its first line says, got {len(lines) - 2}")
    for k, line in enumerate(lines[2:], start=3):
        values = line.split()[1:]
        wrong = [value for value in values if value not in ("-1", "1")]
        if wrong or len(values) != len(ATTRIBUTES):
            what = repr(wrong[0]) if wrong else f"{len(values)} of them"
            found.append(f"{path}: line {k} must have {len(ATTRIBUTES)} values of -1 or 1, got {what}")
            break
    return found


def _partition_problems(path: Path) -> list[str]:
    found, lines = _cut(path), _lines(path)
    for k, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            found.append(f"{path}: line {k} must be a picture's name and 0, 1 or 2, got {line!r}")
            break
    else:
        parts = {line.split()[1] for line in lines}
        found += [f"{path}: must have pictures of split {name}, got none" for k, name in enumerate(_SPLITS)
                  if str(k) not in parts]  # fmt: skip
    return found


def _tables(root: Path) -> tuple[list[str], list[list[int]], list[int]]:
    """Names, labels in {0, 1} and splits of all pictures, from files that are known to be right."""
    rows = [line.split() for line in _lines(root / LABELS)[2:]]
    names = [row[0] for row in rows]
    labels = [[int(value == "1") for value in row[1:]] for row in rows]
    return names, labels, [int(line.split()[1]) for line in _lines(root / PARTITION)]


def _imaging() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("reading CelebA's pictures", "mtl-benchmarks[celeba]") from None
    return Image


def _picture(path: Path) -> Tensor:
    """A picture brought to 64 × 64 without regard to its shape, ``[3, 64, 64]`` uint8."""
    imaging = _imaging()
    try:
        with imaging.open(path) as picture:
            small = picture.convert("RGB").resize((_SIDE, _SIDE), imaging.Resampling.BILINEAR)
    except OSError as error:
        raise InvalidInputError(f"{path} must be a readable picture, got: {error}") from error
    return torch.from_numpy(numpy.array(small)).movedim(-1, 0).contiguous()
