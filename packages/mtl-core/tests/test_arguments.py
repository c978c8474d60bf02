"""What ``collect`` is given: features, shared parameters and heads, in every form and every mode."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_core import (
    InvalidInputError,
    InvalidParameterError,
    MicroBatches,
    Problem,
    TaskSampling,
    UpdateEvery,
    checks,
    collect,
    step,
)
from mtl_core.extension import FixedWeights, Wrapper
from mtl_core.report import Keep
from mtl_core.testing import TwoLayers, reference_jacobian, small_problem

MODES: list[dict[str, Any]] = [{}, {"chunk_size": 2}, {"keep": "gramian"}]
THETA = [1.0, 2.0]


def two_losses(form: str) -> tuple[nn.Parameter, list[Tensor], Any]:
    """Losses of two tensors of which one is computed from the other, and features in a given form."""
    theta = nn.Parameter(torch.tensor(THETA))
    low = theta**2
    high = low.sum() * torch.tensor([1.0, 2.0])
    losses = [low.sum() + high[0], low[0] * high[1]]
    forms: dict[str, Any] = {
        "both": [low, high],
        "other order": [high, low],
        "low": low,
        "low twice": [low, low],
        "low and a view": (low, low.view(1, 2)),
        "mapping": {"low": low, "more": {"high": high, "nothing": None}},
        "none": None,
    }
    return theta, losses, forms[form]


@pytest.mark.parametrize("form", ["both", "other order", "low", "low twice", "low and a view", "mapping", "none"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_features_that_depend_on_one_another_count_once(form: str, mode: dict[str, Any]) -> None:
    theta, losses, features = two_losses(form)
    grads = collect(losses, [theta], features=features, **mode)
    expected = torch.tensor([[4.0, 8.0], [24.0, 8.0]])
    torch.testing.assert_close(grads.gramian, (expected @ expected.T).double())
    torch.testing.assert_close(grads.combine(torch.tensor([1.0, 0.0])), expected[0])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_feature_with_a_way_of_its_own_past_another_is_refused(mode: dict[str, Any]) -> None:
    theta = nn.Parameter(torch.tensor(THETA))
    low = theta**2
    high = low * theta  # by low, and by theta itself
    with pytest.raises(InvalidInputError, match=r"entry 1, which depends on entries \[0\] and on the trunk besides"):
        collect([low.sum(), high.sum()], [theta], features=[low, high], **mode)


def test_a_feature_through_a_head_is_left_out() -> None:
    """What lies between two features may belong to a head: then the upper one adds nothing to the cut."""
    theta, head = nn.Parameter(torch.tensor(THETA)), nn.Parameter(torch.tensor([3.0, 5.0]))
    low = theta**2
    high = low * head
    grads = collect([low.sum(), high.sum()], [theta], features=[low, high], heads=[head])
    assert grads.matrix.tolist() == [[2.0, 4.0], [6.0, 20.0]]
    assert head.grad is not None
    assert head.grad.tolist() == [1.0, 4.0]


def test_the_advice_about_a_bypass_is_good() -> None:
    theta = nn.Parameter(torch.tensor(THETA))
    low = theta**2
    high = low.sum() * torch.tensor([1.0, 2.0])
    losses = [low.sum() + high[0], low[0] * high[1]]
    with pytest.raises(InvalidInputError, match="Give in addition the tensor by which they get past"):
        collect(losses, [theta], features=high, retain_graph=True)
    assert collect(losses, [theta], features=[high, low]).matrix.tolist() == [[4.0, 8.0], [24.0, 8.0]]


def features_of(form: str, z: Tensor) -> Any:
    return {
        "tensor": z,
        "mapping": {"z": z},
        "nested": [{"z": (z,)}, None],
        "none": None,
        "empty": (),
        "detached": z.detach(),
        "partly detached": {"z": z, "x": z.detach()},
        "number": 3,
    }[form]


class UnitWeights:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


class Total:
    needs = "losses"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


METHODS: list[Callable[[], Any]] = [UnitWeights, Total, lambda: lambda jacobian: jacobian.sum(0)]


@pytest.mark.parametrize(
    "form", ["tensor", "mapping", "nested", "none", "empty", "detached", "partly detached", "number"]
)
@pytest.mark.parametrize("make", METHODS, ids=["weighting", "losses", "aggregator"])
def test_every_method_takes_and_refuses_the_same_features(form: str, make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = TwoLayers(2)

    def losses(model: nn.Module, x: Tensor) -> Any:
        z, outputs = model(x)
        found = {name: y.square().mean() for name, y in zip("ab", outputs, strict=True)}
        return found, features_of(form, z)

    problem = Problem(model, losses, shared=model.trunk, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.ones(3, 3, dtype=torch.float64)
    if form in ("tensor", "mapping", "nested", "none"):
        step(problem, x, optimizer, make())
        assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
        return
    with pytest.raises(InvalidInputError, match="`features` must be"):
        step(problem, x, optimizer, make())
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("keep", ["jacobian", "gramian", "features"])
@pytest.mark.parametrize("with_features", [False, True])
def test_a_tied_head_counts_once_however_often_it_is_named(keep: Keep, with_features: bool) -> None:
    if keep == "features" and not with_features:
        return
    trunk, tied = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        trunk.weight.copy_(torch.eye(2))
    z = trunk(torch.ones(1, 2))
    losses = [tied(z).sum() * 2, tied(z).sum() * 3]
    heads = [*tied.parameters(), *tied.parameters()]
    grads = collect(losses, trunk.parameters(), features=z if with_features else None, heads=heads, keep=keep)
    assert tied.weight.grad is not None
    assert tied.weight.grad.tolist() == [[5.0, 5.0]]
    assert grads.n_tasks == 2


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("features", [False, True])
def test_shared_and_heads_are_disjoint(mode: dict[str, Any], features: bool) -> None:
    problem, batch = small_problem(3, features=True)
    losses = problem.losses(batch)
    with pytest.raises(InvalidInputError, match=r"`heads` must hold no shared parameter, got 4 that are also"):
        collect(
            losses.outputs,
            problem.shared,
            heads=problem.model.parameters(),
            features=losses.features if features else None,
            **mode,
        )
    assert all(p.grad is None for p in problem.model.parameters())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shared", lambda m: m.trunk[0].weight, "must be parameters, got one tensor"),
        ("shared", lambda m: [m.trunk], "must hold parameters, got Sequential"),
        ("heads", lambda m: [m.heads], "must hold parameters, got ModuleList"),
        ("heads", lambda m: m.heads[0].weight, "must be parameters, got one tensor"),
    ],
)
def test_what_is_no_list_of_parameters(name: str, value: Callable[[Any], Any], message: str) -> None:
    problem, batch = small_problem(2)
    outputs = problem.losses(batch).outputs
    given: dict[str, Any] = {"shared": problem.shared, "heads": (), name: value(problem.model)}
    with pytest.raises(InvalidInputError, match=f"`{name}` {message}"):
        collect(outputs, given["shared"], heads=given["heads"])


def test_every_mode_still_gives_the_plain_jacobian() -> None:
    problem, batch = small_problem(3, features=True)
    expected = reference_jacobian(problem, batch)
    losses = problem.losses(batch)
    found = collect(losses.outputs, [*problem.shared, *problem.shared], features={"z": losses.features})
    torch.testing.assert_close(found.matrix, expected)


WAYS: dict[str, Callable[[Any], Any]] = {
    "step": lambda method: method,
    "UpdateEvery": lambda method: UpdateEvery(method, steps=2),
    "TaskSampling": lambda method: TaskSampling(method, n_tasks=1),
    "Wrapper": Wrapper,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("method", "words"),
    [
        (FixedWeights, r"must be an instance, got the class FixedWeights. Give FixedWeights\(\)"),
        ("MGDA", "got str. Give a method's object, not its name"),
    ],
    ids=["a class", "a name"],
)
def test_what_is_no_method_is_refused_however_it_is_given(way: str, method: Any, words: str) -> None:
    problem, batch = small_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in problem.model.parameters()]
    with pytest.raises(InvalidInputError, match=words):
        step(problem, batch, optimizer, WAYS[way](method))
    assert all(torch.equal(p, b) for p, b in zip(problem.model.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["of a function", "of a method that owns its step"])
@pytest.mark.parametrize(
    ("optimizer", "words"),
    [(torch.optim.SGD, "got the class SGD"), (None, "got NoneType"), ([], "got list")],
    ids=["a class", "none", "a list"],
)
def test_what_is_no_optimizer_is_refused(kind: str, optimizer: Any, words: str) -> None:
    problem, batch = small_problem()
    method: Any = TaskSampling(FixedWeights(), n_tasks=1) if "owns" in kind else lambda jacobian: jacobian.mean(0)
    with pytest.raises(InvalidInputError, match=f"`optimizer` must .*{words}"):
        step(problem, batch, optimizer, method)


@pytest.mark.parametrize("value", ["model", Problem, None], ids=str)
def test_what_is_no_problem_is_refused(value: Any) -> None:
    problem, batch = small_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match=r"`problem` must be an mtl_core\.Problem"):
        step(value, batch, optimizer, FixedWeights())


@pytest.mark.parametrize(
    "options", [{"scaler": torch.amp.GradScaler}, {"scaler": "auto"}, {"group": "gloo"}, {"group": 0}], ids=str
)
def test_what_is_no_scaler_or_group_is_refused(options: dict[str, Any]) -> None:
    problem, batch = small_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(options))}` must be a torch"):
        step(problem, batch, optimizer, FixedWeights(), **options)


def test_losses_that_cannot_be_called_are_refused() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(InvalidInputError, match="`losses` must be a function"):
        Problem(model, model(torch.ones(1, 1)).sum(), shared=model, tasks=["a"])  # type: ignore[arg-type]


@given(value=st.floats(-2, 3), ends=st.sampled_from(["[]", "[)", "(]", "()"]))
@example(value=0.0, ends="(]")
@example(value=1.0, ends="[)")
def test_an_interval_has_the_ends_it_shows(value: float, ends: Any) -> None:
    inside = 0 < value < 1 or (value == 0 and ends[0] == "[") or (value == 1 and ends[1] == "]")
    if inside:
        assert checks.in_interval("x", value, 0, 1, ends) == value
    else:
        with pytest.raises(InvalidParameterError, match=re.escape(f"must lie in {ends[0]}0, 1{ends[1]}")):
            checks.in_interval("x", value, 0, 1, ends)


@pytest.mark.parametrize("keep", ["jacobian", "gramian"])
@pytest.mark.parametrize("micro", [False, True])
def test_a_shared_parameter_without_a_value_is_named_as_such(keep: Any, micro: bool) -> None:
    problem, batch = small_problem(2)
    problem.model.trunk.register_parameter("later", nn.Parameter(torch.ones(4, device="meta")))
    if micro and keep == "gramian":
        pytest.skip("micro-batches are accumulated as Jacobians")
    before = [p.detach().clone() for p in problem.model.parameters() if not p.is_meta]
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match=r"must hold values, got 1 parameter\(s\) on the meta device.*to_empty"):
        step(problem, MicroBatches([batch, batch]) if micro else batch, optimizer, UnitWeights(), keep=keep)
    after = [p.detach() for p in problem.model.parameters() if not p.is_meta]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(InvalidInputError, match="to_empty"):
        collect(list(problem.losses(batch).outputs), list(problem.model.trunk.parameters()))
