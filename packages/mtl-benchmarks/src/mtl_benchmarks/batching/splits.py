"""Dividing a data set at random into the samples for training, choosing and reporting."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_core import InvalidParameterError

__all__ = ["drawn_splits"]


def drawn_splits(n: int, *, train: int, validation: int, test: int, seed: int, what: str) -> dict[str, Tensor]:
    """The numbers of each split's samples, drawn from the seed; none is in two splits.

    Those for testing are drawn first, so that they stay the same whatever there is to train on.

    Args:
        n: samples there are.
        train: how many are for training.
        validation: how many are for choosing.
        test: how many are for reporting.
        seed: of the order.
        what: the samples, in the reader's words.

    Raises:
        InvalidParameterError: there are fewer.

    Example:
        >>> found = drawn_splits(10, train=4, validation=1, test=3, seed=0, what="ratings")
        >>> {split: len(rows) for split, rows in found.items()}
        {'test': 3, 'validation': 1, 'train': 4}
    """
    sizes = {"test": test, "validation": validation, "train": train}
    wanted = sum(sizes.values())
    if wanted > n:
        raise InvalidParameterError(
            f"`n_train` + `n_validation` + `n_test` must be at most {n}, the {what} there are, got "
            f"{train} + {validation} + {test} = {wanted}."
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    # Not strict: the last piece is what no split has asked for.
    return dict(zip(sizes, order.split([*sizes.values(), n - wanted]), strict=False))
