"""Conversions and reference energies of QM9, as ``torch_geometric.datasets.QM9`` has them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HARTREE", "KCAL_PER_MOL", "REFERENCE_ENERGIES", "atomisation_energies"]

HARTREE = 27.211386246
"""Electronvolts in one hartree."""

KCAL_PER_MOL = 0.04336414
"""Electronvolts in one kilocalorie per mole."""

REFERENCE_ENERGIES: tuple[tuple[float, ...], ...] = (
    (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
)
"""Energies of single atoms in hartree: U at 0 K, then U, H and G at 298.15 K, of H, C, N, O, F each.

From the data's own ``atomref.txt`` (Ramakrishnan et al., *Quantum chemistry structures and properties of 134 kilo
molecules*, Scientific Data 2014).
"""


def atomisation_energies(totals: Tensor, counts: Tensor) -> Tensor:
    r"""Energies above those of the single atoms, :math:`E - \sum_e n_e E_e`, in the unit of ``totals``.

    Args:
        totals: ``[n, 4]`` in electronvolts: U at 0 K, then U, H and G at 298.15 K.
        counts: ``[n, 5]``, how many atoms of H, C, N, O, F.
    """
    references = HARTREE * torch.tensor(REFERENCE_ENERGIES, dtype=torch.float64)
    return totals - counts.to(torch.float64) @ references.T
