"""An interrupt may come between any two lines of a search, those that clear up after it included."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import mtl_core
from mtl_core import Problem
from mtl_teleport import COST, Adapter, Always, LoRA, PeftLoRA
from mtl_teleport.isolation import isolated

Make = Callable[..., tuple[Problem, Any]]
Place = tuple[str, str, int]

PLACES = {
    "functional.py": {"placed"},
    "evaluation.py": {"without_graph"},
    "double_backward.py": {"twice_differentiable"},
    "isolation.py": {"isolated", "as_at", "restore"},
    "layers.py": {"computed_by"},
    "sparse.py": {"dense_embeddings"},
    "peft.py": {"_check_no_op", "__init__", "detach", "delta", "_restore_flags", "_defaults_of"},
    "way_back.py": {"write"},
    "history.py": {"modulated"},
}
"""Functions, by module, that put something in the place of something else, or put it back."""


class Run:
    """A problem with everything that a search replaces for a while, and one step with a teleport."""

    def __init__(self, make: Make, adapter: Callable[[], Adapter]) -> None:
        torch.manual_seed(0)  # of the dropout: every run is to go the same way
        self.problem, self.batch = make()
        self.optimizer = torch.optim.Adam(self.problem.model.parameters(), lr=0.01)
        self.cost = COST(
            adapter=adapter(), trigger=Always(), max_per_epoch=None, aim=None, max_steps=1, lr=0.02, htr="paper"
        )
        mtl_core.step(self.problem, self.batch, self.optimizer, lambda jacobian: jacobian.sum(0))
        self.updated = False
        self.optimizer.register_step_pre_hook(lambda *_: setattr(self, "updated", True))

    def step(self) -> None:
        mtl_core.step(self.problem, self.batch, self.optimizer, self.cost)

    def state(self) -> dict[str, Any]:
        model = self.problem.model
        return {
            "modules": [(name, id(m), m.training, "forward" in vars(m)) for name, m in model.named_modules()],
            "parameters": [(name, id(p), p.requires_grad, id(p.grad)) for name, p in model.named_parameters()],
            "values": copy.deepcopy([t.detach() for t in (*model.parameters(), *model.buffers())]),
            "memory": copy.deepcopy([[*entries.values()] for entries in self.optimizer.state.values()]),
            "random": [torch.get_rng_state()],
            "counters": self.cost.own_state()["schedule"],
            "switches": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.cuda.flash_sdp_enabled()),
        }


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, list):
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        return bool(a == b)

    return [name for name in first if not same(first[name], second[name])]


def follow(run: Run, modules: set[str], act: Callable[[Place], None]) -> None:
    """One step, with something done before each line of ``PLACES`` in some modules."""

    def in_function(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not run.updated:
            code = frame.f_code
            act((code.co_filename.rpartition("/")[2], code.co_name, frame.f_lineno))
        return in_function

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        ours = "/mtl_teleport/" in code.co_filename or "/mtl_core/" in code.co_filename
        module = code.co_filename.rpartition("/")[2]
        return in_function if ours and module in modules and code.co_name in PLACES[module] else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        run.step()
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(("adapter", "part"), [(LoRA, 0.5), (PeftLoRA, 0.0)])
def test_whatever_line_is_interrupted_all_is_as_before_and_the_next_step_is_made(
    conflicting: Make, adapter: Callable[[], Adapter], part: float
) -> None:
    """Within the lines that put things back, it left other tensors in the places of parameters, or gradients off."""
    counts: dict[Place, int] = {}
    modules = {"peft.py"} if adapter is PeftLoRA else PLACES.keys() - {"peft.py"}
    follow(Run(conflicting, adapter), modules, lambda place: counts.__setitem__(place, counts.get(place, 0) + 1))
    assert {module for module, _, _ in counts} == modules
    kept = []
    for place, count in counts.items():
        # Each line once, in the middle of a search or where it comes first.
        run, left = Run(conflicting, adapter), 1 + int(part * (count - 1))
        before = run.state()

        def interrupt(found: Place, place: Place = place) -> None:
            nonlocal left
            left -= found == place
            if found == place and left == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            follow(run, modules, interrupt)
        kept.append(caught)  # as an interactive session does; its frames stay alive with it
        assert not differences(before, run.state()), place
        run.step()
    assert len(kept) > 40


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_search_that_is_closed_late_puts_nothing_back(mode: Any) -> None:
    """What an interrupt keeps from its end is closed when its error is freed: buffers would be those of long ago."""
    model = nn.Sequential(nn.BatchNorm1d(2))

    def left_open() -> Any:
        block = isolated(model, mode=mode)
        block.__enter__()
        return block

    block = left_open()
    model.train()
    model(torch.randn(4, 2))
    buffers, random = copy.deepcopy([*model.buffers()]), torch.get_rng_state()
    del block
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
