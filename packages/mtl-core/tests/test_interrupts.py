"""An interrupt may come between any two lines of a step; the next step is guarded and reported all the same."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_core import Problem, UpdateEvery, step
from mtl_core.guard import guarded
from mtl_core.report import StepOptions
from mtl_core.testing import faulty_problem

PLACES = {"beginning.py": {"guarded"}, "problem.py": {"reporting", "end_step", "list_now"}, "stepping.py": {"step"}}


class Equal:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.ones(len(gramian), dtype=torch.float64)


def interrupt(at: int, act: Any) -> bool:
    """Run ``act`` and raise ``KeyboardInterrupt`` before the ``at``-th line of the functions above; whether it came."""
    left = at

    def in_function(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return in_function

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        module = code.co_filename.rpartition("/mtl_core/")[2]
        return in_function if code.co_name in PLACES.get(module, ()) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        act()
    finally:
        sys.settrace(before)
    return left <= 0


def one_step(problem: Problem, rows: Tensor, method: Any) -> None:
    step(problem, rows, torch.optim.SGD(problem.model.parameters(), lr=0.01), method)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_whatever_line_is_interrupted_the_next_step_is_guarded_and_reported(is_wrapped: bool) -> None:
    at, kept = 0, []
    while True:
        at += 1
        problem, net, rows = faulty_problem()
        method: Any = UpdateEvery(Equal(), steps=1) if is_wrapped else Equal()
        seen: list[Any] = []
        problem.register_report_hook(seen.append)
        try:
            interrupt(at, lambda: one_step(problem, rows, method))  # noqa: B023 - called at once
            break  # past the last line
        except KeyboardInterrupt as error:
            kept.append(error)  # as an interactive session does; its frames stay alive with it
        buffers = [buffer.clone() for buffer in net.buffers()]
        state = torch.get_rng_state()
        net.fault, net.evaluations = "backward", 0
        with pytest.raises(RuntimeError, match="backward pass"):
            one_step(problem, rows, method)
        assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True)), kept[-1].__traceback__
        assert torch.equal(torch.get_rng_state(), state)
        net.fault = None
        seen.clear()
        one_step(problem, rows, method)
        assert len(seen) == 1
        assert problem.under_way is None
    assert len(kept) > 20


def test_a_step_that_is_closed_late_does_not_undo_another() -> None:
    """An interrupt between a block's last line and its end leaves the end to whoever frees the error."""
    problem, net, rows = faulty_problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def left_open() -> Any:
        block = guarded(problem, optimizer, Equal(), StepOptions())
        block.__enter__()
        return block

    block = left_open()
    one_step(problem, rows, Equal())
    buffers = [buffer.clone() for buffer in net.buffers()]
    gradients = [p.grad for p in net.parameters()]
    del block
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    assert all(p.grad is g for p, g in zip(net.parameters(), gradients, strict=True))
