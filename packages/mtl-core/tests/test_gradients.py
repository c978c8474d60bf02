from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl_core import (
    DetachedLossError,
    InvalidInputError,
    InvalidJacobianError,
    InvalidParameterError,
    NoLossesError,
    NonFiniteLossError,
    NonScalarLossError,
    NoSharedParametersError,
    Problem,
    TaskGradients,
    collect,
)
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collection import collect_problem
from mtl_core.report import StepOptions
from mtl_core.testing import jacobian_of, jacobians, reference_jacobian, small_problem


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_gradients_by_hand() -> None:
    a, b = parameter(1.0, 2.0), parameter(3.0)
    # L1 = a1^2 + b, L2 = a1 a2: gradients (2, 0, 1) and (2, 1, 0).
    grads = collect([a[0] ** 2 + b[0], a[0] * a[1]], [a, b])
    assert grads.matrix.tolist() == [[2.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    assert grads.gramian.tolist() == [[5.0, 4.0], [4.0, 5.0]]
    assert grads.norms.tolist() == [math.sqrt(5.0)] * 2
    assert grads.mean.tolist() == [2.0, 0.5, 0.5]
    assert grads.combine(torch.tensor([1.0, -1.0])).tolist() == [0.0, -1.0, 1.0]
    assert grads.losses.tolist() == [4.0, 2.0]
    assert a.grad is None


def test_untouched_parameters_count_as_zero() -> None:
    a, b = parameter(1.0), parameter(1.0)
    grads = collect({"first": a[0] * 3, "second": b[0] * 5}, [a, b])
    assert grads.matrix.tolist() == [[3.0, 0.0], [0.0, 5.0]]
    assert grads.tasks == ("first", "second")


def test_assign_writes_views_in_each_parameters_shape() -> None:
    w, b = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
    grads = collect([w.sum() + b.sum(), w.sum()], [w, b])
    vector = torch.arange(10.0)
    grads.assign(vector)
    assert w.grad is not None
    assert b.grad is not None
    assert w.grad.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert b.grad.tolist() == [6.0, 7.0, 8.0, 9.0]
    vector[0] = 7.0
    assert float(w.grad[0, 0]) == 7.0  # the same memory


def test_repeated_and_frozen_parameters_count_once_or_not_at_all() -> None:
    a, frozen = parameter(1.0, 1.0), parameter(9.0)
    frozen.requires_grad_(False)
    grads = collect([a.sum() * frozen[0]], [a, a, frozen])
    assert grads.matrix.tolist() == [[9.0, 9.0]]


def test_complex_parameters_are_real_pairs() -> None:
    z = nn.Parameter(torch.tensor([1.0 + 2.0j], dtype=torch.complex128))
    loss = (z.abs() ** 2).sum()  # x^2 + y^2: gradient (2, 4)
    grads = collect([loss], [z])
    assert grads.matrix.tolist() == [[2.0, 4.0]]
    grads.assign(torch.tensor([0.5, -1.0], dtype=torch.float64))
    assert z.grad is not None
    assert z.grad.tolist() == [0.5 - 1.0j]


def test_sparse_gradients_are_made_dense() -> None:
    table = nn.Embedding(3, 2, sparse=True)
    grads = collect([table(torch.tensor([0, 0])).sum(), table(torch.tensor([2])).sum()], table.parameters())
    assert grads.matrix.tolist() == [[2.0, 2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]]


def test_mixed_dtypes_are_promoted_and_cast_back() -> None:
    narrow, wide = nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(1))
    grads = collect([narrow.float().sum() * 2 + wide.sum()], [narrow, wide])
    assert grads.matrix.dtype == torch.float32
    grads.assign(grads.combine(torch.ones(1)))
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
    assert narrow.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("form", ["mapping", "stack", "joint"])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 7])
def test_every_mode_equals_one_backward_pass_per_task(form: str, features: bool, chunk_size: int | None) -> None:
    problem, batch = small_problem(3, features=features, form=form)
    expected = reference_jacobian(problem, batch)
    losses = problem.losses(batch)
    grads = collect(
        losses.outputs, problem.shared, features=losses.features, heads=problem.heads, chunk_size=chunk_size
    )
    torch.testing.assert_close(grads.matrix, expected, rtol=1e-12, atol=1e-14)
    found = [p.grad.clone() for p in problem.heads if p.grad is not None]
    problem.model.zero_grad()
    problem.losses(batch).values.sum().backward()
    assert len(found) == len(problem.heads)
    for gradient, head in zip(found, problem.heads, strict=True):
        torch.testing.assert_close(gradient, head.grad, rtol=1e-12, atol=1e-14)


class Trunk(nn.Module):
    """A tiny trunk with one layer of choice in the middle."""

    def __init__(self, middle: nn.Module, width: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), middle, nn.Linear(width, 4), nn.Tanh()).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def passes(trunk: nn.Module, n_tasks: int, monkeypatch: pytest.MonkeyPatch, samples: int = 6) -> tuple[int, Tensor]:
    """How many passes through a trunk the collection chose, and the Jacobian's error against one pass per task."""
    torch.manual_seed(0)
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(n_tasks)).double()
    features = trunk(torch.randn(samples, 3, dtype=torch.float64))
    losses = [(head(features) - i).square().mean() for i, head in enumerate(heads)]
    shared = list(trunk.parameters())
    expected = collect(losses, shared, features=features, chunk_size=1, retain_graph=True).matrix
    seen = []
    grad = torch.autograd.grad

    def counting(outputs: Sequence[Tensor], inputs: Sequence[Tensor], *rest: Any, **options: Any) -> Any:
        seen.append(inputs[0] is shared[0])
        return grad(outputs, inputs, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counting)
        found = collect(losses, shared, features=features).matrix
    return sum(seen), (found - expected).abs().max() / expected.abs().max()


@pytest.mark.parametrize(
    ("middle", "width", "n_tasks", "expected"),
    [
        (nn.ReLU(), 5, 8, 1),
        (nn.Sequential(nn.LayerNorm(5), nn.GELU()), 5, 11, 1),
        (nn.ReLU(), 5, 7, 7),  # too few tasks
        (nn.ReLU(), 20_000, 8, 8),  # too large: 6 x 20,000 entries at the first layer alone
        (nn.Softmax(dim=1), 5, 8, 8),  # an operation that was not measured
    ],
)
def test_tiny_trunks_are_passed_once_for_all_tasks(
    middle: nn.Module, width: int, n_tasks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, error = passes(Trunk(middle, width), n_tasks, monkeypatch)
    assert count == expected
    assert error < 1e-13


def test_a_custom_function_is_never_batched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2.0 * x

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return torch.from_numpy(2.0 * gradients[0].numpy())  # nothing that vmap could see through

    class Middle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Double.apply(x)  # type: ignore[no-any-return]

    count, error = passes(Trunk(Middle()), 9, monkeypatch)
    assert count == 9
    assert error == 0.0


def test_absent_tasks_leave_rows_of_zeros_when_batched() -> None:
    torch.manual_seed(0)
    trunk = Trunk(nn.ReLU())
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(12)).double()
    names = tuple(f"t{i}" for i in range(12))

    def losses(model: nn.Module, batch: tuple[Tensor, Sequence[int]]) -> tuple[dict[str, Tensor], Tensor]:
        features = trunk(batch[0])
        return {names[i]: heads[i](features).square().mean() for i in batch[1]}, features

    problem = Problem(nn.ModuleList([trunk, heads]), losses, shared=trunk, tasks=names)
    there = [0, 1, 2, 4, 5, 7, 8, 9, 11]
    batch = (torch.randn(6, 3, dtype=torch.float64), there)
    found = collect_problem(problem, problem.losses(batch))
    one_by_one = collect_problem(problem, problem.losses(batch), options=StepOptions(chunk_size=1))
    torch.testing.assert_close(found.matrix, one_by_one.matrix, rtol=1e-12, atol=1e-14)
    assert not bool(found.matrix[[3, 6, 10]].any())
    assert bool(found.matrix[there].any(dim=1).all())


def test_a_stack_is_taken_apart() -> None:
    """Going backward through the stack would run every head for every task, and give zeros for untouched parameters."""
    a, b = parameter(1.0), parameter(1.0)
    passes = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            passes.append(1)
            return gradient

    collect(torch.stack([Counted.apply(a[0]), Counted.apply(b[0])]), [a, b])
    assert len(passes) == 2


def test_graph_is_kept_on_request() -> None:
    a = parameter(2.0)
    losses = [a[0] ** 2, a[0] ** 3]
    first = collect(losses, [a], retain_graph=True)
    second = collect(losses, [a])
    assert torch.equal(first.matrix, second.matrix)
    with pytest.raises(RuntimeError, match="second time"):
        collect(losses, [a])


@given(jacobians(dtypes=(torch.float32, torch.float64), max_parameters=40))
def test_gramian_is_symmetric_and_positive_semidefinite(jacobian: Tensor) -> None:
    gramian = gramian_of(jacobian)
    assert gramian.dtype == torch.float64
    assert torch.equal(gramian, gramian.T)
    scale = gramian.diagonal().clamp(min=1e-300).sqrt()
    assert float(torch.linalg.eigvalsh(gramian / scale / scale[:, None]).min()) >= -1e-12


def test_gramian_of_many_columns_is_that_of_the_whole() -> None:
    jacobian = jacobian_of("generic", n_tasks=3, n_parameters=400_000, spread=3, dtype=torch.float32)
    wide = jacobian.double()
    torch.testing.assert_close(gramian_of(jacobian), wide @ wide.T, rtol=1e-12, atol=0.0)


@given(st.integers(1, 4), st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 99))
def test_freezing_removes_columns_and_nothing_else(n_tasks: int, frozen: list[bool], seed: int) -> None:
    problem, batch = small_problem(n_tasks, seed=seed)
    everything = collect(problem.losses(batch).outputs, problem.shared)
    sizes = [p.numel() for p in problem.shared]
    kept = [i for i, f in enumerate(frozen) if not f]
    columns = torch.cat(
        [part for part, f in zip(torch.arange(sum(sizes)).split(sizes), frozen, strict=True) if not f]
        or [torch.empty(0, dtype=torch.long)]
    )
    for p, f in zip(tuple(problem.model.trunk.parameters()), frozen, strict=True):
        p.requires_grad_(not f)
    if not kept:
        with pytest.raises(NoSharedParametersError, match="all frozen"):
            collect(problem.losses(batch).outputs, problem.model.trunk.parameters())
        return
    some = collect(problem.losses(batch).outputs, problem.shared)
    torch.testing.assert_close(some.matrix, everything.matrix[:, columns], rtol=1e-12, atol=1e-14)


class TestBadInput:
    def test_no_losses(self) -> None:
        with pytest.raises(NoLossesError, match="at least one loss, got none"):
            collect([], [parameter(1.0)])

    def test_loss_that_is_not_scalar(self) -> None:
        a = parameter(1.0, 2.0)
        with pytest.raises(NonScalarLossError, match=r"task '1' must be a scalar tensor, got shape \(2,\)"):
            collect([a.sum(), a * 2], [a])
        with pytest.raises(NonScalarLossError, match=r"got shape \(2, 2\)"):
            collect(torch.ones(2, 2), [a])
        with pytest.raises(NonScalarLossError, match="got float"):
            collect([a.sum(), 1.0], [a])  # type: ignore[list-item]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_loss_that_is_not_finite_is_named(self, value: float) -> None:
        a = parameter(1.0)
        with pytest.raises(NonFiniteLossError, match=f"'depth' is {value}") as caught:
            collect({"semantic": a[0], "depth": a[0] * value}, [a])
        assert caught.value.tasks == ("depth",)

    @pytest.mark.parametrize("chunk_size", [None, 2])
    def test_detached_loss_is_named(self, chunk_size: int | None) -> None:
        a, other = parameter(1.0), parameter(1.0)
        with pytest.raises(DetachedLossError, match="shared parameters") as caught:
            collect({"a": a[0], "b": other[0], "c": a[0].detach()}, [a], chunk_size=chunk_size)
        assert caught.value.tasks == ("b", "c")

    def test_detached_from_the_features(self) -> None:
        a = parameter(1.0)
        z = a * 2
        with pytest.raises(DetachedLossError, match="features"):
            collect([z.sum(), parameter(1.0)[0]], [a], features=z)

    def test_way_past_the_features(self) -> None:
        a = parameter(1.0)
        z = a * 2
        with pytest.raises(InvalidInputError, match=r"another way for tasks \['1'\]"):
            collect([z.sum(), z.sum() * a[0]], [a], features=z)

    def test_detached_features(self) -> None:
        a = parameter(1.0)
        z = a * 2
        with pytest.raises(InvalidInputError, match="Do not detach"):
            collect([z.sum()], [a], features=z.detach())

    def test_empty_and_frozen_shared_set(self) -> None:
        a = parameter(1.0)
        with pytest.raises(NoSharedParametersError, match=r"got 0 parameter\(s\)"):
            collect([a[0]], [])
        frozen = parameter(1.0).requires_grad_(False)
        with pytest.raises(NoSharedParametersError, match="all frozen"):
            collect([a[0]], [frozen])
        with pytest.raises(InvalidInputError, match="Wrap it in a list"):
            collect([a[0]], a)

    def test_chunk_size(self) -> None:
        a = parameter(1.0)
        with pytest.raises(InvalidParameterError, match="`chunk_size` must be a whole number of at least 1, got 0"):
            collect([a[0]], [a], chunk_size=0)

    def test_vector_and_weights_of_wrong_shape(self) -> None:
        a = parameter(1.0, 2.0)
        grads = collect([a.sum()], [a])
        with pytest.raises(InvalidJacobianError, match=r"shape \(2,\).*got \(3,\)"):
            grads.assign(torch.ones(3))
        with pytest.raises(InvalidInputError, match=r"one weight per task, shape \(1,\), got \(2,\)"):
            grads.combine(torch.ones(2))
        with pytest.raises(InvalidInputError, match="must be finite"):
            grads.combine(torch.tensor([math.nan]))

    def test_gradient_that_is_not_finite_though_the_loss_is(self) -> None:
        a = parameter(0.0)
        grads = collect({"fine": a[0] + 1, "bad": (a * 0).sqrt().sum()}, [a])
        with pytest.raises(InvalidJacobianError, match=r"tasks \['bad'\]"):
            _ = grads.host_gramian

    def test_jacobian_that_does_not_fit_its_parameters(self) -> None:
        with pytest.raises(InvalidJacobianError, match=r"one column per shared parameter entry, 2, got shape \(1, 3\)"):
            TaskGradients(torch.ones(1, 3), [parameter(1.0, 2.0)])

    def test_several_devices(self) -> None:
        a = parameter(1.0)
        with FakeTensorMode():  # stands for a device that need not be there
            b = nn.Parameter(torch.ones(1, device="cuda"))
        with pytest.raises(InvalidInputError, match=r"must lie on one device, got \['cpu', 'cuda:0'\]"):
            collect([a[0]], [a, b])


@pytest.mark.slow
def test_a_compiled_model_is_differentiated_one_task_after_the_other() -> None:
    problem, batch = small_problem(3, dtype=torch.float32)
    expected = reference_jacobian(problem, batch)
    compiled = torch.compile(problem.model.trunk)
    z = compiled(batch)
    losses = torch.stack([((head(z) - i) ** 2).mean() * (i + 1) for i, head in enumerate(problem.model.heads)])
    for settings in ({"chunk_size": 3}, {"features": z}, {"keep": "gramian"}, {"features": z, "chunk_size": 2}):
        found = collect(losses, problem.shared, retain_graph=True, **settings)  # type: ignore[arg-type]
        torch.testing.assert_close(found.gramian, expected.double() @ expected.double().T, rtol=1e-4, atol=1e-6)
        assert bool(found.notes) == ("chunk_size" in settings)
