"""Many molecules in a few arrays, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy
import torch
from torch import Tensor

from mtl_core import InvalidInputError

__all__ = ["ELEMENTS", "MOST_ATOMS", "TARGETS", "Molecules"]

ELEMENTS = ("H", "C", "N", "O", "F")
"""The elements of QM9, in the order of the one-hot features."""

MOST_ATOMS = 255
"""Of one molecule: bonds name their atoms in one byte. Those of QM9 have 29 at most."""

TARGETS: tuple[tuple[str, str], ...] = (
    ("mu", "D"),
    ("alpha", "bohr³"),
    ("homo", "eV"),
    ("lumo", "eV"),
    ("gap", "eV"),
    ("r2", "bohr²"),
    ("zpve", "eV"),
    ("u0", "eV"),
    ("u298", "eV"),
    ("h298", "eV"),
    ("g298", "eV"),
    ("cv", "cal/(mol K)"),
    ("u0_atom", "eV"),
    ("u298_atom", "eV"),
    ("h298_atom", "eV"),
    ("g298_atom", "eV"),
    ("a", "GHz"),
    ("b", "GHz"),
    ("c", "GHz"),
)
"""Name and unit of each column of the targets, in the order of ``torch_geometric.datasets.QM9``."""


@dataclass(frozen=True)
class Molecules:
    """Molecules with ``n_i`` atoms and ``b_i`` bonds each, packed: ``N`` atoms and ``B`` bonds in all.

    Attributes:
        numbers: ``[n]`` int64, the numbers under which the molecules are listed in QM9, from 1.
        atoms: ``[n + 1]`` int64, where each molecule's atoms begin.
        elements: ``[N]`` uint8, position in ``ELEMENTS``.
        positions: ``[N, 3]`` float32, in ångström.
        bonds: ``[n + 1]`` int64, where each molecule's bonds begin.
        bonded: ``[B, 2]`` uint8, the two atoms of a bond, counted within the molecule; each bond once.
        orders: ``[B]`` uint8: 1, 2, 3 for single, double, triple, 4 for aromatic.
        targets: ``[n, 19]`` float64, the columns of ``TARGETS``.
    """

    numbers: Tensor
    atoms: Tensor
    elements: Tensor
    positions: Tensor
    bonds: Tensor
    bonded: Tensor
    orders: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        n = len(self.numbers)
        wanted = {
            "atoms": (n + 1,),
            "bonds": (n + 1,),
            "positions": (len(self.elements), 3),
            "bonded": (len(self.orders), 2),
            "targets": (n, len(TARGETS)),
        }
        for name, shape in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise InvalidInputError(f"`{name}` must have shape {shape} for {n} molecules, got {found}.")
        for name, total in (("atoms", len(self.elements)), ("bonds", len(self.orders))):
            starts = getattr(self, name)
            if int(starts[0]) != 0 or int(starts[-1]) != total or bool((starts.diff() < 0).any()):
                raise InvalidInputError(f"`{name}` must rise from 0 to {total}, got {starts[:3].tolist()} …")

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def sizes(self) -> Tensor:
        """Atoms of each molecule, ``[n]``."""
        return self.atoms.diff()

    def take(self, rows: Tensor) -> Molecules:
        """The molecules ``rows``, in this order.

        Example:
            >>> none = Molecules.empty()
            >>> len(none.take(torch.zeros(0, dtype=torch.int64)))
            0
        """
        atoms, bonds = _ranges(self.atoms, rows), _ranges(self.bonds, rows)
        return Molecules(
            self.numbers[rows],
            _starts(self.atoms.diff()[rows]),
            self.elements[atoms],
            self.positions[atoms],
            _starts(self.bonds.diff()[rows]),
            self.bonded[bonds],
            self.orders[bonds],
            self.targets[rows],
        )

    @classmethod
    def empty(cls) -> Molecules:
        """No molecule."""
        return cls.pack([], [], [], [], [])

    @classmethod
    def pack(
        cls,
        numbers: list[int],
        elements: list[list[int]],
        positions: list[list[list[float]]],
        bonds: list[list[tuple[int, int, int]]],
        targets: list[list[float]],
    ) -> Molecules:
        """From one list entry per molecule; bonds are (first atom, second atom, order)."""
        flat = [bond for each in bonds for bond in each]
        table = numpy.array(flat, dtype=numpy.uint8).reshape(-1, 3)
        places = numpy.array([place for each in positions for place in each], dtype=numpy.float32).reshape(-1, 3)
        return cls(
            torch.tensor(numbers, dtype=torch.int64),
            _starts(torch.tensor([len(each) for each in elements], dtype=torch.int64)),
            torch.tensor([element for each in elements for element in each], dtype=torch.uint8),
            torch.from_numpy(places),
            _starts(torch.tensor([len(each) for each in bonds], dtype=torch.int64)),
            torch.from_numpy(numpy.ascontiguousarray(table[:, :2])),
            torch.from_numpy(numpy.ascontiguousarray(table[:, 2])),
            torch.tensor(targets, dtype=torch.float64).reshape(-1, len(TARGETS)),
        )

    def as_arrays(self) -> dict[str, numpy.ndarray]:
        """Name → array, for a file."""
        return {field.name: getattr(self, field.name).numpy() for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, numpy.ndarray]) -> Molecules:
        """What :meth:`as_arrays` gave."""
        return cls(**{field.name: torch.from_numpy(arrays[field.name]) for field in fields(cls)})


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _ranges(starts: Tensor, rows: Tensor) -> Tensor:
    """The entries ``starts[r], …, starts[r + 1] - 1`` for each row r, one after the other."""
    first, counts = starts[rows], starts.diff()[rows]
    # Where each row's entries begin in the result; from there, the distance to where they are in the source is
    # constant.
    begin = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) + (first - begin).repeat_interleave(counts)
