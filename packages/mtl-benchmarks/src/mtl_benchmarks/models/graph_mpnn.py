"""The message-passing network for QM9, built of torch-geometric's layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.models.grouped_molecules import Graphs
from mtl_benchmarks.models.mpnn import QM9_TARGETS
from mtl_core.checks import positive_int
from mtl_core.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["GraphMPNN"]


class GraphMPNN(TaskModel):
    """The papers' network as they compute it: one matrix per edge, on any graph.

    For complete graphs :class:`~mtl_benchmarks.models.MPNN` is the same function of the same parameters, much faster
    and in a small part of the memory; ``state_dict`` fits both.

    Args:
        tasks: the properties' names.
        width: features per atom, 64 in the papers.
        hidden: units of the edge network, 128 in the papers.
        node_features: numbers per atom.
        edge_features: numbers per edge.
        rounds: rounds of messages.
        readings: steps of the set-to-set reading.

    Raises:
        MissingExtraError: torch-geometric is not installed.
    """

    def __init__(
        self,
        tasks: Iterable[str] = QM9_TARGETS,
        *,
        width: int = 64,
        hidden: int = 128,
        node_features: int = 11,
        edge_features: int = 5,
        rounds: int = 3,
        readings: int = 3,
    ) -> None:
        super().__init__(tasks)
        layers = _torch_geometric()
        self.rounds = positive_int("rounds", rounds)
        self.lin0 = nn.Linear(positive_int("node_features", node_features), positive_int("width", width))
        edge_network = nn.Sequential(
            nn.Linear(positive_int("edge_features", edge_features), positive_int("hidden", hidden)),
            nn.ReLU(),
            nn.Linear(hidden, width * width),
        )
        self.conv = layers.NNConv(width, width, edge_network, aggr="mean")
        self.gru = nn.GRU(width, width)
        self.set2set = layers.Set2Set(width, processing_steps=positive_int("readings", readings))
        self.lin1 = nn.Linear(2 * width, width)
        self.heads = nn.ModuleDict({task: nn.Linear(width, 1) for task in self.tasks})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The property's linear output."""
        return (self.heads[task],)

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The last shared layer, 8,256 parameters in the papers' network."""
        return list(self.lin1.parameters())

    def features(self, graphs: Graphs) -> Tensor:
        """What all heads read, ``[B, width]``."""
        out = self.lin0(graphs.x).relu()
        state = out.unsqueeze(0)
        for _ in range(self.rounds):
            message = self.conv(out, graphs.edge_index, graphs.edge_attr).relu()
            step, state = self.gru(message.unsqueeze(0), state)
            out = step.squeeze(0)
        found: Tensor = self.lin1(self.set2set(out, graphs.batch)).relu()
        return found

    def forward(self, graphs: Graphs) -> dict[str, Tensor]:
        """One value per property and graph, each ``[B]``; a batch of torch-geometric will do as well."""
        features = self.features(graphs)
        return {task: self.heads[task](features)[:, 0] for task in self.tasks}


def _torch_geometric() -> ModuleType:
    try:
        import torch_geometric.nn
    except ImportError:
        raise MissingExtraError("the network of torch-geometric", "mtl-benchmarks[graph]") from None
    layers: ModuleType = torch_geometric.nn
    return layers
