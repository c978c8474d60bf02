"""Contexts of torch around a step change nothing of it: those that count, check, or keep tensors elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import mtl_core
from mtl_aggregators import CRMOGM, LS, MGDA, UW, available, log_transform, make


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class _Passing(TorchFunctionMode):
    """Sees every call of a function and changes none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "counted": lambda: FlopCounterMode(display=False),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": _deterministic,
    "kept elsewhere": torch.autograd.graph.save_on_cpu,
    "one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "watched": _Passing,
}

METHODS: dict[str, Callable[[], Any]] = {
    **{name: (lambda name=name: make(name)) for name in available()},  # type: ignore[misc]
    "log UW": lambda: log_transform(UW()),
    "log MGDA": lambda: log_transform(MGDA()),
    "CRMOGM": lambda: CRMOGM(MGDA()),
    "some tasks": lambda: mtl_core.TaskSampling(LS(), n_tasks=2),
}


def _trained(method: Any, around: Callable[[], AbstractContextManager[Any]] | None = None) -> Tensor:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.Tanh()), *(nn.Linear(6, 2) for _ in range(3))]).double()

    def losses(m: Any, x: Tensor) -> Tensor:
        z = m[0](x)
        return torch.stack([(head(z) - i).square().mean() for i, head in enumerate(m[1:])])

    problem = mtl_core.Problem(model, losses, shared=model[0], tasks=("a", "b", "c"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(2):
        if callable(getattr(method, "start_epoch", None)):
            method.start_epoch(epoch)
        batch = torch.randn(12, 4, dtype=torch.float64)
        if around is None:
            mtl_core.step(problem, batch, optimizer, method)
        else:
            with around():
                mtl_core.step(problem, batch, optimizer, method)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", METHODS)
def test_a_step_within_is_the_step_without(name: str) -> None:
    expected = _trained(METHODS[name]())
    for context, around in CONTEXTS.items():
        found = _trained(METHODS[name](), around)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14), context
