"""What both networks for molecules are: rounds of messages through one gated unit, a reading, linear outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_core.checks import positive_int

__all__ = ["QM9_TARGETS", "MessagePassing"]

QM9_TARGETS = ("mu", "alpha", "homo", "lumo", "r2", "zpve", "u0", "u", "h", "g", "cv")


class MessagePassing(TaskModel):
    """The papers' network for QM9 but for two layers, which each network makes in its own way.

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
        self.conv = self.convolution(
            width, positive_int("edge_features", edge_features), positive_int("hidden", hidden)
        )
        self.gru = nn.GRU(width, width)
        self.set2set = self.reading(width, positive_int("readings", readings))
        self.lin1 = nn.Linear(2 * width, width)
        self.heads = nn.ModuleDict({task: nn.Linear(width, 1) for task in self.tasks})

    @abstractmethod
    def convolution(self, width: int, edge_features: int, hidden: int) -> nn.Module:
        """The layer that makes messages."""

    @abstractmethod
    def reading(self, width: int, readings: int) -> nn.Module:
        """The layer that makes one vector of a molecule's atoms."""

    @abstractmethod
    def features(self, batch: Any) -> Tensor:
        """What all heads read, ``[B, width]``, in the order of the batch."""

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The property's linear output."""
        return (self.heads[task],)

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The last shared layer, 8,256 parameters in the papers' network."""
        return list(self.lin1.parameters())

    def passed(self, x: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        """The atoms' features ``[N, width]`` after all rounds, from those they begin with."""
        out: Tensor = self.lin0(x).relu()
        state = out.unsqueeze(0)
        for _ in range(self.rounds):
            message = convolve(out).relu()
            # A sequence of length 1 with all atoms as its batch: one gated unit, called once per round.
            step, state = self.gru(message.unsqueeze(0), state)
            out = step.squeeze(0)
        return out

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """One value per property and molecule, each ``[B]``."""
        features = self.features(batch)
        return {task: self.heads[task](features)[:, 0] for task in self.tasks}
