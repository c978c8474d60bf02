"""A step waits for the device once: for the one small matrix that the weights are computed from.

No accelerator is needed to see it. Every operation that would make the host wait for the device, reading a number or
finding out a shape from values, passes through the dispatcher, also for tensors on the CPU, where it is counted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_core import dominated_conflict, mean_cosines, step
from mtl_core.testing import small_problem

WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
}


class CountWaits(TorchDispatchMode):
    """Counts reads of values that a device would hold; what is computed from copies to the host alone is not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies = 0
        self._host: list[Tensor] = []
        original = Tensor.cpu

        def cpu(tensor: Tensor) -> Tensor:
            self.copies += 1
            copy = original(tensor).clone()
            self._host.append(copy)
            return copy

        monkeypatch.setattr(Tensor, "cpu", cpu)

    def _is_on_host(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage().data_ptr()
        return any(storage == other.untyped_storage().data_ptr() for other in self._host)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_host = bool(inputs) and all(self._is_on_host(tensor) for tensor in inputs)
        if func in WAITING and not on_host:
            self.waits.append(str(func))
        found = func(*args, **(kwargs or {}))
        if on_host:
            self._host += [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
        return found


class OneRead:
    def weights(self, gramian: Tensor) -> Tensor:
        return gramian.diagonal() * 0 + 1


class SumOfLosses:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("method", [OneRead(), SumOfLosses()])
@pytest.mark.parametrize("keep", ["jacobian", "gramian"])
def test_a_step_copies_once_and_reads_nothing_else(
    features: bool, method: object, keep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, batch = small_problem(3, features=features, dtype=torch.float32)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, foreach=False)
    step(problem, batch, optimizer, method, keep=keep)
    # What is read as soon as it is there on the CPU only.
    for module in ("gradients", "loss_step", "gradient_step", "collecting.deferred", "collecting.exchange"):
        monkeypatch.setattr(f"mtl_core.{module}.is_on_host", lambda values: False)
    with CountWaits(monkeypatch) as counted:
        step(problem, batch, optimizer, method, keep=keep)
    assert counted.copies == 1
    assert counted.waits == []


def test_metrics_are_read_only_by_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 0.5]])
    for check in ("_finite", "_symmetric", "_possible"):  # a matrix given by hand is checked
        monkeypatch.setattr(f"mtl_core.checks.matrices.{check}", lambda name, value: value)
    with CountWaits(monkeypatch) as counted:
        found = dominated_conflict(gramian=gramian)
        mean_cosines(gramian=gramian)
    assert counted.waits == []
    with CountWaits(monkeypatch) as counted:
        assert bool(found)
    assert len(counted.waits) == 1  # the counter counts


@pytest.mark.gpu
def test_on_a_device() -> None:
    problem, batch = small_problem(3, dtype=torch.float32)
    problem.model.cuda()
    batch = batch.cuda()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    step(problem, batch, optimizer, OneRead())
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as caught:
            step(problem, batch, optimizer, OneRead())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) == 1
