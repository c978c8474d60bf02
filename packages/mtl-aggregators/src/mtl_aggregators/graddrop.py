"""GradDrop: one sign per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_aggregators.bases.facts import Facts, Law, Scale
from mtl_aggregators.bases.jacobian_method import JacobianMethod
from mtl_aggregators.bases.parameters import match_tasks, one_per_task
from mtl_core import InvalidParameterError, checks

__all__ = ["GradDrop"]


class GradDrop(JacobianMethod):
    r"""Gradient sign dropout: in each coordinate, only gradients of one randomly chosen sign are kept.

    .. math::
        d = \sum_i \bigl(\ell_i + (1 - \ell_i) M_i\bigr) \circ g_i, \qquad
        M_i = [P > U][g_i > 0] + [P \le U][g_i < 0], \qquad P = \tfrac12\Bigl(1 + \frac{\sum_i g_i}{\sum_i |g_i|}\Bigr)

    with :math:`U` uniform on [0, 1) in each coordinate. The expectation keeps the sign of the sum.

    Args:
        leak: :math:`\ell` ``[m]`` in [0, 1], how much of each task's gradient passes undropped; ``None`` for 0.
        generator: source of ``U``; ``None`` makes one on the CPU with torch's default seed. Its state is part of
            ``state_dict()``.

    Raises:
        InvalidParameterError: ``leak`` is not a vector of numbers in [0, 1].

    Note:
        The paper drops the gradients by an activation layer, summed over the batch; as in other implementations, this
        acts on the gradients of the shared parameters (lines 10 to 15 of the algorithm).

    References:
        Chen et al., *Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout*, NeurIPS 2020,
        algorithm 1.

    Example:
        >>> GradDrop()(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
        tensor([4., 3.])
    """

    def __init__(
        self, *, leak: Sequence[float] | Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.leak: Tensor | None = None
        if leak is not None:
            vector = one_per_task("leak", leak)
            if vector.ndim != 1 or not bool(((vector >= 0.0) & (vector <= 1.0)).all()):
                raise InvalidParameterError(f"`leak` must be one number in [0, 1] per task, got {leak!r}.")
            self.leak = vector
        self.generator = checks.generator("generator", generator)

    @property
    def facts(self) -> Facts:
        """What the method, as configured, declares about itself."""
        laws: set[Law] = {"homogeneous", "equal_rows"}
        if self.leak is None:
            laws |= {"permutation", "zero_rows"}
        scale = Scale("1", lambda m: 1.0)
        return Facts(
            needs="jacobian",
            homogeneity=1.0,
            scale=scale,
            paper_scale=scale,
            paper_heads="unit",
            laws=frozenset(laws),
            reference="Chen et al., NeurIPS 2020",
        )

    def combine(self, jacobian: Tensor) -> Tensor:
        """The update ``[d]``."""
        # In half precision the rounding of a sum that cancels would decide its sign, and with it what is kept.
        wide = jacobian.float() if jacobian.dtype in (torch.float16, torch.bfloat16) else jacobian
        total, mass = wide.sum(dim=0), wide.abs().sum(dim=0)
        purity = 0.5 * (1.0 + total / torch.where(mass > 0.0, mass, torch.ones_like(mass)))
        # Single precision on the generator's device, whatever the gradients': the same draws for the same seed.
        drawn = torch.rand(
            purity.shape, generator=self.generator, dtype=torch.float32, device=self.generator.device
        ).to(purity)
        kept = torch.where(purity > drawn, wide.clamp(min=0.0), wide.clamp(max=0.0))
        if self.leak is None:
            return kept.sum(dim=0).to(jacobian.dtype)
        match_tasks("leak", self.leak, len(jacobian))
        leak = self.leak.to(wide).unsqueeze(1)
        return torch.lerp(kept, wide, leak).sum(dim=0).to(jacobian.dtype)

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue the draws where the saved method stood."""
        self.generator.set_state(state["generator"].cpu())
