"""What is written by hand, from ``collect`` on, is looked at before it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, NonFiniteGradientError, TaskGradients, collect

Keep = Literal["jacobian", "gramian", "features"]

WRITES: dict[str, Callable[[TaskGradients], None]] = {
    "mean": lambda grads: grads.assign(grads.mean),
    "combine": lambda grads: grads.assign(grads.combine(torch.tensor([0.5, 0.25, 0.25]))),
    "accumulate": lambda grads: grads.assign(grads.mean, accumulate=True),
    "assign_combination": lambda grads: grads.assign_combination(torch.tensor([0.5, 0.25, 0.25])),
}


def three_tasks(dtype: torch.dtype, *, broken: bool, sparse: bool = False) -> tuple[list[Tensor], list[nn.Parameter]]:
    torch.manual_seed(0)
    table = nn.Embedding(6, 4, sparse=sparse, dtype=dtype)
    trunk = nn.Linear(4, 3, dtype=dtype)
    z = trunk(table(torch.tensor([0, 2, 2])))
    # The square root of zero: the loss is 0, its derivative infinite, and times zero NaN.
    second = ((z - z.detach()) * 0.0).sum().abs().sqrt() if broken else z.mean().square()
    losses = [z.square().mean(), second, (z - 1).square().mean()]
    return losses, [table.weight, *trunk.parameters()]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("keep", ["jacobian", "gramian"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_gradients_that_are_not_finite_are_named_and_not_written(
    write: str, keep: Keep, sparse: bool, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr("mtl_core.collecting.dense._SMALL", 0)
    losses, shared = three_tasks(torch.float32, broken=True, sparse=sparse)
    grads = collect(losses, shared, keep=keep, tasks=("a", "b", "c"))
    before = [torch.zeros_like(p) for p in shared]
    for parameter, gradient in zip(shared, before, strict=True):
        parameter.grad = gradient
    with pytest.raises(NonFiniteGradientError, match=r"of tasks \['b'\] must be finite") as caught:
        WRITES[write](grads)
    assert caught.value.tasks == ("b",)
    assert all(p.grad is gradient and not gradient.any() for p, gradient in zip(shared, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_an_update_that_leaves_the_dtype_is_refused(dtype: torch.dtype) -> None:
    losses, shared = three_tasks(dtype, broken=False)
    grads = collect([100.0 * loss for loss in losses], shared)
    largest = torch.finfo(dtype).max
    size = grads.n_parameters
    grads.assign(torch.full((size,), largest, dtype=torch.float64))
    before = [p.grad for p in shared]
    for wrong in (largest * 4.0, float("nan"), float("-inf")):
        vector = torch.zeros(size, dtype=torch.float64)
        vector[-1] = wrong
        with pytest.raises(InvalidInputError, match=rf"fit in {dtype}, got one that does not.*Nothing was written"):
            grads.assign(vector)
    with pytest.raises(InvalidInputError, match="Nothing was written"):
        grads.assign_combination(torch.full((3,), largest, dtype=torch.float64))
    assert all(p.grad is gradient for p, gradient in zip(shared, before, strict=True))


def test_the_graph_of_an_update_is_not_written_with_it() -> None:
    losses, shared = three_tasks(torch.float64, broken=False)
    grads = collect(losses, shared)
    grads.assign(grads.mean * torch.ones((), dtype=torch.float64, requires_grad=True))
    assert all(p.grad is not None and not p.grad.requires_grad for p in shared)


def test_tasks_that_were_differentiated_together_are_not_told_apart() -> None:
    for chunk_size, named in (
        (None, r"\['b'\]"),
        (1, r"\['b'\]"),
        (2, r"\['a', 'b', 'c'\]"),
        (3, r"\['a', 'b', 'c'\]"),
    ):
        losses, shared = three_tasks(torch.float64, broken=True)
        grads = collect(losses, shared, chunk_size=chunk_size, tasks=("a", "b", "c"))
        with pytest.raises(NonFiniteGradientError, match=rf"of tasks {named}") as caught:
            _ = grads.host_gramian
        assert ("chunk_size=1 tells which" in str(caught.value)) == ((chunk_size or 1) > 1)
