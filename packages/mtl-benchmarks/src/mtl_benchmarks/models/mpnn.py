"""The message-passing network for QM9, without a graph library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.models.edge_convolution import EdgeConvolution
from mtl_benchmarks.models.grouped_molecules import GroupedMolecules
from mtl_benchmarks.models.set_to_set import SetToSet
from mtl_core.checks import positive_int

__all__ = ["MPNN", "QM9_TARGETS"]

QM9_TARGETS = ("mu", "alpha", "homo", "lumo", "r2", "zpve", "u0", "u", "h", "g", "cv")


class MPNN(TaskModel):
    """Three rounds of messages through one gated unit, a set-to-set reading, and a linear output per property.

    The function of the papers' network, with its parameters under its names: ``state_dict`` fits
    :class:`~mtl_benchmarks.models.GraphMPNN`, which is built of torch-geometric's layers. Complete graphs only.

    Args:
        tasks: the properties' names.
        width: features per atom, 64 in the papers.
        hidden: units of the edge network, 128 in the papers.
        node_features: numbers per atom.
        edge_features: numbers per pair of atoms.
        rounds: rounds of messages.
        readings: steps of the set-to-set reading.

    References:
        Gilmer et al., *Neural Message Passing for Quantum Chemistry*, ICML 2017; released network of Navon et al.,
        *Multi-Task Learning as a Bargaining Game*, ICML 2022.

    Example:
        >>> from mtl_benchmarks.models.grouped_molecules import MoleculeGroup
        >>> model = MPNN(("homo", "lumo"), width=4, hidden=8)
        >>> batch = GroupedMolecules.of([MoleculeGroup(torch.ones(2, 3, 11), torch.ones(2, 3, 3, 5))])
        >>> {task: tuple(value.shape) for task, value in model(batch).items()}
        {'homo': (2,), 'lumo': (2,)}
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
        self.rounds = positive_int("rounds", rounds)
        self.lin0 = nn.Linear(positive_int("node_features", node_features), positive_int("width", width))
        self.conv = EdgeConvolution(width, width, edge_features=edge_features, hidden=hidden)
        self.gru = nn.GRU(width, width)
        self.set2set = SetToSet(width, steps=readings)
        self.lin1 = nn.Linear(2 * width, width)
        self.heads = nn.ModuleDict({task: nn.Linear(width, 1) for task in self.tasks})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The property's linear output."""
        return (self.heads[task],)

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The last shared layer, 8,256 parameters in the papers' network."""
        return list(self.lin1.parameters())

    def features(self, batch: GroupedMolecules) -> Tensor:
        """What all heads read, ``[B, width]``, in the order of the batch."""
        x = torch.cat([group.nodes.flatten(0, 1) for group in batch.groups])
        out = self.lin0(x).relu()
        state = out.unsqueeze(0)
        prepared = self.conv.prepare(batch.groups)
        for _ in range(self.rounds):
            message = self.conv(out, prepared).relu()
            step, state = self.gru(message.unsqueeze(0), state)
            out = step.squeeze(0)
        places, absent = batch.padding
        read = self.set2set(out[places], absent)
        found: Tensor = self.lin1(read[batch.order.argsort()]).relu()
        return found

    def forward(self, batch: GroupedMolecules) -> dict[str, Tensor]:
        """One value per property and molecule, each ``[B]``."""
        features = self.features(batch)
        return {task: self.heads[task](features)[:, 0] for task in self.tasks}
