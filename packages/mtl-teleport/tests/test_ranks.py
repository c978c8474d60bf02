"""Two gloo processes on one machine against one process on the whole batch."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mtl_core import InvalidInputError, Problem, step
from mtl_core.testing import leave
from mtl_teleport import COST, LoHa, TeleportReport
from mtl_teleport.triggers import Trigger

WORLD = 2


class Always(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return True


class ByNorm:
    """A weighting whose weights depend on what it sees."""

    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "ascent": {"sharpness": "ascent"},
    "random": {"sharpness": "random"},
    "exact": {"sharpness": "exact", "adapter": LoHa(rank=2)},
    "penalty": {"search": "penalty", "sharpness": "random", "units": "absolute", "balance": "paper"},
    "conflict": {"conflict_weight": 0.5},
    "conflict-first": {"conflict_weight": 1.0, "hold_sharpness": True, "aim": None},
    "newton": {"sharpness": "newton", "aim": None},
    "look-ahead": {"sharpness": "look-ahead", "aim": None},
    "flat": {"sharpness": "flat", "aim": None},
    "transported": {"htr": "transported"},
    "budget": {"budget": 30.0},
    "released memory": {"htr": "released"},
}


def problem_of(tasks: tuple[str, ...] = ("a", "b", "c")) -> Problem:
    """A trunk with three heads; equal targets up to their sign and size, so that tasks conflict."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh()),
            "heads": nn.ModuleDict({name: nn.Linear(5, 1) for name in "abc"}),
        }
    ).double()

    def losses(model: nn.Module, batch: tuple[Tensor, tuple[str, ...]]) -> dict[str, Tensor]:
        x, names = batch
        z = model.get_submodule("trunk")(x)
        aims = {"a": 2.0 + x[:, :1], "b": -2.0 - x[:, :1], "c": x[:, 1:2].sin()}
        scale = {"a": 5.0, "b": 1.0, "c": 0.5}
        return {n: scale[n] * (model.get_submodule(f"heads.{n}")(z) - aims[n]).square().mean() for n in names}

    return Problem(model, losses, shared="trunk", tasks=tasks)


def whole_batch(seed: int) -> Tensor:
    return torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(group: dist.ProcessGroup | None, rank: int, world: int) -> dict[str, Any]:
    """Three steps with a teleport each, on one rank's part of the data; ``world=1`` is the reference."""
    found: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        problem = problem_of()
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
        probes = [
            (whole_batch(9 + k).chunk(world)[rank], ("a", "b", "c")) for k in range(2 + (rank if world > 1 else 0))
        ]
        method = COST(
            ByNorm(),
            trigger=Always(),
            max_per_epoch=None,
            max_steps=5,
            probe_batches=probes if name == "random" else None,
            seed=rank if name in ("default", "ascent") else 0,  # the first rank's counts
            **settings,
        )
        reports: list[TeleportReport] = []
        for k in range(3):
            batch = (whole_batch(k).chunk(world)[rank], ("a", "b", "c"))
            events = step(problem, batch, optimizer, method, group=group).events
            reports += [event for event in events if isinstance(event, TeleportReport)]
        found[name] = {
            "parameters": [p.detach() for p in problem.model.parameters()],
            "reports": [{k: v for k, v in r.as_dict().items() if k != "seconds"} for r in reports],
        }
    if world == 1:
        return found
    problem = problem_of()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
    names = (("a", "b"), ("b", "c"))[rank]
    method = COST(ByNorm(), trigger=Always(), max_per_epoch=None, max_steps=5)
    (report,) = step(problem, (whole_batch(0).chunk(world)[rank], names), optimizer, method, group=group).events
    found["partly"] = {
        "parameters": [p.detach() for p in problem.model.parameters()],
        "report": {k: v for k, v in report.as_dict().items() if k != "seconds"},
    }
    # A loss that fails on the second rank alone, at the start and then only once moved.
    problem = problem_of()
    fine, start = problem.losses, [p.detach().clone() for p in problem.shared]

    def broken(batch: Any, *, parameters: Any = None) -> Any:
        losses = fine(batch, parameters=parameters)
        # A search puts other tensors in the parameters' places; these here change where a move is written only.
        moved = any(not torch.equal(p, q) for p, q in zip(problem.shared, start, strict=True))
        if moved and rank == 1:
            object.__setattr__(losses, "outputs", tuple(out * float("nan") for out in losses.outputs))
        return losses

    problem.losses = broken  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    method = COST(ByNorm(), trigger=Always(), max_per_epoch=None, max_steps=5, lr=1e-2)
    batch = (whole_batch(0).chunk(world)[rank], ("a", "b", "c"))
    (report,) = step(problem, batch, optimizer, method, group=group).events
    found["broken"] = {
        "accepted": report.as_dict()["accepted"],
        "reason": report.as_dict()["reason"],
        "same": all(torch.equal(p, q) for p, q in zip(problem.shared, start, strict=True)),
    }
    names = ("losses", "probes", "trigger", "method")
    found["refused"] = {name: refused_search(name, rank, world, group) for name in names}
    found["rates"] = rates(rank, world, group)
    found["answers"] = [answers(first, rank, world, group) for first in (True, False)]
    return found


def rates(rank: int, world: int, group: Any) -> dict[str, Any]:
    """A move where the ranks' optimisers have different learning rates, and make no update that shows it."""
    problem = problem_of()
    batch = (whole_batch(0).chunk(world)[rank], ("a", "b", "c"))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-2 * (1 + rank))
    method = COST(ByNorm(), trigger=Always(), max_per_epoch=None, max_steps=4, own_step="skip")
    (report,) = step(problem, batch, optimizer, method, group=group).events
    return {"accepted": report.as_dict()["accepted"], "parameters": [p.detach() for p in problem.model.parameters()]}


def answers(first: bool, rank: int, world: int, group: Any) -> dict[str, Any]:
    """Steps under a trigger by which the second rank always says what the first does not."""
    problem, heard = problem_of(), []

    def trigger(gramian: Tensor) -> bool:
        heard.append(bool(gramian.isfinite().all()))
        return first == (rank == 0)

    batch = (whole_batch(0).chunk(world)[rank], ("a", "b", "c"))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-2)
    method = COST(ByNorm(), trigger=trigger, max_per_epoch=None, max_steps=4, aim=1.0001)
    events = [event for _ in range(2) for event in step(problem, batch, optimizer, method, group=group).events]
    return {
        "teleports": len(events),
        "asked": len(heard),
        "parameters": [p.detach() for p in problem.model.parameters()],
    }


def refused_search(name: str, rank: int, world: int, group: Any) -> dict[str, Any]:
    """A search in which something of the second rank raises."""
    problem = problem_of()
    fine, start = problem.losses, [p.detach().clone() for p in problem.shared]

    def broken(batch: Any, *, parameters: Any = None) -> Any:
        weight = problem.model.get_submodule("trunk.0").weight
        if rank == 1 and not isinstance(weight, nn.Parameter):  # a search has put a tensor of its own in its place
            raise RuntimeError("out of memory, as it were")
        return fine(batch, parameters=parameters)

    batch = (whole_batch(0).chunk(world)[rank], ("a", "b", "c"))
    if name == "losses":
        problem.losses = broken  # type: ignore[method-assign]

    class Probes:
        def __iter__(self) -> Any:
            if rank == 1:
                raise RuntimeError("the disk is gone, as it were")
            return iter([batch])

    probes = Probes() if name == "probes" else None

    def raising(matrix: Tensor) -> Any:
        if rank == 1:
            raise RuntimeError(f"no {name}, as it were")
        return True if name == "trigger" else matrix.sum(0)

    method = COST(
        raising if name == "method" else ByNorm(),
        trigger=raising if name == "trigger" else Always(),
        max_per_epoch=None,
        max_steps=2,
        lr=1e-2,
        probe_batches=probes,
    )
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.0)
    with pytest.raises(RuntimeError) as raised:
        step(problem, batch, optimizer, method, group=group)
    return {
        "text": str(raised.value),
        "same": all(torch.equal(p, q) for p, q in zip(problem.shared, start, strict=True)),
    }


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300)
    )
    torch.save(train(dist.group.WORLD, rank, WORLD), f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_worker, args=(str(folder),), nprocs=WORLD, join=True)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train(None, 0, 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_all_ranks_go_to_one_point(ranks: list[dict[str, Any]], name: str) -> None:
    """Bit for bit, with identical reports: they decide on identical numbers."""
    first, second = ranks[0][name], ranks[1][name]
    assert first["reports"] == second["reports"]
    assert len(first["reports"]) == 3
    assert any(report["accepted"] for report in first["reports"])
    for p, q in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("random", "penalty")])
def test_it_is_the_point_of_one_process_on_the_whole_batch(
    ranks: list[dict[str, Any]], alone: dict[str, Any], name: str
) -> None:
    """The same start of the adapter and the same way; rounding grows on it, most through difference quotients."""
    rel = 1e-2 if name == "ascent" else 1e-6
    for found, expected in zip(ranks[0][name]["reports"], alone[name]["reports"], strict=True):
        if found["adapter_steps"] != expected["adapter_steps"]:
            # Where nothing is left to climb, rounding says at which step; the points are compared all the same.
            assert "no direction" in (found["ended"], expected["ended"])
        assert found["losses_before"] == pytest.approx(expected["losses_before"], rel=rel)
        assert found["accepted"] == expected["accepted"]
        if expected["accepted"]:
            assert found["norms_after"] == pytest.approx(expected["norms_after"], rel=rel)
            assert found["sigma"] == pytest.approx(expected["sigma"], rel=10 * rel, abs=rel)
    first, reference = ranks[0][name]["reports"][0], alone[name]["reports"][0]
    assert first["losses_before"] == pytest.approx(reference["losses_before"], rel=1e-12)
    assert first["cosines_before"] == pytest.approx(reference["cosines_before"], rel=1e-9)


def test_ranks_may_hold_different_tasks(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks[0]["partly"], ranks[1]["partly"]
    assert first["report"] == second["report"]
    assert first["report"]["accepted"]
    assert all(value is not None for value in first["report"]["losses_before"])
    for p, q in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(p, q)


def test_a_loss_that_fails_on_one_rank_sends_all_back(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["broken"]["same"]
        assert not found["broken"]["accepted"]
        assert "on rank 1" in found["broken"]["reason"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("losses", "out of memory"),
        ("probes", "the disk is gone"),
        ("trigger", "no trigger"),
        ("method", "no method"),
    ],
)
def test_an_error_in_one_ranks_search_is_raised_on_all(ranks: list[dict[str, Any]], name: str, text: str) -> None:
    for found in ranks:
        assert found["refused"][name]["text"].startswith(f"on rank 1: {text}")
        assert found["refused"][name]["same"]


@pytest.mark.parametrize("case", [0, 1])
def test_ranks_do_what_the_trigger_says_on_the_first(ranks: list[dict[str, Any]], case: int) -> None:
    """One that draws, counts or looks at a clock: the rank that searched alone waited for the others for ever."""
    first, second = (found["answers"][case] for found in ranks)
    assert first["teleports"] == second["teleports"] == (2, 0)[case]
    assert first["asked"] == second["asked"] >= 2
    for p, q in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(p, q)


def test_the_move_is_one_where_learning_rates_are_not(ranks: list[dict[str, Any]]) -> None:
    """Each rank accepted a move of its own."""
    first, second = (found["rates"] for found in ranks)
    assert first["accepted"]
    assert second["accepted"]
    for p, q in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(p, q)


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl_teleport import step_gradients

    monkeypatch.setattr(step_gradients, "is_sharded", lambda parameters: True)
    problem = problem_of()
    method = COST(None, trigger=Always(), max_per_epoch=None)
    with pytest.raises(InvalidInputError, match="must hold whole parameters"):
        step(problem, (whole_batch(0), ("a", "b", "c")), torch.optim.SGD(problem.model.parameters(), lr=0.1), method)
