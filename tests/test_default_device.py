"""Torch's default device and dtype are the user's: what is computed on the host stays there, and in double precision.

The device here is `meta`, which holds no numbers: whatever is made there by mistake cannot be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import available, log_transform, make
from mtl_core import ConflictMonitor, InvalidInputError, MicroBatches, Problem, TaskSampling
from mtl_core.extension import CountsEpochs, collect_problem
from mtl_teleport import COST, OFT, Always, Dense, LoHa, LoKr, LoRA, PeftLoRA, RandomTeleport
from mtl_teleport.history import HTR
from mtl_teleport.sharpness import SharpnessKind

ROUTES = ("alone", "micro-batches", "log transform", "task sampling", "layer by layer", "in COST")
TELEPORTS: dict[str, dict[str, Any]] = {
    **{f"sharpness {name}": {"sharpness": name, "aim": None} for name in get_args(SharpnessKind)},
    **{f"memory {name}": {"htr": name} for name in get_args(HTR)},
    **{type(a).__name__: {"adapter": a} for a in (LoRA(rank=2), LoHa(rank=2), LoKr(), OFT(), Dense(), PeftLoRA())},
    "penalty": {"search": "penalty", "sharpness": "random", "probe_maximum": "task"},
    "conflict first": {"conflict_weight": 1.0, "hold_sharpness": True, "aim": None},
}


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def surroundings(name: str) -> Any:
    return {
        "none": contextlib.nullcontext(),
        "meta": torch.device("meta"),
        "float64": default_dtype(torch.float64),
        "bfloat16": default_dtype(torch.bfloat16),
    }[name]


def made() -> tuple[Problem, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()),
            **{name: nn.Linear(8, 1) for name in "abc"},
        }
    )

    def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        z = model.get_submodule("trunk")(x)
        aims = {"a": 2.0 + x[:, 0], "b": -2.0 - x[:, 0], "c": x[:, 1].sin()}
        scale = {"a": 5.0, "b": 1.0, "c": 0.5}
        return {n: 1.5 + scale[n] * (model.get_submodule(n)(z)[:, 0] - aims[n]).square().mean() for n in "abc"}

    return Problem(model, losses, shared="trunk", tasks=tuple("abc")), [torch.randn(24, 6) for _ in range(3)]


def trained(make_method: Any, where: str, route: str = "alone") -> list[Tensor]:
    problem, batches = made()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.02)
    torch.manual_seed(1)
    monitor = ConflictMonitor()
    with surroundings(where):
        method = make_method()
        if route == "log transform":
            method = log_transform(method)
        elif route == "task sampling":
            method = TaskSampling(method, n_tasks=2)
        elif route == "in COST":
            method = COST(method, trigger=Always(), max_per_epoch=None, max_steps=2, lr=1e-2)
        options: dict[str, Any] = {"per": "layer"} if route == "layer by layer" else {}
        for epoch, x in enumerate(batches):
            monitor.start_epoch(epoch)
            if isinstance(method, CountsEpochs):
                method.start_epoch(epoch)
            batch: Any = MicroBatches(list(x.chunk(3))) if route == "micro-batches" else x
            monitor.update(mtl_core.step(problem, batch, optimizer, method, **options))
        gradients = collect_problem(problem, problem.losses(batches[0]))
        seen = [mtl_core.cosines(gradients), mtl_core.mean_cosines(gradients)]
    return [*seen, *(p.detach() for p in problem.model.parameters())]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", available())
def test_methods_do_not_depend_on_torchs_defaults(name: str, route: str) -> None:
    try:
        expected = trained(lambda: make(name), "none", route)
    except InvalidInputError as error:
        pytest.skip(f"a route that it does not go: {error}")
    for where in ("meta", "float64", "bfloat16"):
        for p, q in zip(trained(lambda: make(name), where, route), expected, strict=True):
            assert p.dtype == q.dtype
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", TELEPORTS)
def test_teleports_do_not_depend_on_torchs_defaults(name: str) -> None:
    def method() -> Any:
        settings = {"max_steps": 3, "lr": 1e-2, **TELEPORTS[name]}
        return COST(make("fairgrad"), trigger=Always(), max_per_epoch=None, **settings)

    expected = trained(method, "none")
    for where in ("meta", "float64", "bfloat16"):
        for p, q in zip(trained(method, where), expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_random_teleports_do_not_depend_on_torchs_defaults() -> None:
    def method() -> Any:
        return RandomTeleport(make("ls"), length=0.1, trigger=Always(), max_per_epoch=None)

    for where in ("meta", "float64", "bfloat16"):
        for p, q in zip(trained(method, where), trained(method, "none"), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", available())
def test_methods_by_hand_do_not_depend_on_torchs_defaults(name: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    matrix, losses = torch.randn(4, 50, generator=drawn), torch.rand(4, generator=drawn) + 1.5
    found = []
    for where in ("none", "meta", "float64", "bfloat16"):
        torch.manual_seed(0)
        with surroundings(where):
            method: Any = make(name)
            if isinstance(method, CountsEpochs):
                method.start_epoch(0)
            try:
                found.append(method(losses.clone()) if method.facts.needs == "losses" else method(matrix.clone()))
            except (NotImplementedError, InvalidInputError) as error:
                pytest.skip(f"a method that owns its step or needs losses beside the gradients: {error}")
    for other in found[1:]:
        assert torch.equal(other, found[0])
