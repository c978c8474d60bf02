"""The papers' eleven properties of QM9, their printed single-task errors, and molecules made ready for batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_benchmarks.metrics import Baseline, Metric
from mtl_benchmarks.models.grouped_molecules import GroupedMolecules
from mtl_benchmarks.molecules import Molecules, collate

__all__ = ["PRINTED", "PROPERTIES", "MoleculeSample", "MoleculeSet", "Property"]

_PREPARED = 20_000
"""Up to so many molecules, features of pairs are made once and kept: 17 kB each."""


@dataclass(frozen=True)
class Property:
    """One task.

    Attributes:
        task: its name.
        column: the column of the targets, in ``mtl_benchmarks.molecules.TARGETS``.
        unit: of the reported error.
        factor: from the column's unit into it.
        printed: the single-task error that released code has as a constant, in that unit.
    """

    task: str
    column: str
    unit: str
    factor: float
    printed: float

    @property
    def metric(self) -> Metric:
        """Its mean absolute error."""
        return Metric(f"error_{self.task}", self.task, self.unit, higher_is_better=False)


PROPERTIES = (
    Property("mu", "mu", "D", 1.0, 0.0671),
    Property("alpha", "alpha", "bohr³", 1.0, 0.1814),
    Property("homo", "homo", "meV", 1000.0, 60.576),
    Property("lumo", "lumo", "meV", 1000.0, 53.915),
    Property("r2", "r2", "bohr²", 1.0, 0.5027),
    Property("zpve", "zpve", "meV", 1000.0, 4.539),
    Property("u0", "u0_atom", "meV", 1000.0, 58.838),
    Property("u", "u298_atom", "meV", 1000.0, 64.244),
    Property("h", "h298_atom", "meV", 1000.0, 63.852),
    Property("g", "g298_atom", "meV", 1000.0, 66.223),
    Property("cv", "cv", "cal/(mol K)", 1.0, 0.07212),
)
"""The papers' eleven, in their order."""

PRINTED = tuple(
    Baseline(each.metric, each.printed, "constants in the released code of Nash-MTL, FAMO, FairGrad and COST")
    for each in PROPERTIES
)
"""What every published Δm on QM9 is taken against."""


@dataclass(frozen=True)
class MoleculeSample:
    """Some molecules and what is to be predicted of them.

    Attributes:
        molecules: the graphs.
        targets: ``[b, 11]`` float32, normalised.
    """

    molecules: GroupedMolecules
    targets: Tensor

    def to(self, device: str) -> MoleculeSample:
        """The same on another device."""
        return MoleculeSample(self.molecules.to(device), self.targets.to(device))


class MoleculeSet:
    """One part of the data, ready to be made into batches.

    Args:
        molecules: ``n`` of them.
        targets: ``[n, 11]``, normalised.
        cutoff: atoms are linked up to this distance in ångström; None: all pairs.
    """

    def __init__(self, molecules: Molecules, targets: Tensor, *, cutoff: float | None = None) -> None:
        self._molecules, self.targets, self._cutoff = molecules, targets.float(), cutoff
        self._all = collate(molecules, self.targets) if len(molecules) <= _PREPARED else None

    def __len__(self) -> int:
        return len(self._molecules)

    @property
    def numbers(self) -> Tensor:
        """Under which the molecules are listed in QM9, ``[n]`` int64."""
        return self._molecules.numbers

    @property
    def is_prepared(self) -> bool:
        """Whether the features of pairs are kept; they are made for each batch where they would be gigabytes."""
        return self._all is not None

    def collated(self, rows: list[int]) -> MoleculeSample:
        """The molecules ``rows``, given one by one as a loader does."""
        return self.sample(torch.tensor(rows))

    def sample(self, rows: Tensor) -> MoleculeSample:
        """The molecules ``rows``."""
        targets = self.targets[rows]
        if self._all is None:
            batch = collate(self._molecules.take(rows), targets)
            grouped = GroupedMolecules.from_padded(batch.nodes, batch.edges, batch.sizes)
        else:
            kept = self._all
            grouped = GroupedMolecules.from_padded(kept.nodes[rows], kept.edges[rows], kept.sizes[rows])
        return MoleculeSample(grouped if self._cutoff is None else grouped.within(self._cutoff), targets)
