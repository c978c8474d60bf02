r"""Mixture of experts whose gates choose k of them and can be differentiated (DSelect-k)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_benchmarks.models.declaration import TaskModel
from mtl_benchmarks.models.gating import mixed, pooled
from mtl_core import InvalidParameterError
from mtl_core.checks import positive, positive_int

__all__ = ["DSelectK", "DSelectKGate", "smooth_step"]

_TINY = 1e-6  # keeps the logarithm of an expert that is not chosen finite


def smooth_step(t: Tensor, gamma: float = 1.0) -> Tensor:
    r"""A cubic from 0 to 1 that *is* 0 below :math:`-\gamma/2` and 1 above :math:`\gamma/2`, with a continuous slope.

    .. math:: S(t) = -\tfrac{2}{\gamma^3} t^3 + \tfrac{3}{2\gamma} t + \tfrac12 \quad\text{in between.}

    Example:
        >>> smooth_step(torch.tensor([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0])).tolist()
        [0.0, 0.0, 0.5, 0.84375, 1.0, 1.0]
    """
    # Clamped first: the cubic is exactly 0 and 1 at the ends, and its slope is 0 there as outside.
    inner = t.clamp(-gamma / 2, gamma / 2)
    value = -2 / gamma**3 * inner**3 + 3 / (2 * gamma) * inner + 0.5
    return torch.where(t <= -gamma / 2, torch.zeros_like(t), torch.where(t >= gamma / 2, torch.ones_like(t), value))


class DSelectKGate(nn.Module):
    r"""Weights of ``n`` experts of which at most ``k`` are not zero once training has settled.

    Each of ``k`` selectors holds a code of :math:`\lceil \log_2 n \rceil` numbers; expert :math:`i` with binary digits
    :math:`b` gets :math:`r_i(z) = \prod_j S(z_j)^{b_j} (1 - S(z_j))^{1 - b_j}`, which is one expert alone when every
    :math:`|z_j| \ge \gamma / 2`. The weights are :math:`\sum_l \mathrm{softmax}(\alpha)_l\, r(z^{(l)})`. Their sum is 1
    if ``n`` is a power of two; else codes beyond the last expert take a part of it, which :meth:`regulariser`
    drives away.

    Args:
        n_experts: number ``n`` of experts.
        k: how many a task may use.
        gate_inputs: channels of the input, for codes that are linear in it; ``None`` for codes that are parameters, the
            same for every input.
        gamma: width of the step; outside it a code's digit is decided and its gradient zero.

    Raises:
        InvalidParameterError: ``k`` is above the number of experts, or a number is not positive.

    References:
        Hazimeh et al., *DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to Multi-Task
        Learning*, NeurIPS 2021.

    Example:
        >>> gate = DSelectKGate(4, k=2)
        >>> gate(torch.zeros(3, 5)).sum(1)
        tensor([1., 1., 1.], ...)
    """

    codes: Tensor

    def __init__(self, n_experts: int, *, k: int, gate_inputs: int | None = None, gamma: float = 1.0) -> None:
        super().__init__()
        self.n_experts, self.k = positive_int("n_experts", n_experts), positive_int("k", k)
        if k > n_experts:
            raise InvalidParameterError(f"`k` must be at most the number of experts, got {k} for {n_experts}.")
        self.gamma = positive("gamma", gamma)
        n_digits = (n_experts - 1).bit_length()
        self.complete = n_experts == 2**n_digits
        digits = torch.arange(n_experts)[:, None] >> torch.arange(n_digits)
        self.register_buffer("codes", (digits & 1).bool(), persistent=False)
        small = self.gamma / 100  # near the middle of the step, where every expert can still be reached
        if gate_inputs is None:
            self.static_codes = nn.Parameter(torch.empty(k, n_digits).uniform_(-small, small))
            self.static_weights = nn.Parameter(torch.empty(k).uniform_(-0.05, 0.05))
            self.code_map = self.weight_map = None
        else:
            self.code_map = nn.Linear(positive_int("gate_inputs", gate_inputs), k * n_digits)
            self.weight_map = nn.Linear(gate_inputs, k)
            for layer, bound in ((self.code_map, small), (self.weight_map, 0.05)):
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.uniform_(layer.bias, -bound, bound)

    def selectors(self, x: Tensor) -> Tensor:
        """What each selector gives each expert, ``[b, k, n_experts]``; ``b`` is 1 for codes that are parameters."""
        if self.code_map is None:
            codes = self.static_codes[None]
        else:
            codes = self.code_map(pooled(x)).unflatten(1, (self.k, -1))
        step = smooth_step(codes, self.gamma).unsqueeze(2)
        return torch.where(self.codes, step, 1 - step).prod(3)

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``[b, n_experts]``."""
        logits = self.static_weights[None] if self.weight_map is None else self.weight_map(pooled(x))
        weights = torch.einsum("bk,bkn->bn", logits.softmax(1), self.selectors(x))
        return weights.expand(len(x), -1)

    def regulariser(self, x: Tensor) -> Tensor:
        r"""The selectors' entropies, mean over the batch, to be added to the task's loss with a small factor.

        It makes the selectors decide. Where ``n`` is no power of two, :math:`\sum_l 1 / \sum_i r_i(z^{(l)})` is added,
        which keeps them off codes that are no expert's.
        """
        chosen = self.selectors(x)
        value = -(chosen * (chosen + _TINY).log()).sum((1, 2))
        if not self.complete:
            value = value + (1 / chosen.sum(2).clamp(min=_TINY)).sum(1)
        return value.mean()


class DSelectK(TaskModel):
    r"""Multi-gate mixture of experts in which each task uses ``k`` experts at most.

    Experts are shared, gates and heads are the tasks' own.

    Args:
        expert: makes one expert, for vectors or images; called ``n_experts`` times.
        heads: each task's own module on its mixture.
        n_experts: how many experts.
        k: how many a task may use.
        gate_inputs: channels of the input, for gates that depend on it; ``None`` for one choice per task.
        gamma: width of the gates' step.

    References:
        Hazimeh et al., *DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to Multi-Task
        Learning*, NeurIPS 2021.

    Example:
        >>> heads = {"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)}
        >>> model = DSelectK(lambda: nn.Linear(3, 4), heads, n_experts=4, k=2)
        >>> x = torch.zeros(5, 3)
        >>> model(x)["b"].shape, model.regularisers(x)["a"].shape
        (torch.Size([5, 2]), torch.Size([]))
    """

    def __init__(
        self,
        expert: Callable[[], nn.Module],
        heads: Mapping[str, nn.Module],
        *,
        n_experts: int,
        k: int,
        gate_inputs: int | None = None,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(heads)
        self.experts = nn.ModuleList(expert() for _ in range(positive_int("n_experts", n_experts)))
        self.gates = nn.ModuleDict(
            {task: DSelectKGate(n_experts, k=k, gate_inputs=gate_inputs, gamma=gamma) for task in self.tasks}
        )
        self.heads = nn.ModuleDict(dict(heads))

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """The task's gate and head."""
        return (self.gates[task], self.heads[task])

    def gate_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Each task's weights of the experts, ``[b, n_experts]``."""
        return {task: self.gates[task](x) for task in self.tasks}

    def regularisers(self, x: Tensor) -> dict[str, Tensor]:
        """What each task's gate adds to the task's loss, before the factor."""
        return {task: self.gates[task].regulariser(x) for task in self.tasks}  # type: ignore[operator]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One output per task."""
        outputs = [expert(x) for expert in self.experts]
        return {task: self.heads[task](mixed(weights, outputs)) for task, weights in self.gate_weights(x).items()}
