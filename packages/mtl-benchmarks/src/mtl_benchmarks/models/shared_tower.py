"""The network for sparse categorical features: embeddings, a shared perceptron, one output per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_core.checks import positive_int

__all__ = ["SharedTower"]


class SharedTower(TaskModel):
    """One embedding table per field, two shared layers, and a linear output per head.

    Args:
        cardinalities: how many values each field has.
        heads: names of the outputs.
        embedding: width of each embedding.
        width: units of the shared layers.

    Example:
        >>> model = SharedTower({"user": 10, "ad": 5}, heads=("click",), embedding=2, width=4)
        >>> features = model.trunk(torch.tensor([[3, 1], [9, 4]]))
        >>> features.shape, model.heads["click"](features).shape
        (torch.Size([2, 4]), torch.Size([2, 1]))
    """

    def __init__(
        self, cardinalities: Mapping[str, int], *, heads: Sequence[str], embedding: int = 8, width: int = 64
    ) -> None:
        super().__init__(heads)
        positive_int("embedding", embedding)
        positive_int("width", width)
        self.trunk = nn.Sequential(
            _Embeddings(cardinalities, embedding),
            nn.Linear(len(cardinalities) * embedding, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in heads})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The output of that name."""
        return (self.heads[task],)

    def forward(self, fields: Tensor) -> dict[str, Tensor]:
        """Logits ``[b]`` per head for fields ``[b, n_fields]``."""
        features = self.trunk(fields)
        return {name: head(features)[:, 0] for name, head in self.heads.items()}


class _Embeddings(nn.Module):
    """The fields' embeddings beside each other."""

    def __init__(self, cardinalities: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(count, width) for name, count in cardinalities.items()})
        for table in self.tables.values():
            nn.init.normal_(table.get_parameter("weight"), std=0.1)

    def forward(self, fields: Tensor) -> Tensor:
        return torch.cat([table(fields[:, k]) for k, table in enumerate(self.tables.values())], dim=1)
