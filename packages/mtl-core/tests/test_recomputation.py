"""Models that recompute activations: equal to those that save them, or refused before a gradient is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from mtl_core import InvalidInputError, MicroBatches, NoMatchError, Problem, collect, collect_per_task, step
from mtl_core.extension import evaluate_without_graph, placed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def made() -> Any:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh())
    return nn.ModuleDict({"trunk": trunk, "a": nn.Linear(3, 1), "b": nn.Linear(3, 1)}).double()


def batch() -> Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


Trunk = Callable[[Any, Tensor], Any]


def plain(trunk: Any, x: Tensor) -> Any:
    return trunk(x)


def whole(trunk: Any, x: Tensor) -> Any:
    return checkpoint(trunk, x, use_reentrant=False)


def first(trunk: Any, x: Tensor) -> Any:
    return trunk[1:](checkpoint(trunk[0], x, use_reentrant=False))


def nested(trunk: Any, x: Tensor) -> Any:
    return checkpoint(lambda u: trunk[2:](checkpoint(trunk[:2], u, use_reentrant=False)), x, use_reentrant=False)


def segments(trunk: Any, x: Tensor) -> Any:
    return checkpoint_sequential(trunk, 2, x, use_reentrant=False)


def reentrant(trunk: Any, x: Tensor) -> Any:
    return checkpoint(trunk, x.clone().requires_grad_(), use_reentrant=True)


def reentrant_first(trunk: Any, x: Tensor) -> Any:
    return trunk[1:](checkpoint(trunk[0], x.clone().requires_grad_(), use_reentrant=True))


def reentrant_last(trunk: Any, x: Tensor) -> Any:
    return checkpoint(trunk[2:], trunk[:2](x), use_reentrant=True)


def reentrant_tied(trunk: Any, x: Tensor) -> Any:
    inside = checkpoint(lambda u: u @ trunk[2].weight, x.clone().requires_grad_(), use_reentrant=True)
    return trunk(x) + inside[:, :3]


HOOKED: dict[str, Trunk] = {"whole": whole, "first": first, "nested": nested, "segments": segments}
REENTRANT: dict[str, Trunk] = {
    "whole": reentrant,
    "first": reentrant_first,
    "last": reentrant_last,
    "tied": reentrant_tied,
}
ALL = {**{f"hooked {n}": f for n, f in HOOKED.items()}, **{f"reentrant {n}": f for n, f in REENTRANT.items()}}


def problem_of(trunk: Trunk, *, features: bool = False) -> Problem:
    def losses(model: Any, x: Tensor) -> Any:
        z = trunk(model["trunk"], x)
        found = {"a": model["a"](z).square().mean(), "b": (model["b"](z) - 2.0).square().mean()}
        return (found, z) if features else found

    return Problem(made(), losses, shared="trunk", tasks=("a", "b"))


def point_of(problem: Problem) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: (p.detach() + torch.randn(p.shape, dtype=p.dtype, generator=generator)).requires_grad_()
        for name, p in problem.named_shared.items()
    }


class TestAtReplacedParameters:
    @pytest.mark.parametrize("trunk", ALL)
    def test_refused_before_there_is_a_gradient(self, trunk: str) -> None:
        """Gradients came out with a cosine of .68 with the right ones, or as none, without a word."""
        problem = problem_of(ALL[trunk])
        before = [p.detach().clone() for p in problem.model.parameters()]
        with pytest.raises(
            InvalidInputError, match=r"got torch\.utils\.checkpoint, .*within mtl_core\.extension\.placed"
        ):
            problem.losses(batch(), parameters=point_of(problem))
        assert all(p.grad is None for p in problem.model.parameters())
        assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))
        # What was switched off for it is on again.
        assert problem.losses(batch()).values.requires_grad

    @pytest.mark.parametrize("trunk", HOOKED)
    def test_the_advice_is_right(self, trunk: str) -> None:
        right, problem = problem_of(plain), problem_of(HOOKED[trunk])
        point = point_of(problem)
        expected = torch.autograd.grad(
            right.losses(batch(), parameters=point).values.sum(), list(point.values()), materialize_grads=True
        )
        with placed(problem.model, point):
            found = torch.autograd.grad(problem.losses(batch()).values.sum(), list(point.values()))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("trunk", ALL)
    def test_values_alone(self, trunk: str) -> None:
        problem = problem_of(ALL[trunk])
        point = point_of(problem)
        expected = problem_of(plain if trunk != "reentrant tied" else reentrant_tied)
        with torch.no_grad(), placed(expected.model, point):
            right = expected.losses(batch()).values
            assert torch.equal(problem.losses(batch(), parameters=point).values, right)
        assert torch.equal(evaluate_without_graph(problem, batch(), parameters=point).values, right)

    def test_losses_that_differentiate_by_themselves(self) -> None:
        """Their backward pass is over before the model's own parameters are back."""

        def slopes(trunk: Trunk) -> Problem:
            def losses(model: Any, x: Tensor) -> Tensor:
                u = x.clone().requires_grad_()
                (slope,) = torch.autograd.grad(trunk(model["trunk"], u).sum(), u, create_graph=True)
                return torch.stack([slope.square().mean(), (slope - 1.0).square().mean()])

            return Problem(made(), losses, shared="trunk", tasks=("a", "b"))

        right, problem = slopes(plain), slopes(whole)
        point = point_of(problem)
        expected = evaluate_without_graph(right, batch(), parameters=point).values
        found = evaluate_without_graph(problem, batch(), parameters=point).values
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        with pytest.raises(InvalidInputError, match=r"got torch\.utils\.checkpoint"):
            problem.losses(batch(), parameters=point)

    def test_other_hooks_on_saved_tensors(self) -> None:
        def losses(model: Any, x: Tensor) -> Tensor:
            with torch.autograd.graph.save_on_cpu():
                return torch.stack([model(x).square().mean(), model(x).sum()])

        model = nn.Linear(3, 1).double()
        problem = Problem(model, losses, shared=model, tasks=("a", "b"))
        with pytest.raises(InvalidInputError, match=r"got torch\.autograd\.graph\.saved_tensors_hooks"):
            problem.losses(batch(), parameters=point_of(problem))

    def test_an_error_of_the_losses_is_left_as_it_is(self) -> None:
        def losses(model: Any, x: Tensor) -> Tensor:
            raise RuntimeError("the user's own")

        problem = Problem(made(), losses, shared="trunk", tasks=("a", "b"))
        with pytest.raises(RuntimeError, match="the user's own"):
            problem.losses(batch(), parameters=point_of(problem))

    @pytest.mark.parametrize("name", ["trunk.0.wight", "trunk.9.weight", "wight", "trunk"])
    def test_a_name_that_the_model_does_not_have(self, name: str) -> None:
        """Most were passed over, and the losses were those of the model's own parameters."""
        problem = problem_of(plain)
        with pytest.raises(NoMatchError, match=rf"got \['{name}'\]\. Names: trunk\.0\.weight"):
            problem.losses(batch(), parameters={name: torch.ones(4, 3).double()})

    def test_buffers_may_be_replaced(self) -> None:
        model = nn.BatchNorm1d(3).double().eval()
        problem = Problem(model, lambda m, x: m(x).mean(0), shared=model, tasks=("a", "b", "c"))
        shifted = problem.losses(batch(), parameters={"running_mean": torch.ones(3).double()}).values
        torch.testing.assert_close(shifted, problem.losses(batch()).values - 1.0, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("trunk", [*HOOKED.values(), reentrant_last], ids=lambda f: f.__name__)
def test_data_of_each_task(trunk: Trunk) -> None:
    """Torch said that its transforms do not support what the model does, or named a method of an internal class."""
    model = made()

    def loss(model: Any, x: Tensor) -> Any:
        return model["a"](trunk(model["trunk"], x)).square().mean()

    with pytest.raises(InvalidInputError, match=r"got torch\.utils\.checkpoint, .*collect\(\) of one loss per task"):
        collect_per_task(model, loss, [batch(), batch()], shared=[*model["trunk"].parameters()])


class Weights:
    """A weighting by the Gramian."""

    def weights(self, gramian: Tensor) -> Tensor:
        return torch.full((len(gramian),), 0.5, dtype=torch.float64)


class OfLosses:
    """A weighting of losses."""

    needs = "losses"
    takes_present = False

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


METHODS: dict[str, Callable[[], Any]] = {
    "gramian": Weights,
    "loss": OfLosses,
    "jacobian": lambda: lambda jacobian: jacobian.mean(0),
}


class TestReentrant:
    """Torch passes over such a checkpoint where nothing below it has a gradient, and so over what lies inside."""

    @pytest.mark.parametrize("options", [{}, {"keep": "gramian"}, {"features": True}, {"parts": 2}], ids=str)
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("trunk", REENTRANT)
    @pytest.mark.parametrize("later", [False, True])
    def test_a_step(self, trunk: str, method: str, options: dict[str, Any], later: bool) -> None:
        given = dict(options)
        features, parts = given.pop("features", False), given.pop("parts", 1)
        if method == "jacobian" and given:
            pytest.skip("needs the Jacobian")
        if later and trunk == "tied":
            pytest.skip("it has a gradient by its other use, and is looked for in the first step")
        route = [plain if later else REENTRANT[trunk]]
        problem = problem_of(lambda t, x: route[0](t, x), features=features)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        x: Any = batch() if parts == 1 else MicroBatches([batch()] * parts)
        if later:
            step(problem, x, optimizer, METHODS[method](), **given)
            route[0] = REENTRANT[trunk]
        before = [p.detach().clone() for p in problem.model.parameters()]
        with pytest.raises(InvalidInputError, match="use_reentrant=False to checkpoint"):
            step(problem, x, optimizer, METHODS[method](), **given)
        assert all(torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True))

    @pytest.mark.parametrize("keep", ["jacobian", "gramian"])
    @pytest.mark.parametrize("trunk", [name for name in REENTRANT if name != "tied"])
    def test_gradients_by_themselves(self, trunk: str, keep: Any) -> None:
        model = made()
        z = REENTRANT[trunk](model["trunk"], batch())
        with pytest.raises(InvalidInputError, match="use_reentrant=False to checkpoint"):
            collect([model["a"](z).sum(), model["b"](z).sum()], model["trunk"].parameters(), keep=keep)

    @pytest.mark.parametrize("method", METHODS)
    def test_the_advice_is_right(self, method: str) -> None:
        found = []
        for route in (plain, first, whole):
            problem = problem_of(route)
            optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
            step(problem, batch(), optimizer, METHODS[method]())
            found.append(torch.cat([p.detach().flatten() for p in problem.model.parameters()]))
        torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-14)

    def test_a_parameter_that_nothing_uses_is_no_sign_of_one(self) -> None:
        problem = problem_of(lambda trunk, x: trunk[:2](x)[:, :3])
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        for method in METHODS.values():
            report = step(problem, batch(), optimizer, method())
            assert report.skipped == ("trunk.2.weight", "trunk.2.bias")
