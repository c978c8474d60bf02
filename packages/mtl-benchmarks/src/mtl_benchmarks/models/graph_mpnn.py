"""The message-passing network for QM9, built of torch-geometric's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mtl_benchmarks.models.grouped_molecules import Graphs
from mtl_benchmarks.models.message_passing import MessagePassing
from mtl_core import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["GraphMPNN"]


class GraphMPNN(MessagePassing):
    """The papers' network as they compute it: one matrix per edge, on any graph.

    For complete graphs :class:`~mtl_benchmarks.models.MPNN` is the same function of the same parameters, much faster
    and in a small part of the memory; ``state_dict`` fits both.

    Args:
        tasks: the properties' names.
        width: features per atom, 64 in the papers.
        hidden: units of the edge network, 128 in the papers.
        node_features: numbers per atom.
        edge_features: numbers per pair of atoms.
        rounds: rounds of messages.
        readings: steps of the set-to-set reading.

    Raises:
        MissingExtraError: torch-geometric is not installed.
    """

    def convolution(self, width: int, edge_features: int, hidden: int) -> nn.Module:
        """Messages through one matrix per edge."""
        matrices = nn.Sequential(nn.Linear(edge_features, hidden), nn.ReLU(), nn.Linear(hidden, width * width))
        layer: nn.Module = _torch_geometric().NNConv(width, width, matrices, aggr="mean")
        return layer

    def reading(self, width: int, readings: int) -> nn.Module:
        """Set to set over all nodes with the number of their graph."""
        layer: nn.Module = _torch_geometric().Set2Set(width, processing_steps=readings)
        return layer

    def features(self, batch: Graphs) -> Tensor:
        """What all heads read, ``[B, width]``; a batch of torch-geometric will do as well."""
        out = self.passed(batch.x, lambda nodes: self.conv(nodes, batch.edge_index, batch.edge_attr))
        found: Tensor = self.lin1(self.set2set(out, batch.batch)).relu()
        return found


def _torch_geometric() -> ModuleType:
    try:
        import torch_geometric.nn
    except ImportError:
        raise MissingExtraError("the network of torch-geometric", "mtl-benchmarks[graph]") from None
    layers: ModuleType = torch_geometric.nn
    return layers
