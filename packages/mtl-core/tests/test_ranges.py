"""Numbers at the ends of their dtype's range, complex ones, and what stands in their way is told in time."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, NonFiniteGradientError, Problem, collect, step
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
        ("jacobian", torch.float64, 1.7e308),
        ("gramian", torch.float64, 1.7e308),
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


Range = tuple[torch.dtype, int, int]
WITHIN: tuple[Range, ...] = (
    # A dtype, and the powers of two of the losses' scale and of the weights. The weights leave the dtype, the update
    # does not.
    (torch.float16, -9, 17),
    (torch.float32, -100, 130),
    (torch.float64, -300, 1022),
)


@pytest.mark.parametrize("heads", ["unit", "weighted"])
@pytest.mark.parametrize("options", [*[{"keep": keep} for keep in ROUTES], {"chunk_size": 2}, {"per": "layer"}])
@pytest.mark.parametrize("case", WITHIN)
def test_weights_beyond_the_dtype_make_an_update_within_it(case: Range, options: dict[str, Any], heads: Any) -> None:
    if heads == "weighted" and "per" in options:
        return  # there is one weight per layer
    dtype, down, up = case

    def updates(dtype: torch.dtype, scale: float, *weights: float) -> list[Tensor]:
        plain, batch = small_problem(2, dtype=dtype)

        def losses(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
            z, outputs = model(x)
            wide = torch.promote_types(dtype, torch.float32)
            return torch.stack([scale * (y - k).square().mean().to(wide) for k, y in enumerate(outputs)]), z

        problem = Problem(plain.model, losses, shared="trunk", tasks=plain.tasks)
        optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.0)
        step(problem, batch, optimizer, Fixed(*weights), heads=heads, **options)
        return [p.grad.double() for p in plain.model.parameters() if p.grad is not None]

    found = updates(dtype, 2.0**down, 2.0**up, 2.0 ** (up - 1))
    # By numbers of ordinary size; where the heads follow their own losses, these are not weighted.
    wanted = updates(torch.float64, 1.0, 1.0, 0.5)
    n_shared = 4
    for k, (mine, right) in enumerate(zip(found, wanted, strict=True)):
        power = down + up if k < n_shared or heads == "weighted" else down
        rtol = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(mine / 2.0**power, right, rtol=rtol, atol=rtol * float(right.abs().max()))


def test_many_entries_within_half_precision_have_a_norm_beyond_it() -> None:
    model = nn.Module()
    model.shared = nn.Parameter(torch.ones(20_000, dtype=torch.float16))
    problem = Problem(
        model,
        lambda model, x: torch.stack([model.shared.float().sum() * factor for factor in (1e3, -5e2)]),
        shared=[model.shared],
        tasks=("a", "b"),
    )
    report = step(problem, None, torch.optim.SGD(model.parameters(), lr=0.0), Fixed(1.0, 1.0))
    assert report.gramian is not None
    assert float(report.gramian[0, 0].sqrt()) > torch.finfo(torch.float16).max
    assert model.shared.grad.tolist() == [500.0] * 20_000


@pytest.mark.parametrize("narrow", [torch.float16, torch.float32])
@pytest.mark.parametrize("how", ["update", "weights", "gramian"])
def test_an_update_has_to_fit_in_the_narrowest_of_its_parameters(narrow: torch.dtype, how: str) -> None:
    problem, batch = small_problem(2, dtype=torch.float64)
    model = problem.model
    model.trunk[2].to(narrow)

    def losses(model: Any, x: Tensor) -> list[Tensor]:
        last = model.trunk[2]
        z = nn.functional.linear(torch.tanh(model.trunk[0](x)), last.weight.double(), last.bias.double())
        return torch.stack([head(z).square().mean() for head in model.heads])

    mixed = Problem(model, losses, shared="trunk", tasks=problem.tasks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    large = 1e3 * torch.finfo(narrow).max
    method: Any = Fixed(large, large) if how != "update" else lambda jacobian: large * jacobian.double().sum(0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidInputError, match=rf"fits in {narrow}|must have a finite gradient"):
        step(mixed, batch, optimizer, method, keep="gramian" if how == "gramian" else "jacobian")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


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


@pytest.mark.parametrize("scale", [1e-44, 1e-42, 1e-37, 1e-30, 1e-20, 1.0, 1e18])
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
    # Numbers next to zero are multiples of the smallest one; a backward pass rounds a few times.
    step_size = 1.5e-45 / scale
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-4, atol=1e-6 + 8.0 * step_size)


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


@pytest.mark.parametrize(
    ("scalar", "got"),
    [
        (lambda losses: (losses * 1j).sum(), "got torch.complex128"),
        (lambda losses: losses.detach().sum(), "got one that none of them reaches"),
        (lambda losses: torch.tensor(1.0), "got one that none of them reaches"),
        (lambda losses: 2.0 * torch.zeros((), requires_grad=True), "got one that none of them reaches"),
    ],
)
def test_a_scalar_of_losses_that_has_no_derivative_by_them(scalar: Any, got: str) -> None:
    class Scalar:
        needs = "losses"

        def __call__(self, losses: Tensor) -> Tensor:
            found: Tensor = scalar(losses)
            return found

    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match=f"Scalar must return a real scalar .* computed from the losses, {got}"):
        step(problem, batch, optimizer, Scalar())


@pytest.mark.parametrize(("keep", "broken"), [("jacobian", False), ("jacobian", True), ("gramian", False)])
def test_squares_that_leave_float64_are_told_from_gradients_that_are_not_finite(keep: Keep, broken: bool) -> None:
    theta = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    # The square root of zero has an infinite slope.
    losses = [theta.sum(), 1e170 * theta[0], (theta[1] - 2.0).clamp(min=0.0).sqrt() if broken else theta[1]]
    grads = collect(losses, [theta], keep=keep, tasks=("a", "b", "c"))
    with pytest.raises(NonFiniteGradientError, match=r"of tasks \['b'\] must stay below 1\.8e308.*small constant"):
        _ = grads.host_gramian
