"""The table of genes inside the package ``river``: 103 measurements and 14 classes each."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from mtl_benchmarks.packaged_files import packaged_files
from mtl_core import InvalidInputError

__all__ = ["N_CLASSES", "N_FEATURES", "read_yeast", "yeast_file"]

N_FEATURES = 103
N_CLASSES = 14

_COLUMNS = [*(f"Att{k}" for k in range(1, N_FEATURES + 1)), *(f"Class{k}" for k in range(1, N_CLASSES + 1))]


def yeast_file() -> Path:
    """Where the installed package has it.

    Raises:
        MissingExtraError: the package is not installed.
        InvalidInputError: it is, and the file is not where it was.
    """
    (file,) = packaged_files(
        "river", ["datasets/yeast.csv.gz"], what="Yeast, a file of the package river,", extra="yeast"
    )
    return file


def read_yeast(file: Path) -> Tensor:
    """All genes, ``[n, 117]`` float64: features, then labels 0 or 1.

    Raises:
        InvalidInputError: the file is damaged, has other columns, or holds something that is no number or no label.
    """
    try:
        with gzip.open(file, "rt", newline="") as lines:
            rows = list(csv.reader(lines))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(
            f"{file.name} must be a whole gzip file of a table, got: {error}. Install river again."
        ) from None
    if not rows or rows[0] != _COLUMNS:
        got = f"{len(rows[0])} columns from {rows[0][0]!r} to {rows[0][-1]!r}" if rows and rows[0] else "none"
        raise InvalidInputError(f"{file.name} must have the columns Att1 to Att103 and Class1 to Class14, got {got}.")
    values = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            found = [float(word) for word in row]
        except ValueError as error:
            raise InvalidInputError(f"{file.name}, line {number}, cannot be read: {error}.") from None
        if len(found) != len(_COLUMNS) or not all(map(math.isfinite, found)):
            odd = [word for word, value in zip(row, found, strict=True) if not math.isfinite(value)]
            got = f"{len(found)}" if not odd else f"{odd[0]!r} among {len(found)}"
            raise InvalidInputError(f"{file.name}, line {number}, must hold 117 finite numbers, got {got}.")
        if not set(found[N_FEATURES:]) <= {0.0, 1.0}:
            raise InvalidInputError(f"{file.name}, line {number}, must have labels 0 or 1, got {row[N_FEATURES:]}.")
        values.append(found)
    return torch.tensor(values, dtype=torch.float64).reshape(-1, len(_COLUMNS))
