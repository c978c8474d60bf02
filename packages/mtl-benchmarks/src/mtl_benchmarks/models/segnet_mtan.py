"""SegNet with an attention network per task (MTAN), as in the papers' NYUv2 and CityScapes tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.models.segnet import NYUV2_OUTPUTS, Decoded, DenseOutput, Encoded, SegNet, block, initialise
from mtl_core.checks import one_of

__all__ = ["SegNetMTAN"]


def attention(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A mask in (0, 1) per channel and pixel, by two convolutions of 1 × 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, outputs, 1),
        nn.BatchNorm2d(outputs),
        nn.Sigmoid(),
    )


class SegNetMTAN(SegNet):
    r"""A SegNet from which each task takes what it attends to, at every stage.

    With :math:`u_s, v_s` what encoder stage :math:`s` has after its first and second part, :math:`U_s, D_s` the
    unpooled input and the output of decoder stage :math:`s`, ``[ ]`` for concatenation, :math:`A` attention networks of
    the task and :math:`E, B` blocks that all tasks share, task by task

    .. math::
        e_s = \mathrm{pool}\, E_s\big(A_s([u_s, e_{s-1}]) \odot v_s\big), \qquad
        o_s = A'_s\big([U_s, B_s(\mathrm{up}\; o_{s+1})]\big) \odot D_s, \qquad o_5 := e_4,

    with bilinear enlargement that keeps the corners (``align_corners``). The head reads :math:`o_0`. With one task it
    is the single-task network with attention (STAN).

    Args:
        outputs: what each task predicts.
        width: factor on the channels; 1 is the papers' network, 1/4 trains on a CPU.
        attention: which set the attention networks are declared in. ``"shared"`` as in the code of Nash-MTL, FAMO,
            FairGrad and COST, which calls shared whatever is not a head; ``"task"`` as in that of CAGrad and IMGrad,
            where gradients of different tasks do not meet in them.

    Note:
        The released network of CAGrad and IMGrad also holds one uncertainty per task, which only their uncertainty
        weighting reads: 44,229,076 parameters for 44,229,073 here. A weighting keeps its own parameters here.

    References:
        Liu et al., *End-to-End Multi-Task Learning with Attention*, CVPR 2019, section 3.2 and its released network.

    Example:
        >>> model = SegNetMTAN(width=1 / 16, attention="task")
        >>> {task: tuple(value.shape) for task, value in model(torch.zeros(2, 3, 32, 64)).items()}
        {'semantic': (2, 13, 32, 64), 'depth': (2, 1, 32, 64), 'normal': (2, 3, 32, 64)}
    """

    def __init__(
        self,
        outputs: Mapping[str, DenseOutput] = NYUV2_OUTPUTS,
        *,
        width: float = 1.0,
        attention: Literal["shared", "task"] = "shared",
    ) -> None:
        super().__init__(outputs, width=width)
        self.attention = one_of("attention", attention, ("shared", "task"))
        f = self.filters
        previous = [f[0], *f[:-1]]
        self.encoder_att = nn.ModuleDict({task: self._encoder_attention() for task in self.tasks})
        self.decoder_att = nn.ModuleDict({task: self._decoder_attention() for task in self.tasks})
        # What a task has attended to at one stage, made as wide as the next stage.
        self.encoder_block_att = nn.ModuleList(block(a, b) for a, b in zip(f, [*f[1:], f[-1]], strict=True))
        self.decoder_block_att = nn.ModuleList(block(a, b) for a, b in zip(f, previous, strict=True))
        initialise(self)

    def _encoder_attention(self) -> nn.ModuleList:
        # The first stage reads the shared features alone; the later ones read beside them, with as many channels, what
        # the task has attended to before.
        return nn.ModuleList(attention(c if s == 0 else 2 * c, c, c) for s, c in enumerate(self.filters))

    def _decoder_attention(self) -> nn.ModuleList:
        f = self.filters
        return nn.ModuleList(attention(c + below, below, below) for c, below in zip(f, [f[0], *f[:-1]], strict=True))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's head, and its attention networks where these are declared as its own."""
        own = (self.encoder_att[task], self.decoder_att[task]) if self.attention == "task" else ()
        return (*own, self.pred[task])

    def features(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What each task's head reads, ``[b, 64 · width, h, w]``; of some tasks alone where they are named.

        They may be given to ``Problem`` as features where attention is declared shared; where it is the tasks' own,
        the tasks' own parts do not start from them.
        """
        encoded = self.encode(images)
        decoded = self.decode(encoded)
        return {task: self._attend(task, encoded, decoded) for task in tasks or self.tasks}

    def _attend(self, task: str, encoded: Encoded, decoded: Decoded) -> Tensor:
        encoder, decoder = list(self.encoder_att[task].children()), list(self.decoder_att[task].children())
        found = encoded.pooled
        for s, network in enumerate(encoder):
            first = encoded.first[s]
            mask = network(first if s == 0 else torch.cat([first, found], dim=1))
            found = functional.max_pool2d(self.encoder_block_att[s](mask * encoded.second[s]), 2)
        for s, unpooled, value in zip(reversed(range(len(decoder))), decoded.unpooled, decoded.blocks, strict=True):
            larger = functional.interpolate(found, scale_factor=2, mode="bilinear", align_corners=True)
            mask = decoder[s](torch.cat([unpooled, self.decoder_block_att[s](larger)], dim=1))
            found = mask * value
        return found

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """One prediction ``[b, channels, h, w]`` per task."""
        return {task: self.predict(task, features) for task, features in self.features(images).items()}
