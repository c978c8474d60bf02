"""The nine-layer convolutional network for CelebA."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_core.checks import positive_int

__all__ = ["CNN9"]


class CNN9(TaskModel):
    """Seven convolutions and two linear layers, all normalised, and one linear output per binary task.

    Args:
        tasks: the attributes' names.
        width: channels of the first convolution, 64 in the papers; the later ones have 2, 4 and 8 times as many.

    Note:
        The released network ends in sigmoids and its loss takes logarithms of them; here the outputs are logits, for
        ``binary_cross_entropy_with_logits``. Both are the same function as long as no logarithm is below −100, where
        torch cuts off the loss of probabilities. At threshold 0.5 a logit above zero is a yes.

    References:
        Liu et al., *FAMO: Fast Adaptive Multitask Optimization*, NeurIPS 2023, released network.

    Example:
        >>> import torch
        >>> model = CNN9(("smiling", "young"), width=2)
        >>> {task: tuple(logit.shape) for task, logit in model(torch.zeros(4, 3, 64, 64)).items()}
        {'smiling': (4,), 'young': (4,)}
    """

    def __init__(self, tasks: Iterable[str], *, width: int = 64) -> None:
        super().__init__(tasks)
        w = positive_int("width", width)
        features = 8 * w
        self.trunk = nn.Sequential(
            *_convolution(3, w),
            nn.MaxPool2d(2),
            *_convolution(w, 2 * w),
            *_convolution(2 * w, 2 * w),
            nn.MaxPool2d(2),
            *_convolution(2 * w, 4 * w),
            *_convolution(4 * w, 4 * w),
            nn.MaxPool2d(2),
            *_convolution(4 * w, features),
            *_convolution(features, features),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            *_linear(features),
            *_linear(features),
        )
        self.heads = nn.ModuleDict({task: nn.Linear(features, 1) for task in self.tasks})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's linear output."""
        return (self.heads[task],)

    def features(self, images: Tensor) -> Tensor:
        """What all heads read, ``[b, 8 · width]``, from ``images [b, 3, h, w]``."""
        found: Tensor = self.trunk(images)
        return found

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """One logit per task and image, each ``[b]``."""
        features = self.features(images)
        return {task: self.heads[task](features)[:, 0] for task in self.tasks}


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # Without biases: the batch normalisation behind it takes off the mean, and with it any constant.
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _linear(width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)
