"""What an error in a step leaves behind: nothing, whatever kind of tensor it was and wherever it lay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, MicroBatches, NonFiniteLossError, Problem, UpdateEvery, step
from mtl_core.testing import small_problem


class Averaged(nn.Module):
    """A weighting of one's own that keeps things in all the ways a module can, and then fails if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.average: Tensor
        self.latest: Tensor | None
        self.register_buffer("average", torch.ones(2, dtype=torch.float64))
        self.register_buffer("latest", None)
        self.generator = torch.Generator().manual_seed(0)
        self.fails = False

    def weights(self, gramian: Tensor) -> Tensor:
        drawn = torch.rand(2, dtype=torch.float64, generator=self.generator)
        self.average = 0.5 * self.average + drawn  # another tensor in its place
        self.latest = drawn
        self.register_buffer(f"step {len(self._buffers)}", drawn)
        if self.fails:
            raise KeyError("told to")
        return self.average.clone()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_of_ones_own_is_as_before(wrapped: bool) -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    inner = Averaged()
    method: Any = UpdateEvery(inner, steps=1) if wrapped else inner
    step(problem, batch, optimizer, method)
    buffers = dict(inner._buffers)
    values = copy.deepcopy(buffers)
    drawn = inner.generator.get_state()
    inner.fails = True
    with pytest.raises(KeyError, match="told to"):
        step(problem, batch, optimizer, method)
    assert dict(inner._buffers) == buffers  # the same tensors under the same names
    for name, value in values.items():
        assert value is buffers[name] is None or torch.equal(buffers[name], value)
    assert torch.equal(inner.generator.get_state(), drawn)


class Odd(nn.Module):
    """A trunk with buffers of every kind, one of which comes to be in the forward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        table = torch.eye(3)
        made: dict[str, Any] = {
            "coo": table.to_sparse(),
            "csr": table.to_sparse_csr(),
            "expanded": torch.ones(3).expand(3, 3),
            "empty": None,
        }
        self.register_buffer("table", made[kind])
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        if self.kind == "empty":
            self.table = z.detach().clone()
            self.register_buffer("seen", torch.ones(1))
            return z
        if self.kind == "expanded":
            return z @ self.table
        self.table.mul_(2.0) if self.kind == "coo" else None
        return torch.sparse.mm(self.table, z.T).T


class Counting:
    """A weighting with memory that fails in its third step."""

    def __init__(self) -> None:
        self.steps = 0

    def weights(self, gramian: Tensor) -> Tensor:
        self.steps += 1
        return torch.ones(2, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@pytest.mark.parametrize("where", ["loss", "update"])
@pytest.mark.parametrize("kind", ["coo", "csr", "expanded", "empty"])
def test_buffers_of_any_kind_are_as_before_and_the_error_is_the_true_one(kind: str, where: str) -> None:
    model = nn.ModuleDict({"trunk": Odd(kind), "a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
    broken = False

    def losses(model: Any, x: Tensor) -> Tensor:
        z = model["trunk"](x)
        values = torch.stack([model[name](z).square().mean() for name in "ab"])
        return values * float("nan") if broken and where == "loss" else values

    class Failing(Counting):
        def weights(self, gramian: Tensor) -> Tensor:
            found = super().weights(gramian)
            return found * float("nan") if broken and where == "update" else found

    problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Failing()
    before = {name: None if b is None else b.clone() for name, b in model["trunk"]._buffers.items()}
    broken = True
    with pytest.raises(NonFiniteLossError if where == "loss" else InvalidInputError, match="must be finite"):
        step(problem, torch.ones(4, 3), optimizer, method)
    assert method.steps == 0
    now = model["trunk"]._buffers
    assert list(now) == list(before)
    for name, value in before.items():
        if value is None:
            assert now[name] is None
        else:
            assert torch.equal(now[name].to_dense(), value.to_dense())


@pytest.mark.parametrize("kind", ["coo", "csr", "expanded", "empty"])
def test_odd_buffers_in_micro_batches(kind: str) -> None:
    model = nn.ModuleDict({"trunk": Odd(kind), "a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})

    def losses(model: Any, x: Tensor) -> Tensor:
        z = model["trunk"](x)
        return torch.stack([model[name](z).square().mean() for name in "ab"])

    class Sum:
        needs = "losses"
        takes_present = False

        def __call__(self, losses: Tensor) -> Tensor:
            return losses.sum()

    problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(problem, MicroBatches([torch.ones(2, 3)] * 2), optimizer, Sum())


class ByHand:
    """An optimiser of torch's form that is none of torch's."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters)}]

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad


class Zeroing(ByHand):
    """One that sets gradients to zero, and knows no other way."""

    def zero_grad(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.zero_()


@pytest.mark.parametrize("kind", [ByHand, Zeroing])
def test_optimisers_of_torchs_form_step_as_torchs(kind: type[ByHand]) -> None:
    found = []
    for make in (kind, lambda parameters: torch.optim.SGD(parameters, lr=0.1)):
        problem, batch = small_problem(2)
        optimizer: Any = make(problem.model.parameters())
        for _ in range(3):
            step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))
        found.append([p.detach().clone() for p in problem.model.parameters()])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_an_optimiser_that_is_differentiated_through() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.Adam(problem.model.parameters(), differentiable=True)
    with pytest.raises(
        InvalidInputError, match=r"must update the parameters in place, got Adam with differentiable=True"
    ):
        step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_that_are_not_finite_are_the_methods_fault(scaled: bool) -> None:
    class Root:
        needs = "losses"
        takes_present = False

        def __call__(self, losses: Tensor) -> Tensor:
            return (losses - losses.detach()).abs().sqrt().sum()

    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    with pytest.raises(InvalidInputError, match=r"`method` must give finite weights, got \[.*\] from Root"):
        step(problem, batch, optimizer, Root(), scaler=scaler)


def test_an_interrupt_leaves_no_step_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    seen: list[Any] = []
    problem.register_report_hook(seen.append)

    def interrupted(jacobian: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(problem, batch, optimizer, interrupted)
    assert problem.under_way is None
    step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))
    assert len(seen) == 1
