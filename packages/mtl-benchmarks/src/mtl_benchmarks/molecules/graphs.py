"""Molecules as the papers' network takes them: complete graphs with bond types and distances, padded to one size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_benchmarks.molecules.store import ELEMENTS, Molecules

__all__ = ["EDGE_FEATURES", "NODE_FEATURES", "MoleculeBatch", "collate"]

NODE_FEATURES = 11
"""One-hot element (5), atomic number, aromatic, sp, sp2, sp3, number of bonded hydrogens."""

EDGE_FEATURES = 5
"""One-hot bond: single, double, triple, aromatic; then the distance in ångström."""

_ATOMIC_NUMBERS = (1.0, 6.0, 7.0, 8.0, 9.0)


@dataclass(frozen=True)
class MoleculeBatch:
    """``b`` molecules of at most ``n`` atoms.

    Attributes:
        nodes: ``[b, n, 11]`` float32, see ``NODE_FEATURES``; zero beyond a molecule's atoms.
        edges: ``[b, n, n, 5]`` float32, see ``EDGE_FEATURES``: ``edges[i, target, source]``; zero on the diagonal and
            beyond a molecule's atoms, where there is no edge.
        sizes: ``[b]`` int64, atoms of each molecule.
        targets: ``[b, t]`` float32.
    """

    nodes: Tensor
    edges: Tensor
    sizes: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def mask(self) -> Tensor:
        """``[b, n]``, true at atoms."""
        return torch.arange(self.nodes.shape[1], device=self.sizes.device) < self.sizes[:, None]

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> MoleculeBatch:
        """The same batch elsewhere."""
        nodes, edges, targets = (t.to(device, dtype) for t in (self.nodes, self.edges, self.targets))
        return MoleculeBatch(nodes, edges, self.sizes.to(device), targets)


def collate(molecules: Molecules, targets: Tensor) -> MoleculeBatch:
    """The complete directed graphs, without self loops, of some molecules.

    As PyG reads QM9, unsanitised: the columns for sp, sp2 and sp3 are 0 and so is that for aromatic atoms.

    Args:
        molecules: ``b`` of them.
        targets: ``[b, t]``, what is to be predicted, handed on.

    Example:
        >>> batch = collate(Molecules.empty(), torch.zeros(0, 11))
        >>> batch.nodes.shape, batch.edges.shape
        (torch.Size([0, 0, 11]), torch.Size([0, 0, 0, 5]))
    """
    sizes = molecules.sizes
    b, n = len(molecules), int(sizes.max()) if len(sizes) else 0
    owner = torch.arange(b).repeat_interleave(sizes)
    # Which molecule each atom is of, and which of its atoms it is: all molecules are laid out at once, without a loop.
    place = torch.arange(len(owner)) - molecules.atoms[:-1].repeat_interleave(sizes)
    elements = molecules.elements.long()
    nodes = torch.zeros(b, n, NODE_FEATURES)
    nodes[owner, place, elements] = 1.0
    nodes[owner, place, len(ELEMENTS)] = torch.tensor(_ATOMIC_NUMBERS)[elements]
    at = torch.zeros(b, n, 3)
    at[owner, place] = molecules.positions
    edges = torch.zeros(b, n, n, EDGE_FEATURES)
    bond_owner = torch.arange(b).repeat_interleave(molecules.bonds.diff())
    one, other = molecules.bonded.long().unbind(1)
    kind = molecules.orders.long() - 1
    # Each bond stands in the data once and is an edge both ways.
    edges[bond_owner, one, other, kind] = 1.0
    edges[bond_owner, other, one, kind] = 1.0
    is_hydrogen = nodes[..., 0]
    bonded = edges[..., : EDGE_FEATURES - 1].sum(-1)
    nodes[..., NODE_FEATURES - 1] = (bonded * is_hydrogen[:, None, :]).sum(-1)
    mask = torch.arange(n) < sizes[:, None]
    distance = (at[:, :, None] - at[:, None]).norm(dim=-1)
    # Between padding and atoms there is a distance, too, to the origin.
    edges[..., -1] = distance * (mask[:, :, None] & mask[:, None])
    return MoleculeBatch(nodes, edges, sizes, targets.to(torch.float32))
