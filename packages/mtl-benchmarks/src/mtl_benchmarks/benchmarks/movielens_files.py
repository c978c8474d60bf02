"""MovieLens-100K as the package ``recbole`` has it: ratings, users and films in three tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mtl_benchmarks.packaged_files import packaged_files
from mtl_core import InvalidInputError

__all__ = ["FIELDS", "Ratings", "movielens_files", "read_movielens"]

_FOLDER = "dataset_example/ml-100k"
_COLUMNS = {
    "ml-100k.inter": ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
    "ml-100k.user": ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"),
    "ml-100k.item": ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
}
_COUNTS = (100_000, 943, 1_682)
"""Ratings, users and films, each with a line that ends."""

FIELDS = ("user", "film", "age", "gender", "occupation", "decade", "genre")
"""What is known of a rating before it is given: ages by tens, the film's decade, the first of its genres."""


@dataclass(frozen=True)
class Ratings:
    """Some ratings.

    Attributes:
        fields: ``[n, 7]`` int64, one category per field of ``FIELDS``.
        stars: ``[n]`` float32, 1 to 5.
    """

    fields: Tensor
    stars: Tensor

    def __len__(self) -> int:
        return len(self.stars)

    def rows(self, rows: Tensor | slice) -> Ratings:
        """The chosen ratings."""
        return Ratings(self.fields[rows], self.stars[rows])

    def to(self, device: str) -> Ratings:
        """The same ratings on another device."""
        return Ratings(self.fields.to(device), self.stars.to(device))


def movielens_files() -> list[Path]:
    """Where the installed package has them: ratings, users, films.

    Raises:
        MissingExtraError: the package is not installed.
        InvalidInputError: it is, and a file is not where it was, or is cut off.
    """
    names = [f"{_FOLDER}/{name}" for name in _COLUMNS]
    what = "MovieLens-100K, files of the package recbole,"
    # Its own requirements pin other libraries to old versions.
    files = packaged_files("recbole", names, what=what, extra="movielens", dependencies=False)
    for file, count in zip(files, _COUNTS, strict=True):
        found = file.read_bytes().count(b"\n") - 1
        if found != count:
            raise InvalidInputError(
                f"{file.name} must have {count:,} lines below its head, got {found:,}. Install recbole again."
            )
    return files


def read_movielens(files: Sequence[Path]) -> tuple[Ratings, dict[str, int]]:
    """All ratings in the order of the file, and how many categories each field has.

    Args:
        files: ratings, users, films.

    Raises:
        InvalidInputError: a file has other columns or a line that cannot be read, a rating is not 1 to 5, or it is of a
            user or film that is not listed, or is listed twice.
    """
    ratings, users_file, films_file = files
    users = {name: (_tens(row[1]), row[2], row[3]) for name, row in _listed(users_file).items()}
    films = {name: (_tens(row[2]), row[3].partition(" ")[0]) for name, row in _listed(films_file).items()}
    known: dict[str, dict[str, int]] = {field: {} for field in FIELDS}
    rows, stars = [], []
    for number, (user, film, rating, _) in _lines(ratings):
        where = f"{ratings.name}, line {number},"
        if rating not in ("1", "2", "3", "4", "5"):
            raise InvalidInputError(f"{where} must have a rating from 1 to 5, got {rating!r}.")
        for kind, name, listed in (("user", user, users), ("film", film, films)):
            if name not in listed:
                raise InvalidInputError(
                    f"{where} must name a {kind} that is listed, got {name!r}. It is of other files."
                )
        values = (user, film, *users[user], *films[film])
        rows.append([_place(known[field], value) for field, value in zip(FIELDS, values, strict=True)])
        stars.append(float(rating))
    fields = torch.tensor(rows, dtype=torch.int64).reshape(-1, len(FIELDS))
    return Ratings(fields, torch.tensor(stars)), {field: len(names) for field, names in known.items()}


def _listed(file: Path) -> dict[str, list[str]]:
    """The rows by their first cell, which is a name."""
    found: dict[str, list[str]] = {}
    for number, row in _lines(file):
        if row[0] in found:
            raise InvalidInputError(
                f"{file.name}, line {number}, must name another than {row[0]!r}, which is listed above."
            )
        found[row[0]] = row
    return found


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line below the first, which has the columns."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file.name} must be readable text, got: {error}. Install recbole again.") from None
    wanted = _COLUMNS[file.name]
    found = tuple(lines[0].split("\t")) if lines else ()
    if found != wanted:
        raise InvalidInputError(
            f"{file.name} must have the columns {', '.join(wanted)}, got {', '.join(found) or 'none'}."
        )
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(wanted):
            raise InvalidInputError(f"{file.name}, line {number}, must have {len(wanted)} cells, got {len(cells)}.")
        yield number, cells


def _tens(number: str) -> str:
    """An age or a year by its decade; what is no number, as the year of one film, is a category of its own."""
    return str(int(number) // 10) if number.isdecimal() else "unknown"


def _place(known: dict[str, int], value: str) -> int:
    return known.setdefault(value, len(known))
