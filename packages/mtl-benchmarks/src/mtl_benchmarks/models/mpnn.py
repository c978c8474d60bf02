"""The message-passing network for QM9, without a graph library."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.edge_convolution import EdgeConvolution
from mtl_benchmarks.models.grouped_molecules import GroupedMolecules
from mtl_benchmarks.models.message_passing import MessagePassing
from mtl_benchmarks.models.set_to_set import SetToSet

__all__ = ["MPNN"]


class MPNN(MessagePassing):
    """Three rounds of messages through one gated unit, a set-to-set reading, and a linear output per property.

    The function of the papers' network, with its parameters under its names: ``state_dict`` fits
    :class:`~mtl_benchmarks.models.GraphMPNN`, which is built of torch-geometric's layers. Made for complete graphs;
    where edges are missing (``GroupedMolecules.within``) it costs as much.

    Args:
        tasks: the properties' names.
        width: features per atom, 64 in the papers.
        hidden: units of the edge network, 128 in the papers.
        node_features: numbers per atom.
        edge_features: numbers per pair of atoms.
        rounds: rounds of messages.
        readings: steps of the set-to-set reading.

    Example:
        >>> from mtl_benchmarks.models.grouped_molecules import MoleculeGroup
        >>> model = MPNN(("homo", "lumo"), width=4, hidden=8)
        >>> batch = GroupedMolecules.of([MoleculeGroup(torch.ones(2, 3, 11), torch.ones(2, 3, 3, 5))])
        >>> {task: tuple(value.shape) for task, value in model(batch).items()}
        {'homo': (2,), 'lumo': (2,)}
    """

    def convolution(self, width: int, edge_features: int, hidden: int) -> nn.Module:
        """Messages without a matrix per edge."""
        return EdgeConvolution(width, width, edge_features=edge_features, hidden=hidden)

    def reading(self, width: int, readings: int) -> nn.Module:
        """Set to set over padded molecules."""
        return SetToSet(width, steps=readings)

    def features(self, batch: GroupedMolecules) -> Tensor:
        """What all heads read, ``[B, width]``, in the order of the batch."""
        assert isinstance(self.conv, EdgeConvolution)
        conv, prepared = self.conv, self.conv.prepare(batch.groups)
        x = torch.cat([group.nodes.flatten(0, 1) for group in batch.groups])
        out = self.passed(x, lambda nodes: conv(nodes, prepared))
        # The set-to-set reading alone is padded: one recurrent step for all molecules instead of one per group.
        places, absent = batch.padding
        read = self.set2set(out[places], absent)
        # From the order of the groups back to that of the batch.
        found: Tensor = self.lin1(read[batch.order.argsort()]).relu()
        return found
