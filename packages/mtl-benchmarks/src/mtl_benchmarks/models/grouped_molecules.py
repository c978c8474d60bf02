"""Batches of molecules as complete graphs, or parts of them, grouped by size so that nothing is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mtl_core import InvalidInputError

__all__ = ["Graphs", "GroupedMolecules", "MoleculeGroup"]


class Graphs(NamedTuple):
    """Graphs as torch-geometric lays them out, under its names.

    Attributes:
        x: [N, f], features of all nodes.
        edge_index: [2, E] int64, source and target of each edge.
        edge_attr: [E, c], features of the edges.
        batch: [N] int64, which graph each node belongs to, ascending.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor


@dataclass(frozen=True)
class MoleculeGroup:
    """Molecules with equally many atoms.

    Args:
        nodes: [b, n, f], features of the atoms.
        edges: [b, n, n, c], ``edges[:, i, j]`` those of the edge to atom i from atom j; what is on the diagonal does
            not count.
        links: [b, n, n] bool, which of the edges there are, none of them on the diagonal; None: all.

    Raises:
        InvalidInputError: the shapes do not belong together.
    """

    nodes: Tensor
    edges: Tensor
    links: Tensor | None = None

    def __post_init__(self) -> None:
        nodes, edges = tuple(self.nodes.shape), tuple(self.edges.shape)
        if self.links is not None and tuple(self.links.shape) != edges[:3]:
            raise InvalidInputError(f"`links` must be [b, n, n], got {tuple(self.links.shape)} for {edges} edges.")
        if len(nodes) != 3 or len(edges) != 4 or edges[:3] != (nodes[0], nodes[1], nodes[1]) or not nodes[1]:
            raise InvalidInputError(f"`nodes` and `edges` must be [b, n, f] and [b, n, n, c], got {nodes} and {edges}.")


@dataclass(frozen=True)
class GroupedMolecules:
    """Molecules in which every atom is linked to every other one, or to some.

    Args:
        groups: the molecules, one group per size.
        order: [B] int64, the place in the batch of each molecule in the order of the groups.

    Raises:
        InvalidInputError: there is no molecule, or ``order`` does not hold each place once.

    Example:
        >>> pair = MoleculeGroup(torch.ones(1, 2, 11), torch.zeros(1, 2, 2, 5))
        >>> triples = MoleculeGroup(torch.ones(2, 3, 11), torch.zeros(2, 3, 3, 5))
        >>> batch = GroupedMolecules.of([pair, triples])
        >>> len(batch), batch.sizes, batch.to_graphs().edge_index.shape
        (3, (2, 3, 3), torch.Size([2, 14]))
    """

    groups: tuple[MoleculeGroup, ...]
    order: Tensor

    def __post_init__(self) -> None:
        n = sum(len(group.nodes) for group in self.groups)
        # The numbers are looked at on the host only: on a device that would wait for it at every transfer.
        on_host = self.order.device.type == "cpu"
        if not n or tuple(self.order.shape) != (n,) or (on_host and sorted(self.order.tolist()) != list(range(n))):
            raise InvalidInputError(
                f"`order` must hold each of 0 to {n - 1} once for {n} molecules, got shape {tuple(self.order.shape)}."
            )

    @classmethod
    def of(cls, groups: Sequence[MoleculeGroup]) -> GroupedMolecules:
        """A batch in the order of its groups."""
        n = sum(len(group.nodes) for group in groups)
        device = groups[0].nodes.device if groups else None
        return cls(tuple(groups), torch.arange(n, device=device))

    def __len__(self) -> int:
        return len(self.order)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many atoms each molecule has, in the order of the groups."""
        return tuple(group.nodes.shape[1] for group in self.groups for _ in range(len(group.nodes)))

    @cached_property
    def padding(self) -> tuple[Tensor, Tensor]:
        """Where each molecule's atoms are among all, [B, n_max], and which of these are none, [B, n_max, 1] bool."""
        sizes = torch.tensor(self.sizes, device=self.order.device)
        first = sizes.cumsum(0) - sizes
        place = torch.arange(max(self.sizes), device=self.order.device)
        absent = place >= sizes[:, None]
        # Any valid row stands for the padding: what is read there is masked out.
        return (first[:, None] + place).masked_fill(absent, 0), absent[..., None]

    def to(self, device: str | torch.device) -> GroupedMolecules:
        """The same batch on another device."""
        groups = tuple(
            MoleculeGroup(
                group.nodes.to(device), group.edges.to(device), None if group.links is None else group.links.to(device)
            )
            for group in self.groups
        )
        return GroupedMolecules(groups, self.order.to(device))

    def within(self, cutoff: float) -> GroupedMolecules:
        """The same molecules, atoms linked up to a distance only.

        Args:
            cutoff: the last feature of an edge, its distance, is at most this.

        Example:
            >>> edges = torch.tensor([0.0, 1.0, 3.0, 1.0, 0.0, 1.0, 3.0, 1.0, 0.0]).reshape(1, 3, 3, 1)
            >>> chain = GroupedMolecules.of([MoleculeGroup(torch.ones(1, 3, 11), edges)])
            >>> chain.to_graphs().edge_index.shape[1], chain.within(2.0).to_graphs().edge_index.shape[1]
            (6, 4)
        """
        groups = []
        for group in self.groups:
            other = ~torch.eye(group.nodes.shape[1], dtype=torch.bool, device=group.nodes.device)
            groups.append(MoleculeGroup(group.nodes, group.edges, (group.edges[..., -1] <= cutoff) & other))
        return GroupedMolecules(tuple(groups), self.order)

    def to_graphs(self) -> Graphs:
        """The same molecules edge by edge, in the batch's own order."""
        molecules = [
            triple for group in self.groups for triple in zip(group.nodes, group.edges, _links_of(group), strict=True)
        ]
        placed = [molecules[k] for k in self.order.argsort().tolist()]
        x = torch.cat([nodes for nodes, _, _ in placed])
        index, attr, first = [], [], 0
        for nodes, edges, links in placed:
            n = len(nodes)
            # By source and then target, as torch-geometric lists the edges of a complete graph.
            source, target = links.T.nonzero().T
            index.append(torch.stack([source, target]) + first)
            attr.append(edges[target, source])
            first += n
        graph = torch.repeat_interleave(
            torch.arange(len(placed), device=x.device),
            torch.tensor([len(nodes) for nodes, _, _ in placed], device=x.device),
        )
        return Graphs(x, torch.cat(index, dim=1), torch.cat(attr), graph)

    @classmethod
    def from_padded(cls, nodes: Tensor, edges: Tensor, sizes: Tensor) -> GroupedMolecules:
        """Group molecules that are padded to one size, as those of ``mtl_benchmarks.molecules`` are.

        Args:
            nodes: [B, n, f], features of the atoms, anything beyond a molecule's size.
            edges: [B, n, n, c], ``edges[:, i, j]`` those of the edge to atom i from atom j.
            sizes: [B] int64, how many atoms each molecule has, 1 to n.

        Raises:
            InvalidInputError: the shapes do not belong together, or a size is out of range.

        Example:
            >>> padded = torch.zeros(3, 4, 11), torch.zeros(3, 4, 4, 5)
            >>> GroupedMolecules.from_padded(*padded, torch.tensor([4, 2, 4])).sizes
            (2, 4, 4)
        """
        MoleculeGroup(nodes, edges)
        if tuple(sizes.shape) != (len(nodes),) or not bool(((sizes >= 1) & (sizes <= nodes.shape[1])).all()):
            raise InvalidInputError(
                f"`sizes` must hold one number of atoms from 1 to {nodes.shape[1]} for each of {len(nodes)} molecules, "
                f"got {sizes.tolist() if sizes.numel() < 20 else tuple(sizes.shape)}."
            )
        groups, order = [], []
        for n in sizes.unique().tolist():
            which = (sizes == n).nonzero()[:, 0]
            groups.append(MoleculeGroup(nodes[which, :n], edges[which, :n, :n]))
            order.append(which)
        return cls(tuple(groups), torch.cat(order))

    @classmethod
    def from_graphs(cls, graphs: Graphs) -> GroupedMolecules:
        """Group graphs that are given edge by edge.

        Args:
            graphs: complete directed graphs without self loops; also a batch of torch-geometric, which has the same
                attributes.

        Raises:
            InvalidInputError: an edge between two atoms of a molecule is missing, there twice, or joins two molecules
                or an atom to itself.
        """
        x, batch = graphs.x, graphs.batch
        source, target = graphs.edge_index
        sizes = torch.bincount(batch)
        if bool((batch.diff() < 0).any()) or bool((sizes == 0).any()):
            raise InvalidInputError("`batch` must number the graphs 0, 1, 2, … in ascending order, got another order.")
        n = sizes[batch[target]]
        first = (sizes.cumsum(0) - sizes)[batch]
        row, column = target - first[target], source - first[source]
        inside = batch[source] == batch[target]
        # Of each molecule's n × n table, the place of every edge; all of them, but for the diagonal, must be met once.
        table = sizes.square().cumsum(0) - sizes.square()
        place = table[batch[target]] + row * n + column
        met = torch.bincount(place[inside], minlength=int(sizes.square().sum()))
        wanted = torch.ones_like(met)
        # The diagonal of an n × n table has every (n + 1)-th place.
        wanted[table[batch] + (torch.arange(len(x), device=x.device) - first) * (sizes[batch] + 1)] = 0
        if not bool(inside.all()) or not torch.equal(met, wanted):
            raise InvalidInputError(
                f"`edge_index` must link every atom with every other one of its molecule once and none with itself: "
                f"{int(wanted.sum())} edges, got {source.numel()} edges that are not those. Complete the graphs first, "
                "or use the network of torch-geometric."
            )
        tables = graphs.edge_attr.new_zeros(len(met), graphs.edge_attr.shape[1]).index_put((place,), graphs.edge_attr)
        groups, order = [], []
        starts = sizes.cumsum(0) - sizes
        for size in sizes.unique().tolist():
            which = (sizes == size).nonzero()[:, 0]
            nodes = x[(starts[which, None] + torch.arange(size, device=x.device))]
            edges = tables[(table[which, None] + torch.arange(size * size, device=x.device))]
            groups.append(MoleculeGroup(nodes, edges.unflatten(1, (size, size))))
            order.append(which)
        return cls(tuple(groups), torch.cat(order))


def _links_of(group: MoleculeGroup) -> Tensor:
    """Which edges there are, [b, n, n] bool."""
    b, n = group.nodes.shape[:2]
    every = ~torch.eye(n, dtype=torch.bool, device=group.nodes.device)
    return every.expand(b, n, n) if group.links is None else group.links
