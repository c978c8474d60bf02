from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, MicroBatches, NonFiniteLossError, Problem, TaskGradients, accumulate, step
from mtl_core.accumulation import Accumulator
from mtl_core.report import StepOptions
from mtl_core.testing import TwoLayers, reference_jacobian, small_problem


class ByNorm:
    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


class ByLoss:
    needs = "losses"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, losses: Tensor) -> Tensor:
        return (losses**2).sum()

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        self.seen += [before, after()]


def whole() -> Tensor:
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("features", [False, True])
def test_gradients_are_those_of_the_whole_batch(parts: int, features: bool) -> None:
    problem, _ = small_problem(3, features=features)
    found = accumulate(problem, MicroBatches(whole().chunk(parts)))
    jacobian = reference_jacobian(problem, whole())
    torch.testing.assert_close(found.matrix, jacobian, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.gramian, jacobian @ jacobian.T, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.losses, problem.losses(whole()).values.detach())


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (ByNorm, "unit"),
        (ByNorm, "weighted"),
        (ByLoss, "unit"),
        (ByLoss, "weighted"),
        (lambda: lambda jacobian: jacobian.sum(0), "unit"),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_the_step_is_that_of_the_whole_batch(make: Callable[[], Any], heads: Any, scaled: bool) -> None:
    models = []
    for batch in (whole(), MicroBatches(whole().chunk(4))):
        problem, _ = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
        method = make()
        step(problem, batch, optimizer, method, heads=heads, scaler=scaler, max_norm=1.0)
        models.append([p.detach() for p in problem.model.parameters()])
        if isinstance(method, ByLoss):
            models[-1] += method.seen
    torch.testing.assert_close(models[0], models[1], rtol=1e-5 if scaled else 1e-10, atol=1e-9)


def test_a_task_is_averaged_over_the_parts_that_have_it() -> None:
    torch.manual_seed(0)

    def losses(model: nn.Module, batch: tuple[Tensor, str]) -> dict[str, Tensor]:
        outputs = model(batch[0])[1]
        return {name: outputs["abc".index(name)].square().mean() for name in batch[1]}

    problem = Problem(TwoLayers(3), losses, shared="trunk", tasks=("a", "b", "c"))
    first, second = whole().chunk(2)
    found = accumulate(problem, MicroBatches([(first, "a"), (second, "ab")]))
    assert found.present == (0, 1)
    expected = torch.stack(
        [
            (problem.losses((first, "a")).values[0] + problem.losses((second, "a")).values[0]) / 2,
            problem.losses((second, "b")).values[0],
        ]
    )
    torch.testing.assert_close(found.losses[:2], expected.detach())
    rows = [torch.autograd.grad(loss, problem.shared, retain_graph=True) for loss in expected]
    torch.testing.assert_close(found.matrix[:2], torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]))
    assert not bool(found.matrix[2].any())
    found.assign_heads()
    wanted = torch.autograd.grad(expected.sum(), list(problem.model.heads[:2].parameters()))
    for p, gradient in zip(problem.model.heads[:2].parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    assert all(p.grad is None for p in problem.model.heads[2].parameters())


def test_bad_input() -> None:
    problem, _ = small_problem(3)
    with pytest.raises(InvalidInputError, match="at least one batch"):
        MicroBatches([])
    with pytest.raises(InvalidInputError, match="must be 'jacobian' to accumulate"):
        accumulate(problem, MicroBatches([whole()]), options=StepOptions(keep="gramian"))


class Counting:
    needs = "losses"
    takes_present = True

    def __call__(self, losses: Tensor, *, present: Tensor | None = None) -> Tensor:
        there = torch.ones_like(losses, dtype=torch.bool) if present is None else present
        return (torch.arange(1.0, len(losses) + 1.0).to(losses) * losses)[there].sum()


class Noisy(nn.Module):
    """Batch normalisation and dropout before two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        z = self.trunk(x)
        return torch.stack([head(z).square().mean() for head in self.heads])


def test_a_loss_weighting_differentiates_each_part_once_and_sees_its_dropout() -> None:
    torch.manual_seed(0)
    model = Noisy().double()
    problem = Problem(model, lambda model, x: model(x), shared=model.trunk, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passes = 0

    def count(grad: Tensor) -> None:
        nonlocal passes
        passes += 1

    problem.shared[0].register_hook(count)
    before = torch.get_rng_state()
    report = step(problem, MicroBatches(whole().chunk(4)), optimizer, Counting(), heads="weighted")
    assert (passes, model.calls) == (4, 4)
    assert int(model.trunk[1].num_batches_tracked) == 4
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    for part in whole().chunk(4):
        model.trunk[2](torch.zeros(len(part), 8, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), after)
    assert report.gramian is None


def test_a_loss_weighting_averages_over_the_parts_that_have_a_task() -> None:
    def losses(model: nn.Module, batch: tuple[Tensor, str]) -> dict[str, Tensor]:
        outputs = model(batch[0])[1]
        return {name: outputs["abc".index(name)].square().mean() for name in batch[1]}

    first, second = whole().chunk(2)
    models = []
    for method in (Counting(), lambda jacobian: torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) @ jacobian):
        torch.manual_seed(0)
        problem = Problem(TwoLayers(3), losses, shared="trunk", tasks=("a", "b", "c"))
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        step(problem, MicroBatches([(first, "a"), (second, "ab")]), optimizer, method)
        models.append([p.detach() for p in problem.model.parameters()])
    torch.testing.assert_close(models[0], models[1])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_skipped_update_is_not_looked_back_at(parts: int) -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.fill_(1e-6)
    problem = Problem(model, lambda model, x: model(x).square().mean(0), shared=model, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = torch.full((4, 2), 1e6)  # losses of 4, gradients of 4e6
    method = ByLoss()
    scaler = torch.amp.GradScaler("cpu", init_scale=1e37)
    report = step(problem, batch if parts == 1 else MicroBatches(batch.chunk(parts)), optimizer, method, scaler=scaler)
    assert [event.as_dict() for event in report.events] == [{"kind": "skipped_update", "scale": scaler.get_scale()}]
    assert scaler.get_scale() == pytest.approx(5e36)
    assert float(model.weight.detach().max()) == pytest.approx(1e-6)
    assert method.seen == []


def test_a_part_whose_loss_is_nan_is_not_taken_for_one_without_the_task() -> None:
    problem, _ = small_problem(2)
    total = Accumulator(problem)
    for loss in (1.0, float("nan")):  # on a device losses are read late, so that parts arrive here unchecked
        row = torch.zeros(2, sum(p.numel() for p in problem.shared), dtype=torch.float64)
        losses = torch.tensor([2.0, loss], dtype=torch.float64)
        total.add(TaskGradients(row, problem.shared, losses=losses, tasks=problem.tasks))
    with pytest.raises(NonFiniteLossError, match="'task1' is nan"):
        _ = total.mean().host_gramian


def test_a_loss_that_is_nan_after_the_update_in_one_part_is_shown_as_nan() -> None:
    problem, _ = small_problem(2)
    updated = False

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        values = torch.stack([y.square().mean() for y in model(x)[1]])
        return values * float("nan") if updated and bool(x[0, 0] > 0) else values

    class Optimizer(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            nonlocal updated
            super().step(closure)
            updated = True

    problem = Problem(problem.model, losses, shared="trunk", tasks=("a", "b"))
    method = ByLoss()
    parts = MicroBatches([torch.ones(2, 3, dtype=torch.float64), -torch.ones(2, 3, dtype=torch.float64)])
    step(problem, parts, Optimizer(problem.model.parameters(), lr=0.1), method)
    assert bool(method.seen[0].isfinite().all())
    assert bool(method.seen[1].isnan().all())
