"""Whatever goes wrong in a step, everything is as it was before; and the next step is that of a run without the error.

Every method that there is, alone and wrapped, with an error at every stage: in each evaluation of the losses, in the
backward pass, in the weights, between writing and updating, in a teleport's search, and in numbers that are not finite.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from mtl_aggregators import CRMOGM, ThreeBatches, available, log_transform, make
from mtl_core import InvalidInputError, MicroBatches, TaskSampling, UpdateEvery, step
from mtl_core.extension import CountsEpochs, Remembers, offers
from mtl_core.testing import FaultyNet, faulty_problem
from mtl_teleport import COST, RandomTeleport, Trigger
from mtl_teleport.history import HTR


class Always(Trigger):
    """A teleport in every step."""

    def __call__(self, gramian: Tensor) -> bool:
        return True


def cost(method: Any) -> COST:
    return COST(method, trigger=Always(), max_per_epoch=None, max_steps=2, max_drift=None)


def random(method: Any) -> RandomTeleport:
    return RandomTeleport(method, length=0.05, trigger=Always(), max_per_epoch=None)


ALONE: dict[str, Callable[[], Any]] = {name: partial(make, name) for name in available()}
WRAPPED: dict[str, Callable[[], Any]] = {
    "every nashmtl": lambda: UpdateEvery(make("nashmtl"), steps=2),
    "every gradvac": lambda: UpdateEvery(make("gradvac"), steps=3),
    "sampling ls": lambda: TaskSampling(make("ls"), n_tasks=2),
    "sampling famo": lambda: TaskSampling(make("famo"), n_tasks=2),
    "sampling pcgrad": lambda: TaskSampling(make("pcgrad"), n_tasks=2),
    "log famo": lambda: log_transform(make("famo", bound=-50.0)),
    "log gradvac": lambda: log_transform(make("gradvac")),
    "log graddrop": lambda: log_transform(make("graddrop")),
    "log marigold": lambda: log_transform(make("marigold", bound=-50.0)),
    "crmogm imtl": lambda: CRMOGM(make("imtl")),
    "fused marigold": lambda: make("marigold", lookahead="fused"),
    "exact marigold": lambda: make("marigold", hypergradient="exact"),
    "symmetric marigold": lambda: make("marigold", estimate="symmetric"),
    **{f"cost {name}": partial(lambda name: cost(make(name)), name) for name in ("ls", "famo", "gradvac", "moco")},
    "cost marigold": lambda: cost(make("marigold")),
    "random imtl": lambda: random(make("imtl")),
}
METHODS = {**ALONE, **WRAPPED}


class Run:
    """A training run that can be told to fail."""

    def __init__(self, name: str, *, in_parts: bool = False) -> None:
        self.problem, self.net, self.rows = faulty_problem(features=name in ("mgda", "cost ls"))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2, weight_decay=0.1)
        self.method = METHODS[name]()
        if offers(self.method, CountsEpochs):
            self.method.start_epoch(0)
        self.batch: Any = MicroBatches(self.rows.chunk(2)) if in_parts else self.rows
        if name in ("sdmgrad", "modo"):
            self.batch = ThreeBatches(*self.rows.chunk(3))
        torch.manual_seed(7)

    def step(self, **options: Any) -> None:
        self.net.evaluations = 0
        step(self.problem, self.batch, self.optimizer, self.method, **options)

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "parameters": [p.detach() for p in self.net.parameters()],
                "gradients": [p.grad for p in self.net.parameters()],
                "buffers": list(self.net.buffers()),
                "training": [module.training for module in self.net.modules()],
                "optimizer": self.optimizer.state_dict(),
                "method": self.method.state_dict() if offers(self.method, Remembers) else None,
                "random": torch.get_rng_state(),
            }
        )

    def fails(self, error: type[Exception] | tuple[type[Exception], ...] = Exception, **options: Any) -> bool:
        """Make a step that may fail, and hold it to the law if it does."""
        before = self.state()
        try:
            self.step(**options)
        except error:
            after = self.state()
            for key, value in before.items():
                assert same(value, after[key]), f"{key} is not as before"
            return True
        return False


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit; NaN equals NaN."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and torch.equal(left.nan_to_num(0.123), right.nan_to_num(0.123))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def goes_on_as_without(run: Run, name: str, *, in_parts: bool = False) -> None:
    """The next step is bit for bit that of a run in which nothing went wrong."""
    run.net.fault = None
    run.step()
    twin = Run(name, in_parts=in_parts)
    for _ in range(3):
        twin.step()
    assert same(run.state(), twin.state())


def after_two_steps(name: str, *, in_parts: bool = False) -> Run:
    run = Run(name, in_parts=in_parts)
    run.step()
    run.step()
    return run


@pytest.mark.parametrize("name", METHODS)
def test_an_error_in_any_evaluation_of_the_losses(name: str) -> None:
    run = after_two_steps(name)
    at = 0
    while True:
        at += 1
        run.net.fault, run.net.at = "losses", at
        # The last look at the losses may come after the update, which is taken back on request.
        if not run.fails(RuntimeError, reversible=True):
            break
        if at == 1:
            first = after_two_steps(name)
            first.net.fault = "losses"
            assert first.fails(RuntimeError)
            goes_on_as_without(first, name)
    assert at > 1
    assert run.net.evaluations < at


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fault", ["backward", "nan loss", "nan gradient", "nan head"])
def test_an_error_in_the_first_pass(name: str, fault: Any) -> None:
    run = after_two_steps(name)
    run.net.fault, run.net.at = fault, 1
    if name == "exact marigold" and fault != "nan loss":
        run.net.at = 2  # the first evaluation is not differentiated
    if name in ("sdmgrad", "modo") and fault == "nan head":
        run.net.at = 3  # the heads are trained on the third batch alone
    if not run.fails():
        assert name.startswith("sampling"), f"{name} went on over {fault}"  # a task that was not drawn
        return
    goes_on_as_without(run, name)


NO_PARTS = ("gradnorm", "sdmgrad", "modo", "exact marigold")
"""Methods that refuse micro-batches; ``test_routes`` holds them to it."""


@pytest.mark.parametrize("name", [n for n in METHODS if n not in NO_PARTS])
def test_an_error_in_micro_batches(name: str) -> None:
    run = after_two_steps(name, in_parts=True)
    failed = 0
    for fault in ("losses", "backward", "nan gradient"):
        for at in (1, 2, 3):
            run.net.fault, run.net.at = fault, at  # type: ignore[assignment]
            if run.fails(reversible=True):
                failed += 1
            else:  # a fault in an evaluation that nobody differentiates, or that there is not: a step was made
                run = after_two_steps(name, in_parts=True)
    assert failed >= 3
    goes_on_as_without(run, name, in_parts=True)


@pytest.mark.parametrize("name", METHODS)
def test_an_error_between_writing_and_updating(name: str) -> None:
    run = after_two_steps(name)

    def fail(parameters: Any) -> None:
        assert parameters
        raise RuntimeError("clipping failed")

    # The exact hypergradient is that of a step, which has to be differentiated: it takes no callable.
    assert run.fails(InvalidInputError if name == "exact marigold" else RuntimeError, clip=fail)
    goes_on_as_without(run, name)


@pytest.mark.parametrize("name", METHODS)
def test_an_error_once_the_weights_are_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = after_two_steps(name)

    def after(original: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            raise RuntimeError("the weights failed")

        return fails

    import mtl_core.gradient_step
    import mtl_core.loss_step

    with monkeypatch.context() as patch:
        patch.setattr(mtl_core.gradient_step, "_combined", after(mtl_core.gradient_step._combined))
        patch.setattr(mtl_core.loss_step, "loss_weights", after(mtl_core.loss_step.loss_weights))
        assert run.fails(RuntimeError)
    goes_on_as_without(run, name)


class Breaking(torch.optim.Adam):
    """An optimiser whose step fails when half of the parameters have moved."""

    broken = False

    def step(self, closure: Any = None) -> None:
        if self.broken:
            with torch.no_grad():
                for p in self.param_groups[0]["params"][:3]:
                    p.add_(1.0)
                    # After a teleport that resets it there is none.
                    self.state[p].setdefault("exp_avg", torch.zeros_like(p)).add_(1.0)
            raise RuntimeError("the optimiser failed")
        super().step()


@pytest.mark.parametrize("name", ["ls", "fairgrad", "moco", "famo", "cost ls", "cost gradvac", "every nashmtl"])
def test_an_error_in_the_optimiser_is_taken_back_on_request(name: str) -> None:
    run = Run(name)
    run.optimizer = Breaking(run.net.parameters(), lr=1e-2, weight_decay=0.1)
    run.step()
    run.step()
    run.optimizer.broken = True
    assert run.fails(RuntimeError, reversible=True)


@pytest.mark.parametrize("htr", get_args(HTR))
@pytest.mark.parametrize("name", ["ls", "gradvac"])
@pytest.mark.parametrize("kind", ["cost", "random"])
def test_an_error_in_the_optimiser_after_a_move_is_taken_back_on_request(kind: str, name: str, htr: HTR) -> None:
    if kind == "random" and htr == "transported":
        pytest.skip("a random move looks at no gradient after it that could be carried")
    run = Run(f"cost {name}")
    settings: dict[str, Any] = {"trigger": Always(), "max_per_epoch": None, "htr": htr}
    run.method = (
        COST(make(name), max_steps=2, max_drift=None, **settings)
        if kind == "cost"
        else RandomTeleport(make(name), length=0.05, **settings)
    )
    run.optimizer = Breaking(run.net.parameters(), lr=1e-2, weight_decay=0.1)
    run.step()
    run.optimizer.broken = True
    assert run.fails(RuntimeError, reversible=True)


class FailingAdapter:
    """An adapter whose search fails when it has begun."""

    def attach(self, problem: Any, *, batch: Any = None, generator: Any = None) -> Any:
        torch.rand(3)
        for module in problem.model.modules():
            for buffer in module.buffers(recurse=False):
                buffer.add_(1)
        raise RuntimeError("the search failed")


@pytest.mark.parametrize("method", ["ls", "fairgrad", "moco", "famo", "marigold"])
def test_an_error_in_a_teleports_search(method: str) -> None:
    run = Run("ls")
    run.method = COST(make(method), trigger=Always(), max_per_epoch=None, adapter=FailingAdapter())
    run.method.start_epoch(0)
    assert run.fails(RuntimeError)


def test_the_law_can_fail() -> None:
    run = after_two_steps("ls")

    def spoils(parameters: Any) -> None:
        with torch.no_grad():
            parameters[0].add_(1.0)
        raise RuntimeError("spoilt")

    with pytest.raises(AssertionError, match="parameters is not as before"):
        run.fails(RuntimeError, clip=spoils)


def test_a_faulty_net_fails_only_when_told() -> None:
    problem, net, batch = faulty_problem()
    assert isinstance(net, FaultyNet)
    assert torch.isfinite(problem.losses(batch).values).all()
