"""Two ranks raise the same error, whichever of them has failed."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mtl_core import InvalidInputError, NonFiniteLossError, RankError, SolverError, step
from mtl_core.agreement import agree, gather_texts, together
from mtl_core.testing import leave, small_problem

# Of the start too, which on a busy machine may come long after the other rank's.
TIMEOUT = timedelta(seconds=180)


class Local(Exception):
    """Of a type that only this file knows."""


ERRORS: dict[str, Callable[[], Exception]] = {
    "value": lambda: ValueError("seven"),
    "runtime": lambda: RuntimeError("eight"),
    "input": lambda: InvalidInputError("`x` must be nine, got ten."),
    "loss": lambda: NonFiniteLossError("NaN for ['a', 'b']", tasks=("a", "b")),
    "solver": lambda: SolverError("no end", residual=0.5, iterations=7),
    "local": lambda: Local("eleven"),
}
EXPECTED = {
    "value": (ValueError, "seven", {}),
    "runtime": (RuntimeError, "eight", {}),
    "input": (InvalidInputError, "`x` must be nine, got ten.", {}),
    "loss": (NonFiniteLossError, "NaN for ['a', 'b']", {"tasks": ("a", "b")}),
    "solver": (SolverError, "no end (residual 5.000e-01 after 7 iterations)", {"residual": 0.5, "iterations": 7}),
    "local": (RankError, "Local: eleven", {}),
}


def _caught(act: Callable[[], None]) -> tuple[str, str, dict[str, Any]] | None:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - what is raised is the result
        plain = {name: value for name, value in vars(error).items() if not name.startswith("__")}
        return type(error).__name__, str(error), plain
    return None


def _fail(name: str, here: bool, group: Any) -> None:
    with together(group):
        if here:
            raise ERRORS[name]()


def _nested(rank: int, group: Any) -> None:
    with together(group), together(group):
        if rank == 1:
            raise ValueError("within")


def _refused_step(rank: int, group: Any) -> None:
    """A step that one rank's optimiser makes impossible, of a model without buffers to broadcast."""
    problem, batch = small_problem(2)
    assert not list(problem.model.buffers())
    mine = problem.model.parameters() if rank == 0 else [torch.nn.Parameter(torch.zeros(1))]
    step(problem, batch, torch.optim.SGD(mine, lr=0.1), lambda jacobian: jacobian.sum(0), group=group)


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=TIMEOUT)
    group: Any = dist.group.WORLD
    found: dict[str, Any] = {}
    for name in ERRORS:
        for at in (0, 1):
            found[f"{name} {at}"] = _caught(lambda name=name, at=at: _fail(name, rank == at, group))  # type: ignore[misc]
    found["both"] = _caught(lambda: agree(ValueError(f"from {rank}"), group))
    found["alike"] = _caught(lambda: agree(ValueError("of a mean"), group))
    found["neither"] = _caught(lambda: agree(None, group))
    found["nested"] = _caught(lambda: _nested(rank, group))
    found["texts"] = gather_texts("said" if rank == 1 else "", group)
    found["step"] = _caught(lambda: _refused_step(rank, group))
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("agreement")
    context: Any = mp.spawn(_worker, args=(str(folder),), nprocs=2, join=False)
    try:
        # A rank that waits for the other is ended by the group's timeout; this bounds the wait for a start that hangs.
        # Three processes that import a build of torch with its libraries for GPUs took 53 s where others were at work.
        for _ in range(40):
            if context.join(timeout=10):
                break
        else:
            pytest.fail("the ranks did not end")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("name", ERRORS)
def test_both_ranks_raise_what_one_raised(name: str, at: int, ranks: list[dict[str, Any]]) -> None:
    kind, text, attributes = EXPECTED[name]
    expected = (kind.__name__, f"on rank {at}: {text}", attributes)
    assert ranks[0][f"{name} {at}"] == expected
    assert ranks[1][f"{name} {at}"] == expected


def test_the_first_rank_speaks_where_both_have_failed(ranks: list[dict[str, Any]]) -> None:
    assert [found["both"] for found in ranks] == [("ValueError", "on rank 0: from 0", {})] * 2


def test_what_all_found_alike_is_no_ranks_own(ranks: list[dict[str, Any]]) -> None:
    assert [found["alike"] for found in ranks] == [("ValueError", "on every rank: of a mean", {})] * 2


def test_nothing_is_raised_where_none_has_failed(ranks: list[dict[str, Any]]) -> None:
    assert [found["neither"] for found in ranks] == [None, None]


def test_a_nested_block_adds_no_second_prefix(ranks: list[dict[str, Any]]) -> None:
    assert [found["nested"] for found in ranks] == [("ValueError", "on rank 1: within", {})] * 2


def test_a_step_that_one_rank_refuses_at_its_beginning(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["step"] is not None
        name, text, _ = found["step"]
        assert name == "InvalidInputError"
        assert text.startswith("on rank 1: `optimizer` must hold parameters of the problem")


def test_texts_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [found["texts"] for found in ranks] == [[(1, "said")]] * 2


@pytest.mark.parametrize("name", ERRORS)
def test_one_process_just_raises(name: str) -> None:
    error = ERRORS[name]()
    with pytest.raises(type(error)) as caught, together(None):
        raise error
    assert caught.value is error
    assert not getattr(error, "__notes__", [])
