"""Numbers at the ends of their dtype's range, complex ones, and what stands in their way is told in time."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, Problem, collect, step
from mtl_core.testing import small_problem

Keep = Literal["jacobian", "gramian", "features"]
ROUTES: tuple[Keep, ...] = ("jacobian", "gramian", "features")


class Fixed:
    """The same weights whatever the Gramian."""

    def __init__(self, *weights: float) -> None:
        self.given = torch.tensor(weights, dtype=torch.float64)

    def weights(self, gramian: Tensor) -> Tensor:
        return self.given


@pytest.mark.parametrize("heads", ["unit", "weighted"])
@pytest.mark.parametrize(
    ("keep", "dtype", "large"),
    [
        *[(keep, torch.float32, large) for keep in ROUTES for large in (3e38, 1e39)],
        ("jacobian", torch.float64, 1e308),
        ("gramian", torch.float64, 1e308),
    ],
)
def test_an_update_that_leaves_the_dtype_is_refused_before_anything_moves(
    keep: Keep, heads: Any, dtype: torch.dtype, large: float
) -> None:
    problem, batch = small_problem(2, features=keep == "features", dtype=dtype)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    before = copy.deepcopy(problem.model.state_dict())
    with pytest.raises(InvalidInputError, match=r"fits in torch.float|leave torch.float.*Nothing was updated"):
        step(problem, 100.0 * batch, optimizer, Fixed(large, -large), keep=keep, heads=heads)
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())
    assert all(p.grad is None for p in problem.model.parameters())


def test_weights_that_overflow_the_heads_alone_are_refused() -> None:
    # Gradients of the trunk of 1e-30, of the heads of 1e9: only the heads' leave the range with weights of 1e30.
    model = nn.ModuleDict({"trunk": nn.Linear(1, 1), "a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})

    def losses(model: Any, x: Tensor) -> Tensor:
        z = 1e-30 * model["trunk"](x)
        return torch.stack([(1e9 * model[name](x) + z).sum() for name in "ab"])

    problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step(problem, torch.ones(1, 1), optimizer, Fixed(1e30, 1e30))
    with pytest.raises(InvalidInputError, match=r"`heads` must be 'unit' for these weights.*got 'weighted'"):
        step(problem, torch.ones(1, 1), optimizer, Fixed(1e30, 1e30), heads="weighted")


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1.0, 1e18])
def test_a_gramian_alone_does_at_any_scale_of_float32(scale: float) -> None:
    updates = []
    for keep in ("jacobian", "gramian"):
        problem, batch = small_problem(2, dtype=torch.float32)
        scaled = Problem(
            problem.model,
            lambda model, x, problem=problem: scale * problem.losses(x).values,
            shared="trunk",
            tasks=problem.tasks,
        )
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
        step(scaled, batch, optimizer, Fixed(0.3, 0.7), keep=keep)  # type: ignore[arg-type]
        updates.append(torch.cat([p.grad.flatten() for p in problem.shared if p.grad is not None]) / scale)
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-4, atol=1e-6)


def test_half_precision_losses_take_weights_beyond_their_range() -> None:
    found = []
    for keep in ("jacobian", "gramian"):
        model = nn.ModuleDict({"trunk": nn.Linear(2, 2), "a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p)

        def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
            z = model["trunk"](x)
            return {name: model[name](z).square().mean().half() for name in "ab"}

        problem = Problem(model, losses, shared="trunk", tasks=("a", "b"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step(problem, torch.ones(3, 2), optimizer, Fixed(1e6, 2.5e5), keep=keep)  # type: ignore[arg-type]
        found.append(torch.cat([p.grad.flatten() for p in problem.shared if p.grad is not None]))
    # Weights are rounded to the losses' dtype, of eleven bits.
    torch.testing.assert_close(found[1], found[0], rtol=2e-3, atol=2e-3 * float(found[0].abs().max()))


@pytest.mark.parametrize("name", ["addmm", "mm"])
def test_a_hook_on_a_large_weight_counts_in_its_gramian(name: str) -> None:
    torch.manual_seed(0)
    # Large among the shared parameters: its gradient is never formed whole, so that no hook would be called.
    wide = nn.Linear(3, 300, bias=name == "addmm")
    model = nn.ModuleDict({"trunk": wide, "a": nn.Linear(300, 1), "b": nn.Linear(300, 1)})
    mask = torch.ones_like(wide.weight)
    mask[:, -1] = 0.0
    wide.weight.register_hook(lambda gradient: gradient * mask)

    def losses(model: Any, x: Tensor) -> Tensor:
        z = model["trunk"](x).tanh()
        return torch.stack([(model[name](z) - k).square().mean() for k, name in enumerate("ab")])

    shared = list(wide.parameters())
    x = torch.randn(5, 3)
    whole = collect(losses(model, x), shared).gramian
    alone = collect(losses(model, x), shared, keep="gramian").gramian
    torch.testing.assert_close(alone, whole, rtol=1e-6, atol=1e-9)


class Twice(nn.Module):
    """Shared parameters and heads that are used twice, in one operation and in operations far from each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.p = nn.Parameter(torch.randn(4))
        self.trunk = nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.trunk(self.trunk(x).sin()) * (self.p * self.p.sin()))
        return torch.stack([h(torch.tanh(h(z))).mean() for h in self.heads])


@pytest.mark.parametrize(
    "hook",
    [
        lambda g: g * (torch.arange(g.numel()).view(g.shape) % 2),
        lambda g: g.clamp(-1e-3, 1e-3),
        lambda g: None,
    ],
    ids=["mask", "clamp", "look"],
)
def test_a_hook_on_a_parameter_sees_whole_gradients(hook: Any) -> None:
    found = []
    for keep in ("jacobian", "gramian"):
        model = Twice()
        calls: list[tuple[int, ...]] = []
        for parameter in model.parameters():
            parameter.register_hook(hook)
            handle = parameter.register_hook(lambda g, calls=calls: calls.append(tuple(g.shape)))
        problem = Problem(
            model, lambda model, x: model(x), shared=[model.p, *model.trunk.parameters()], tasks=("a", "b")
        )
        shared, heads = problem.shared, problem.heads
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        gramian = collect(model(x), shared, heads=heads, keep=keep).gramian  # type: ignore[arg-type]
        found.append((gramian, [h.grad for h in heads], sorted(calls)))
        # They are where they were, and autograd calls those that are left.
        handle.remove()
        calls.clear()
        model(x).sum().backward()
        assert len(calls) == 6
    (one, heads_one, calls_one), (other, heads_other, calls_other) = found
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(heads_other, heads_one)
    assert calls_other == calls_one


def test_hooks_are_back_after_an_error_in_one() -> None:
    model = Twice()
    problem = Problem(model, lambda model, x: model(x), shared=[model.p, *model.trunk.parameters()], tasks=("a", "b"))

    def fail(gradient: Tensor) -> None:
        raise LookupError("of the user's")

    model.p.register_hook(fail)
    with pytest.raises(LookupError, match="of the user's"):
        collect(model(torch.ones(3, 4)), problem.shared, keep="gramian")
    with pytest.raises(LookupError, match="of the user's"):
        model(torch.ones(3, 4)).sum().backward()


@pytest.mark.parametrize("keep", ["jacobian", "gramian"])
@pytest.mark.parametrize("where", ["shared", "head"])
def test_conjugated_gradients_of_complex_parameters(keep: Keep, where: str) -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.p = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    model.h = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def losses(model: Any, x: Tensor) -> Tensor:
        if where == "shared":
            return torch.stack([(model.p.conj() * x * model.h).sum().real, (model.p * x).sum().imag])
        return torch.stack([(model.h.conj() * x * model.p).sum().real, (model.p * x).sum().imag])

    problem = Problem(model, losses, shared=[model.p], tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(3, dtype=torch.complex64)
    step(problem, x, optimizer, Fixed(1.0, 1.0), keep=keep, max_norm=1e6)
    found = [p.grad.clone() for p in (model.p, model.h) if p.grad is not None]
    model.zero_grad()
    losses(model, x).sum().backward()
    for mine, parameter in zip(found, (model.p, model.h), strict=True):
        assert not mine.is_conj()
        torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
@pytest.mark.parametrize("form", ["mapping", "joint"])
def test_losses_that_are_no_real_numbers_are_named(dtype: torch.dtype, form: str) -> None:
    problem, batch = small_problem(2)

    def losses(model: nn.Module, x: Tensor) -> Any:
        values = problem.losses(x).values.to(dtype)
        return values if form == "joint" else dict(zip(problem.tasks, values.unbind(), strict=True))

    strange = Problem(problem.model, losses, shared="trunk", tasks=problem.tasks)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    wanted = "`losses`" if form == "joint" else f"the loss of task '{problem.tasks[0]}'"
    with pytest.raises(InvalidInputError, match=f"{wanted} must be of a real floating dtype, got {dtype}"):
        step(strange, batch, optimizer, Fixed(1.0, 1.0))


def test_names_of_collected_losses() -> None:
    problem, batch = small_problem(2)
    losses = problem.losses(batch)
    named = dict(zip("ab", losses.values.unbind(), strict=True))
    with pytest.raises(InvalidInputError, match=r"`tasks` must be the names that the losses have, \['a', 'b'\]"):
        collect(named, problem.shared, tasks=("b", "a"))
    with pytest.raises(InvalidInputError, match=r"must be a list of names, got the text 'ab'"):
        collect(losses.values, problem.shared, tasks="ab")
    with pytest.raises(InvalidInputError, match=r"must differ from each other, got \['a', 'a'\]"):
        collect(losses.values, problem.shared, tasks=("a", "a"))
    assert collect(named, problem.shared, tasks=("a", "b")).tasks == ("a", "b")


@pytest.mark.parametrize(
    ("change", "kind"),
    [(Tensor.to_sparse, "sparse_coo"), (lambda t: t.to("meta"), "meta"), (lambda t: t * 1j, "complex")],
)
@pytest.mark.parametrize("what", ["update", "weights"])
def test_results_of_a_method_that_are_no_plain_numbers(change: Any, kind: str, what: str) -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)

    class Weights:
        def weights(self, gramian: Tensor) -> Any:
            return change(torch.ones(2, dtype=torch.float64))

    method: Any = Weights() if what == "weights" else lambda jacobian: change(jacobian.sum(0))
    with pytest.raises(InvalidInputError, match=rf"must return .* of real numbers, dense, got a {kind} tensor"):
        step(problem, batch, optimizer, method)
