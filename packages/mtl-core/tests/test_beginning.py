"""What every step begins with, for each kind of method: one clear refusal, before anything moves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_core import InvalidInputError, MicroBatches, NonFiniteGradientError, NonFiniteLossError, Problem, collect, step
from mtl_core.errors import NonFiniteGradientError as SameError
from mtl_core.testing import faulty_problem, small_problem


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


class Total:
    needs = "losses"
    takes_present = True

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return losses.sum()


class Weighted(Total):
    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return (losses * torch.arange(1.0, 1.0 + len(losses), dtype=losses.dtype)).sum()


KINDS: dict[str, Callable[[], Any]] = {
    "weighting": Equal,
    "unit losses": Total,
    "weighted losses": Weighted,
    "aggregator": lambda: lambda jacobian: jacobian.sum(0),
}
ROUTES: list[dict[str, Any]] = [{}, {"keep": "gramian"}, {"chunk_size": 2}, {"heads": "weighted"}]


def unmoved(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_must_be_enabled(kind: str, context: Any) -> None:
    problem, batch = small_problem()
    before = values(problem.model)
    with context(), pytest.raises(InvalidInputError, match=rf"enabled.*got torch\.{context.__name__}"):
        step(problem, batch, torch.optim.SGD(problem.model.parameters(), lr=0.1), KINDS[kind]())
    assert unmoved(problem.model, before)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_made_in_inference_mode(kind: str) -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    problem = Problem(model, lambda model, x: model(x).square().mean(0), shared=model, tasks=("a", "b"))
    with pytest.raises(InvalidInputError, match=r"made in inference mode.*weight"):
        step(problem, torch.ones(1, 2), torch.optim.SGD(model.parameters(), lr=0.1), KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["trunk", "heads"])
def test_hooks_that_update_during_the_backward_pass(kind: str, part: str) -> None:
    problem, batch = small_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    before = values(problem.model)
    parameter = next(getattr(problem.model, part).parameters())
    handle = parameter.register_post_accumulate_grad_hook(lambda p: p.data.add_(1.0))
    with pytest.raises(InvalidInputError, match=rf"got a hook after accumulation on {part}.*handle\.remove"):
        step(problem, batch, optimizer, KINDS[kind]())
    assert unmoved(problem.model, before)
    handle.remove()
    step(problem, batch, optimizer, KINDS[kind]())
    assert not unmoved(problem.model, before)


class DistributedDataParallel(nn.Module):
    """What a wrapper is known by: any library's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found


class Deep(DistributedDataParallel):
    """A subclass is one as well."""


def wrappers() -> dict[str, Callable[[nn.Module], nn.Module]]:
    return {
        "data parallel": nn.DataParallel,
        "by name": DistributedDataParallel,
        "by base": Deep,
        "compiled": lambda module: torch.compile(DistributedDataParallel(module)),
        "deep": lambda module: nn.Sequential(nn.Identity(), nn.Sequential(DistributedDataParallel(module))),
    }


@pytest.mark.parametrize("wrap", wrappers())
@pytest.mark.parametrize("where", ["whole", "trunk", "head"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_wrappers_at_every_depth(wrap: str, where: str, when: str) -> None:
    def losses(model: Any, x: Tensor) -> Tensor:
        return torch.stack([model.head(model.trunk(x)).square().mean(), model.trunk(x).square().mean()])

    def put(model: Any) -> Any:
        if where == "whole":
            return wrappers()[wrap](model)
        setattr(model, where, wrappers()[wrap](getattr(model, where)))
        return model

    model: Any = nn.Module()
    model.trunk, model.head = nn.Linear(2, 2), nn.Linear(2, 1)
    expected = r"`model` must be the bare module, got (DataParallel|DistributedDataParallel)"
    if when == "before" or where == "whole":
        parameters = list(model.parameters())
        with pytest.raises(InvalidInputError, match=expected):
            Problem(put(model), losses, shared=parameters, tasks=("a", "b"))
        return
    problem = Problem(model, losses, shared=model.trunk, tasks=("a", "b"))
    put(model)
    with pytest.raises(InvalidInputError, match=expected + f" at '{where}"):
        step(problem, torch.ones(1, 2), torch.optim.SGD(model.parameters(), lr=0.1), Equal())


@pytest.fixture
def one_rank() -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("one_rank")
def test_data_parallelism_without_a_wrapper(when: str) -> None:
    """Composable data parallelism leaves the module where it is and changes its class."""
    from torch.distributed._composable import replicate

    problem, batch = small_problem()
    trunk: Any = problem.model.trunk
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)

    def again() -> Problem:
        return Problem(problem.model, lambda model, x: model(x), shared=trunk, tasks=problem.tasks)

    replicate(trunk)
    begin = again if when == "before" else lambda: step(problem, batch, optimizer, Equal())
    with pytest.raises(InvalidInputError, match=r"got DDP at 'trunk'.*Leave out replicate\(\)"):
        begin()


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_not_made_yet(kind: str) -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.Linear(3, 2))
    problem = Problem(model, lambda model, x: model(x).square().mean(0), shared=model, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidInputError, match=r"parameters must be made.*got 0\.weight, 0\.bias.*model\(batch\)"):
        step(problem, torch.ones(2, 4), optimizer, KINDS[kind]())
    model(torch.ones(2, 4))
    before = values(model)
    step(problem, torch.ones(2, 4), optimizer, KINDS[kind]())
    assert not unmoved(model, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ROUTES, ids=str)
@pytest.mark.parametrize("fault", ["nan loss", "nan gradient", "nan head"])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("in_parts", [False, True])
def test_what_is_not_finite_is_refused_by_task(
    kind: str, options: dict[str, Any], fault: Any, features: bool, in_parts: bool
) -> None:
    if kind == "aggregator" and (options.get("heads") == "weighted" or "keep" in options):
        return
    if in_parts and "keep" in options and "losses" not in kind:
        return  # a Gramian alone cannot be accumulated
    problem, net, batch = faulty_problem(features=features)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = values(net)
    net.fault, net.at = fault, None
    error = NonFiniteLossError if fault == "nan loss" else NonFiniteGradientError
    with pytest.raises(error, match="task1") as caught:
        step(problem, MicroBatches(batch.chunk(2)) if in_parts else batch, optimizer, KINDS[kind](), **options)
    assert caught.value.tasks == ("task1",)
    assert unmoved(net, before)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", ["unit losses", "weighted losses"])
def test_looking_at_gradients_can_be_turned_off(kind: str) -> None:
    problem, net, batch = faulty_problem()
    net.fault, net.at = "nan head", None
    step(problem, batch, torch.optim.SGD(net.parameters(), lr=0.1), KINDS[kind](), check_gradients=False)
    assert not bool(torch.isfinite(net.heads[1].weight).all())
    assert bool(torch.isfinite(net.heads[0].weight).all())


@pytest.mark.parametrize("features", [False, True])
def test_collect_refuses_a_heads_gradient_before_it_writes_any(features: bool) -> None:
    problem, net, batch = faulty_problem(features=True)
    net.fault, net.at = "nan head", None
    losses = problem.losses(batch)
    with pytest.raises(SameError, match=r"of the heads of tasks \['1'\]"):
        collect(losses.outputs, problem.shared, heads=problem.heads, features=losses.features if features else None)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_large_but_finite_gradients_are_finite(kind: str) -> None:
    """The flag is a sum, which overflows in single precision where no entry does; whoever sees it looks again."""
    model = nn.ModuleDict({"trunk": nn.Linear(2, 2, bias=False), "a": nn.Linear(2, 64), "b": nn.Linear(2, 1)})
    with torch.no_grad():
        model["trunk"].weight.fill_(1e-3)
        model["a"].weight.zero_()  # so that nothing large enters the trunk

    def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
        z = model["trunk"](x)
        return {"a": model["a"](z).sum() * 500.0, "b": model["b"](z * 1e-35).sum()}

    problem = Problem(model, losses, shared=model["trunk"], tasks=("a", "b"))
    seen: list[Tensor] = []

    def look(parameters: Any) -> None:
        seen.extend(p.grad for p in parameters if p is model["a"].weight)

    x = torch.full((1, 2), 1e38)
    step(problem, x, torch.optim.SGD(model.parameters(), lr=0.0), KINDS[kind](), clip=look)
    assert bool(torch.isfinite(seen[0]).all())
    assert not bool(torch.isfinite(seen[0].sum()))


def far(model: Any, x: Tensor) -> Tensor:
    """Losses of which the scaled values overflow; the scaled gradients do so for large inputs only."""
    return model(x).mean(0) * 1e-2 + torch.tensor([100.0, 200.0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_scale_that_has_grown_is_no_fault_of_the_loss(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    problem = Problem(model, far, shared=model, tasks=("a", "b"))
    before = values(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert not torch.isfinite(problem.losses(torch.ones(1, 2)).values * 2.0**124).all()
    report = step(problem, torch.ones(1, 2), optimizer, KINDS[kind](), scaler=scaler)
    assert report.events == ()
    scale = torch.tensor([1.0, 2.0]) if kind == "weighted losses" else torch.ones(2)
    torch.testing.assert_close(before[1] - model.bias.detach(), 1e-2 * scale, rtol=1e-3, atol=1e-5)

    before = values(model)
    report = step(problem, torch.full((1, 2), 1e5), optimizer, KINDS[kind](), scaler=scaler)
    assert [event.kind for event in report.events] == ["skipped_update"]
    assert scaler.get_scale() == 2.0**123
    assert bool(torch.isfinite(report.losses).all())
    assert unmoved(model, before)


def test_a_scripted_model_trains_and_says_what_it_cannot() -> None:
    model: Any = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))
    problem = Problem(model, lambda model, x: model(x).square().mean(0), shared=model, tasks=("a", "b"))
    before = values(model)
    for kind in KINDS:
        step(problem, torch.ones(2, 2), torch.optim.SGD(model.parameters(), lr=0.1), KINDS[kind]())
    assert not unmoved(model, before)
    with pytest.raises(InvalidInputError, match="must not be scripted to be evaluated at other parameters"):
        problem.losses(torch.ones(2, 2), parameters={})


class NotBatched(torch.autograd.Function):
    """A function without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * x.detach().numpy()) * gradients[0] * float(gradients[0].sum().item() != 0.5)


@pytest.mark.parametrize("features", [False, True])
def test_an_operation_that_cannot_be_batched(features: bool) -> None:
    trunk = nn.Linear(2, 2)
    z = NotBatched.apply(trunk(torch.ones(1, 2)))  # type: ignore[no-untyped-call]
    losses = [z.sum(), z.square().sum(), z.sum() * 3]
    with pytest.raises(InvalidInputError, match="`chunk_size` must be 1 for an operation"):
        collect(losses, trunk.parameters(), chunk_size=2, features=z if features else None, retain_graph=True)
    assert collect(losses, trunk.parameters(), features=z if features else None).n_tasks == 3
