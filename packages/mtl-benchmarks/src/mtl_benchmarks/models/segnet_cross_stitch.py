"""One SegNet per task, stitched together between the stages, as in the papers' NYUv2 and CityScapes tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.models.segnet import NYUV2_OUTPUTS, DenseOutput, block, check_images, filters, head, initialise

__all__ = ["SegNetCrossStitch"]


class SegNetCrossStitch(TaskModel):
    r"""SegNets beside each other, whose tasks all go on with the same weighted sum after every stage.

    With :math:`x_t` what task :math:`t` has after a stage, every task's next stage reads

    .. math:: \textstyle\sum_t w_t x_t

    with one :math:`w` per stage boundary, 1 at the start: four in the encoder, five in the decoder. Each task puts
    values back where its own maxima were. Everything but the heads reaches every task and is shared.

    Args:
        outputs: what each task predicts.
        width: factor on the channels; 1 is the papers' network, 1/4 trains on a CPU.

    Note:
        This is the released network, not that of the cross-stitch paper, whose tasks each have a weighted sum of their
        own; for that one see :class:`~mtl_benchmarks.models.CrossStitch`. The released network also holds one
        uncertainty per task, which only their uncertainty weighting reads: 74,941,807 parameters on NYUv2 for
        74,941,804 here.

    References:
        Misra et al., *Cross-stitch Networks for Multi-task Learning*, CVPR 2016; the released network of Liu et al.,
        *End-to-End Multi-Task Learning with Attention*, CVPR 2019.

    Example:
        >>> model = SegNetCrossStitch(width=1 / 16)
        >>> {task: tuple(value.shape) for task, value in model(torch.zeros(2, 3, 32, 64)).items()}
        {'semantic': (2, 13, 32, 64), 'depth': (2, 1, 32, 64), 'normal': (2, 3, 32, 64)}
    """

    def __init__(self, outputs: Mapping[str, DenseOutput] = NYUV2_OUTPUTS, *, width: float = 1.0) -> None:
        super().__init__(outputs)
        self.outputs = dict(outputs)
        f = filters(width)
        pairs_in = list(zip([3, *f[:-1]], f, strict=True))
        pairs_out = list(zip(f, [f[0], *f[:-1]], strict=True))
        self.encoder_block = nn.ModuleDict({task: _stages(pairs_in) for task in self.tasks})
        self.decoder_block = nn.ModuleDict({task: _stages(pairs_out) for task in self.tasks})
        self.encoder_stitch = nn.Parameter(torch.ones(len(f) - 1, len(self.tasks)))
        self.decoder_stitch = nn.Parameter(torch.ones(len(f), len(self.tasks)))
        self.pred = nn.ModuleDict({task: head(f[0], output.channels) for task, output in self.outputs.items()})
        initialise(self, distribution="uniform")

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's head."""
        return (self.pred[task],)

    def features(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What each task's head reads, ``[b, 64 · width, h, w]``.

        Where some tasks are named, the other networks are left out of the sums as if they were not there.
        """
        check_images(images)
        chosen = self.tasks if tasks is None else tuple(tasks)
        values = dict.fromkeys(chosen, images)
        places: dict[str, list[Tensor]] = {task: [] for task in chosen}
        encoders = {task: list(self.encoder_block[task].children()) for task in chosen}
        decoders = {task: list(self.decoder_block[task].children()) for task in chosen}
        n_stages = len(self.decoder_stitch)
        for s in range(n_stages):
            if s:
                values = self._stitched(values, self.encoder_stitch[s - 1])
            for task in chosen:
                pooled, index = functional.max_pool2d(encoders[task][s](values[task]), 2, return_indices=True)
                places[task].append(index)
                values[task] = pooled
        for d in range(n_stages):
            values = self._stitched(values, self.decoder_stitch[d])
            for task in chosen:
                unpooled = functional.max_unpool2d(values[task], places[task].pop(), (2, 2))
                values[task] = decoders[task][n_stages - 1 - d](unpooled)
        return values

    def _stitched(self, values: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        # All tasks go on with the same sum, so that it is made once. Nothing changes it in place: every stage begins
        # with a convolution or an unpooling.
        parts = [w * values[task] for w, task in zip(weights, self.tasks, strict=True) if task in values]
        return dict.fromkeys(values, torch.stack(parts).sum(0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """One prediction ``[b, channels, h, w]`` per task."""
        return {task: self.predict(task, features) for task, features in self.features(images).items()}

    def predict(self, task: str, representation: Tensor) -> Tensor:
        """A task's prediction ``[b, channels, h, w]`` from what its head reads."""
        return self.outputs[task].activate(self.pred[task](representation))


def _stages(pairs: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """Two blocks at each of the two finest stages, three at the others; the first block changes the width."""
    return nn.ModuleList(
        nn.Sequential(block(a, b), *(block(b, b) for _ in range(1 if s < 2 else 2))) for s, (a, b) in enumerate(pairs)
    )
