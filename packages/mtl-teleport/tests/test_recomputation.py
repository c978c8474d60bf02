"""Models that recompute activations in the backward pass: a search moves them as it would have moved them without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from mtl_core import InvalidInputError, MicroBatches, Problem, step
from mtl_core.extension import Trace, collect_problem
from mtl_teleport import COST, LoHa, LoRA, PeftLoRA, TeleportReport
from mtl_teleport.conditions import Conditions
from mtl_teleport.double_backward import twice_differentiable
from mtl_teleport.sharpness import AscentSharpness, ExactSharpness, Point, RandomSharpness, Sharpness
from mtl_teleport.triggers import Trigger


class Always(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return True


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.view(len(x), 1, 6).expand(len(x), 3, 6)).mean(1)
        return found


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 6, (2, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.norm(self.conv(x.view(len(x), 1, 2, 3))))).flatten(1)
        return found


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())


def _dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 6), nn.Tanh(), nn.Dropout(0.3))


def _plain(trunk: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = trunk(x)
    return found


def _checkpointed(trunk: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(trunk, x, use_reentrant=False)
    return found


def _nested(trunk: nn.Module, x: Tensor) -> Tensor:
    def outer(y: Tensor) -> Tensor:
        z: Tensor = checkpoint(trunk, y, use_reentrant=False)
        return torch.tanh(z)

    found: Tensor = checkpoint(outer, x, use_reentrant=False)
    return found


def _nested_plain(trunk: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(trunk(x))


def _segments(trunk: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(trunk, nn.Sequential)
    found: Tensor = checkpoint_sequential(trunk, 2, x, use_reentrant=False)
    return found


Route = Callable[[nn.Module, Tensor], Tensor]

CASES: dict[str, tuple[Callable[[], nn.Module], Route, Route]] = {
    "mlp": (_mlp, _checkpointed, _plain),
    "convolution": (Convolution, _checkpointed, _plain),
    "attention": (Attention, _checkpointed, _plain),
    "nested": (_mlp, _nested, _nested_plain),
    "dropout": (_dropout, _checkpointed, _plain),
    "sequential": (_mlp, _segments, _plain),
}
ESTIMATES: dict[str, Sharpness] = {
    "random": RandomSharpness(2, 1e-2),
    "ascent": AscentSharpness(1e-2),
    "exact": ExactSharpness(),
}


def _problem(make: Callable[[], nn.Module], route: Route) -> tuple[Problem, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.ModuleDict({"trunk": make(), "a": nn.Linear(6, 1), "b": nn.Linear(6, 1)}).double()
        x = torch.randn(16, 6, dtype=torch.float64)

    def losses(m: nn.Module, batch: Tensor) -> Tensor:
        z = route(m.get_submodule("trunk"), batch)
        return torch.stack([5 * (m.get_submodule(n)(z) - t).square().mean() for n, t in (("a", 1.0), ("b", -1.0))])

    return Problem(model, losses, shared="trunk", tasks=("a", "b")), x


def _displacement(make: Callable[[], nn.Module], route: Route, cost: COST) -> dict[str, Tensor]:
    problem, x = _problem(make, route)
    start = {n: p.detach().clone() for n, p in problem.named_shared.items()}
    torch.manual_seed(1)
    trace = Trace(problem.model)
    gradients = collect_problem(problem, problem.losses(x))
    trace.restore()  # a recomputed batch norm has moved its running statistics twice
    report = cost.teleport(problem, [x], gradients, lr=1e-3)
    assert report.accepted, report.reason
    return {n: p.detach() - start[n] for n, p in problem.named_shared.items()}


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert any(bool(delta.any()) for delta in expected.values())
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("adapter", ["LoRA", "PeftLoRA"])
@pytest.mark.parametrize("search", ["projected", "penalty"])
@pytest.mark.parametrize("sharpness", ["random", "ascent", "exact"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_displacement_as_without(case: str, sharpness: Any, search: Any, adapter: str) -> None:
    if adapter == "PeftLoRA":
        pytest.importorskip("peft")
        if case == "attention":
            pytest.skip("PEFT adapts linear and convolutional layers only")
    make, checkpointed, plain = CASES[case]

    def cost() -> COST:
        return COST(
            sharpness=sharpness,
            search=search,
            radius=None if sharpness == "exact" else 1e-2,
            adapter=LoRA(rank=2) if adapter == "LoRA" else PeftLoRA(rank=2),
            max_steps=3,
            aim=None,
            conflict_weight=0.1 if search == "projected" else 0.0,
            max_drift=None,
        )

    _same(_displacement(make, checkpointed, cost()), _displacement(make, plain, cost()))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_defaults(mode: Any) -> None:
    """With attention inside, default settings raised torch's ``CheckpointError``."""
    for make, checkpointed, plain in (CASES["attention"], CASES["convolution"]):
        _same(
            _displacement(make, checkpointed, COST(max_steps=4, mode=mode, max_drift=None)),
            _displacement(make, plain, COST(max_steps=4, mode=mode, max_drift=None)),
        )


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("case", CASES)
def test_slopes_at_a_displaced_point(case: str, name: str) -> None:
    """Of each estimate and each task: with the model's own parameters in the recomputation their cosine was .57."""
    make, checkpointed, plain = CASES[case]
    found = []
    for route in (checkpointed, plain):
        problem, x = _problem(make, route)
        problem.model.eval()
        session = LoHa(rank=2).attach(problem, generator=torch.Generator().manual_seed(0))
        model = problem.model
        session.conditions = Conditions(lambda model=model: twice_differentiable(model))  # type: ignore[misc]
        torch.manual_seed(2)
        with torch.no_grad():
            for tensor in session.trainable:
                tensor.add_(0.5 * torch.randn_like(tensor))
        balance = torch.tensor([0.5, 1.5], dtype=torch.float64)
        point = Point.of(session, x, balance, generator=torch.Generator().manual_seed(3))
        slopes = ESTIMATES[name].slopes(point)
        found.append((slopes.gain, *slopes.directions(), slopes.gramian))
    for one, other in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class TestReentrant:
    """Torch cannot take gradients by inputs through it."""

    def _problem(self) -> tuple[Problem, Tensor]:
        def route(trunk: nn.Module, x: Tensor) -> Tensor:
            found: Tensor = checkpoint(trunk, x.requires_grad_(), use_reentrant=True)
            return found

        return _problem(_mlp, route)

    @pytest.mark.parametrize("parts", [1, 2])
    def test_it_is_refused_before_anything_moves(self, parts: int) -> None:
        problem, x = self._problem()
        before = copy.deepcopy(problem.model.state_dict())
        optimizer = torch.optim.Adam(problem.model.parameters())
        cost = COST(trigger=Always(), max_per_epoch=None)
        counters = cost.own_state()["schedule"]
        batch = x if parts == 1 else MicroBatches([x, x])
        with pytest.raises(InvalidInputError, match="use_reentrant=False to checkpoint"):
            step(problem, batch, optimizer, cost)
        assert all(torch.equal(v, before[n]) for n, v in problem.model.state_dict().items())
        assert not optimizer.state
        assert cost.own_state()["schedule"] == counters

    @pytest.mark.parametrize("make", [LoRA, LoHa])
    def test_a_session_by_itself(self, make: Any) -> None:
        """Its gradients were zero, as those of parameters that no loss depends on."""
        problem, x = self._problem()
        with make(rank=2).attach(problem) as session:
            session.evaluate_without_graph(x, parameters=session.parameters())
            with pytest.raises(InvalidInputError, match="use_reentrant=False to checkpoint"):
                session.evaluate(x)

    def test_the_advice_works(self) -> None:
        problem, x = _problem(_mlp, _checkpointed)
        optimizer = torch.optim.Adam(problem.model.parameters())
        (report,) = step(problem, x, optimizer, COST(trigger=Always(), max_per_epoch=None)).events
        assert isinstance(report, TeleportReport)
        assert report.accepted


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", ["random", "ascent"])
def test_a_compiled_trunk(sharpness: Any) -> None:
    def compiled(trunk: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = torch.compile(trunk, backend="aot_eager")(x)
        return found

    def cost() -> COST:
        return COST(sharpness=sharpness, radius=1e-2, max_steps=3, aim=None, max_drift=None)

    _same(_displacement(_mlp, compiled, cost()), _displacement(_mlp, _plain, cost()))


@pytest.mark.slow
def test_a_compiled_trunk_that_is_to_be_differentiated_twice() -> None:
    def compiled(trunk: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = torch.compile(trunk, backend="aot_eager")(x)
        return found

    problem, x = _problem(_mlp, compiled)
    gradients = collect_problem(problem, problem.losses(x))
    with pytest.raises(InvalidInputError, match="sharpness='ascent'"):
        COST().teleport(problem, [x], gradients, lr=1e-3)
