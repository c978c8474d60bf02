"""The small convolutional network for overlaid digits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_core.checks import positive_int

__all__ = ["OverlayCNN"]


class OverlayCNN(TaskModel):
    """Two convolutions and a linear layer as the trunk, two linear classifiers and a decoder as heads.

    No normalisation layers: a loss is a function of the parameters and the batch alone.

    Args:
        canvas: side of the square input in pixels; at least 8.
        width: channels of the first convolution; the second has twice as many, and the features are eight times as
            many.
        n_classes: classes of each classifier.

    Example:
        >>> import torch
        >>> model = OverlayCNN(canvas=12, width=2)
        >>> features = model.trunk(torch.zeros(3, 1, 12, 12))
        >>> features.shape, model.left(features).shape, model.decoder(features).shape
        (torch.Size([3, 16]), torch.Size([3, 10]), torch.Size([3, 144]))
    """

    def __init__(self, *, canvas: int = 12, width: int = 8, n_classes: int = 10) -> None:
        super().__init__(("left", "right", "image"))
        positive_int("canvas", canvas)
        positive_int("width", width)
        pooled = canvas // 2 // 2
        n_features = 8 * width
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * pooled * pooled, n_features),
            nn.ReLU(),
        )
        self.left = nn.Linear(n_features, n_classes)
        self.right = nn.Linear(n_features, n_classes)
        self.decoder = nn.Linear(n_features, canvas * canvas)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's classifier, or the decoder."""
        return (self.decoder if task == "image" else self.get_submodule(task),)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """All three outputs for images [b, 1, canvas, canvas]."""
        features = self.trunk(images)
        return {"left": self.left(features), "right": self.right(features), "image": self.decoder(features)}
