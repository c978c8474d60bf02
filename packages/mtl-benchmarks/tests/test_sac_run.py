"""Soft actor-critic on several tasks, on a point mass in place of the simulator."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_method
from mtl_benchmarks.sac import (
    Arena,
    Replay,
    RewardScale,
    SACAgent,
    SACConfig,
    SACProgress,
    SACProtocol,
    Transitions,
    train,
)
from mtl_benchmarks.sac.directory import SACDirectory
from mtl_core import (
    DamagedFileError,
    InvalidInputError,
    InvalidParameterError,
    ResultsDirectoryError,
    UnknownNameError,
)

sys.path.insert(0, str(Path(__file__).parent))

WORLD = "small_world:Field"
TASKS = ("reach", "push", "door-open")
SHORT = SACProtocol(
    steps=50, warm_up=10, episode=12, batch_size=24, capacity=100, hidden=(8,), evaluate_every=20, lr=1e-3
)


def some(n: int, *, tasks: list[int] | None = None, seed: int = 0) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    numbers = torch.arange(n) % 3 if tasks is None else torch.tensor(tasks)
    actions = torch.rand(n, 2, generator=g) * 2 - 1
    seen, following = torch.randn(2, n, 5, generator=g)
    return Transitions(seen, actions, torch.randn(n, generator=g), following, numbers)


def agent(method: str | Choice = "ls", **settings: Any) -> SACAgent:
    torch.manual_seed(0)
    choice = Choice(method) if isinstance(method, str) else method
    protocol = SACProtocol(**{"hidden": (8,), **settings})
    return SACAgent(TASKS, protocol, lambda seed: make_method(choice, seed=seed), observations=5, actions=2, seed=3)


def parameters(of: SACAgent) -> Tensor:
    modules = (of.actor, of.critic, of.target, of.temperature)
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def test_an_update_is_that_of_soft_actor_critic() -> None:
    """Against the algorithm written down in plain autograd on the whole batch; tasks have equally many samples."""
    ours, other = agent(Choice("ls", {"reduction": "mean"})), agent()
    rate, gamma, tau, aim = 3e-4, 0.99, 0.005, -4.0
    optimizers = [torch.optim.Adam(m.parameters(), lr=rate) for m in (other.critic, other.actor, other.temperature)]
    for seed in (1, 2):
        batch = some(12, seed=seed)
        order = batch.tasks.argsort(stable=True)
        ours.update(batch)
        with torch.no_grad():
            actions, density = other.actor.sample(batch.following, other.noise(12))
            q = torch.minimum(*other.target(batch.following, actions))
            goals = batch.rewards + gamma * (q - other.temperature() * density)
        first, second = other.critic(batch.observations, batch.actions)
        _descend(optimizers[0], functional.mse_loss(first, goals) + functional.mse_loss(second, goals))
        actions, density = other.actor.sample(batch.observations[order], other.noise(12))
        q = torch.minimum(*other.critic(batch.observations[order], actions))
        _descend(optimizers[1], (other.temperature().detach() * density - q).mean())
        _descend(optimizers[2], (other.temperature() * (-density - aim).detach()).mean())
        with torch.no_grad():
            for target, own in zip(other.target.parameters(), other.critic.parameters(), strict=True):
                target.copy_((1 - tau) * target + tau * own)
    torch.testing.assert_close(parameters(ours), parameters(other), rtol=1e-4, atol=1e-6)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_losses_are_means_within_each_task() -> None:
    one = agent("mgda")
    batch = some(8, tasks=[2, 0, 0, 2, 2, 2, 0, 2])
    twin = agent()
    goals = twin._targets(batch)
    first, second = twin.critic(batch.observations, batch.actions)
    each = ((first - goals) ** 2 + (second - goals) ** 2).detach()
    report = one.update(batch).critic
    assert report.losses[0] == pytest.approx(float(each[[1, 2, 6]].mean()))
    assert report.losses[2] == pytest.approx(float(each[[0, 3, 4, 5, 7]].mean()))
    assert torch.isnan(report.losses[1])  # no sample of it


@pytest.mark.parametrize("method", ["mgda", "cagrad", "pcgrad", "graddrop", "famo"])
def test_both_ways_to_take_gradients_agree(method: str) -> None:
    found = []
    for grouping in ("split", "vmap"):
        one = agent(method, grouping=grouping)
        for seed in range(3):
            one.update(some(12, tasks=[0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2], seed=seed))
        found.append(parameters(one))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
    assert not torch.equal(found[0], parameters(agent(method)))


def test_a_method_on_losses_trains_the_critics_alone() -> None:
    weighted, mean = agent("uw"), agent()
    ours, theirs = weighted.update(some(12)), mean.update(some(12))
    for name in ("actor", "temperature"):
        weights = getattr(ours, name).weights
        assert weights.tolist() == pytest.approx([1 / 3] * 3)
    assert ours.critic.weights is not None
    assert ours.critic.weights.tolist() != pytest.approx([1 / 3] * 3)
    torch.testing.assert_close(ours.actor.losses, theirs.actor.losses, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("grouping", ["split", "vmap"])
def test_a_method_on_three_batches_gets_thirds_of_each_tasks_samples(grouping: str) -> None:
    """Weights by hand from the Jacobians of two thirds, the update from the last; two samples are in all three."""
    tasks = [0] * 7 + [1] * 2 + [2] * 3
    one = agent(Choice("modo", {"gamma": 1e-4, "rho": 0.0}), grouping=grouping)
    batch, twin = some(12, tasks=tasks), agent()
    goals = twin._targets(batch)
    first, second = twin.critic(batch.observations, batch.actions)
    each = (first - goals) ** 2 + (second - goals) ** 2
    thirds = [torch.stack([each[0:7][k::3].mean(), each[7:9].mean(), each[9:12][k]]) for k in range(3)]
    rows = [
        torch.stack([_gradient(loss, list(twin.critic.parameters())) for loss in third]).double()
        for third in thirds[:2]
    ]
    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    moved = equal - 1e-4 * (rows[0] @ rows[1].T @ equal)
    # The projection takes the same off each, as long as none falls below 0.
    expected = moved - (moved.sum() - 1) / 3
    assert float(expected.min()) > 0
    assert float(expected.max() - expected.min()) > 0.01
    report = one.update(batch)
    assert report.critic.losses.tolist() == pytest.approx(thirds[2].tolist(), rel=1e-5)
    assert report.critic.weights is not None
    assert report.critic.weights.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    # Actor and temperature are trained by it, too.
    for name in ("actor", "temperature"):
        weights = getattr(report, name).weights
        assert weights is not None
        assert weights.tolist() != pytest.approx([1 / 3] * 3, abs=1e-6)


def _gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])


def test_an_actor_step_leaves_no_gradient_on_the_critics() -> None:
    one = agent("mgda")
    one.update(some(12))
    assert all(p.requires_grad for p in one.critic.parameters())
    assert not any(p.requires_grad for p in one.target.parameters())


def test_rewards_are_divided_by_their_running_deviation() -> None:
    scale = RewardScale(2, rate=0.1)
    first = scale(numpy.array([1.0, -2.0]))
    # means 0.1 and -0.2; variances 0.9 + 0.1 * 0.81 and 0.9 + 0.1 * 3.24
    assert first.tolist() == pytest.approx([1 / 0.981**0.5, -2 / 1.224**0.5])
    second = scale(numpy.array([0.0, 0.0]))
    assert second.tolist() == [0.0, 0.0]
    copied = RewardScale(2, rate=0.1)
    copied.load_state_dict(scale.state_dict())
    assert copied(numpy.array([3.0, 1.0])).tolist() == scale(numpy.array([3.0, 1.0])).tolist()


def test_the_replay_keeps_the_last_and_draws_any() -> None:
    replay = Replay(10, 5, 2)
    for seed in range(4):
        replay.add(some(4, seed=seed))
    assert len(replay) == 10
    everything = torch.cat([some(4, seed=seed).rewards for seed in range(4)])
    drawn = replay.draw(2000, torch.Generator().manual_seed(0))
    assert set(drawn.rewards.tolist()) == set(everything[6:].tolist())
    counts = torch.tensor([int((drawn.rewards == value).sum()) for value in everything[6:]])
    assert int(counts.min()) > 150  # 200 each, and a deviation of 13
    again = Replay(10, 5, 2)
    again.load_state_dict(replay.state_dict())
    for kept in (replay, again):
        kept.add(some(3, seed=9))
    both = [kept.draw(50, torch.Generator().manual_seed(1)) for kept in (replay, again)]
    assert all(torch.equal(a, b) for a, b in zip(vars(both[0]).values(), vars(both[1]).values(), strict=True))
    with pytest.raises(InvalidInputError, match="must be at most 10 transitions, got 11"):
        replay.add(some(11))
    with pytest.raises(InvalidInputError, match="must come after `add`"):
        Replay(3, 5, 2).draw(1, torch.Generator())


def test_one_goal_per_task_and_episodes_that_begin_alike() -> None:
    arena = Arena(TASKS, world=WORLD, seed=4)
    first = arena.begin()
    arena.step(numpy.ones((3, 4)))
    assert (arena.begin() == first).all()
    assert (Arena(TASKS, world=WORLD, seed=4).begin() == first).all()
    assert not (Arena(TASKS, world=WORLD, seed=5).begin() == first).all()
    solved = arena.successes(lambda task, seen: 10 * (seen[[36, 37, 38, 3]] - seen[:4]) * (task != "push"), horizon=50)
    assert solved == {"reach": True, "push": False, "door-open": True}


def test_when_there_are_updates_and_evaluations() -> None:
    papers = SACProtocol()
    assert [papers.updates(step) for step in (1, 1499, 1500, 1501, 2_000_000)] == [0, 0, 1500, 1, 1]
    assert sum(papers.updates(step) for step in range(1, 3001)) == 3000
    ends = [*range(150, 2_000_000, 150), 2_000_000]
    due = [step for step in ends if papers.is_evaluated(step)]
    assert due == [*range(30_000, 2_000_000, 30_000), 2_000_000]


class Broken(Exception):
    """Stands for the end of the process."""


def short(method: str = "cagrad") -> SACConfig:
    return SACConfig.resolve(method, protocol=SHORT, tasks=TASKS, seed=1, world=WORLD)


@pytest.mark.parametrize(("method", "broken_at"), [("cagrad", 12), ("famo", 24), ("pcgrad", 36), ("modo", 24)])
def test_a_broken_run_resumes_bit_for_bit(tmp_path: Path, method: str, broken_at: int) -> None:
    def progress(now: SACProgress) -> None:
        if now.done == broken_at:
            raise Broken

    whole = train(short(method), tmp_path / "whole", checkpoint_every=12)
    with pytest.raises(Broken):
        train(short(method), tmp_path / "broken", checkpoint_every=12, progress=progress)
    resumed = train(short(method), tmp_path / "broken", checkpoint_every=12)
    assert resumed.values == whole.values
    files = [SACDirectory.existing(result.directory) for result in (whole, resumed)]
    assert (files[0].path / "metrics.csv").read_bytes() == (files[1].path / "metrics.csv").read_bytes()
    states = [file.read_checkpoint() for file in files]
    assert states[0] is not None
    assert states[1] is not None
    _assert_same(states[0].state["training"], states[1].state["training"])


def _assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            _assert_same(one, other)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_what_a_run_leaves(tmp_path: Path) -> None:
    result = train(short(), tmp_path / "run")
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    # Episodes end after 12, 24, 36, 48 and 50 steps; evaluations were due at 20 and 40.
    assert list(dict.fromkeys(row[0] for row in rows)) == ["24", "48", "50"]
    names = {row[1] for row in rows}
    assert {"success", "success_push", "temperature", "reward", "loss_reach", "dominated_conflict"} <= names
    assert set(result.values) == {"best_success", "best_step", "success", *(f"success_{task}" for task in TASKS)}
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert train(short(), tmp_path / "run").values == result.values
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    with pytest.raises(ResultsDirectoryError, match="must belong to the same configuration"):
        train(short("mgda"), tmp_path / "run")
    table = tmp_path / "run" / "metrics.csv"
    table.write_bytes(table.read_bytes().replace(b"success", b"failure"))
    with pytest.raises(DamagedFileError, match=r"metrics\.csv"):
        train(short(), tmp_path / "run")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = (
        "sac --method cagrad --method.c 0.9 --tasks reach push --steps 24 --warm_up 6 --episode 12 --batch_size 8 "
        f"--hidden 8,8 --capacity 100 --world {WORLD} --out {out}"
    ).split()
    assert main(words) == 0
    assert f"run: {out}" in capsys.readouterr().out
    assert SACDirectory.existing(out).read_config()["method"]["options"]["c"] == 0.9
    assert main(["sac", "--help"]) == 0
    assert "the papers' protocol" in capsys.readouterr().out
    assert main(["compare", str(out)]) == 2
    assert "of mtl-bench sac, whose metrics.csv is its table" in capsys.readouterr().err
    for wrong, text in {
        "more": "`sac` must stand without further words, got more",
        "--steps 0": "`--steps` must be a whole number of at least 1, got 0",
        "--discount 2": "`--discount` must lie in [0, 1], got 2",
        "--tasks juggle": "unknown task of MT10 'juggle'",
        "--device moon": "`--device` must be a device of torch that is there, got 'moon'",
        "--capacity 9": "`--capacity` must have room for a transition of each of the 10 tasks, got 9",
        "--episode 501": "`--episode` must be at most 500, as many steps as the simulator allows, got 501",
        "--steps 9 --warm_up 10": "`--warm_up` must be at most `steps`, or nothing is ever learned, got 10 of 9",
    }.items():
        assert main(["sac", *wrong.split(), "--out", str(tmp_path / "none")]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_what_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown method"):
        SACConfig.resolve("nomethod")
    with pytest.raises(InvalidParameterError, match="`c`"):
        SACConfig.resolve(Choice("cagrad", {"c": -1.0}))
    with pytest.raises(InvalidParameterError, match="`hidden` must name at least one layer"):
        SACProtocol(hidden=())
    with pytest.raises(InvalidParameterError, match="`seed`"):
        SACConfig.resolve(seed=-1)


@pytest.mark.slow
def test_an_agent_learns_to_reach(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"steps": 1200, "warm_up": 300, "episode": 30, "batch_size": 64, "hidden": (32, 32)}
    rates: dict[str, Any] = {"lr": 3e-3, "temperature": 0.05, "discount": 0.9}
    protocol = SACProtocol(**sizes, **rates, capacity=10_000, evaluate_every=300)
    result = train(SACConfig.resolve(protocol=protocol, tasks=("reach",), world=WORLD), tmp_path / "run")
    assert result.values["best_success"] == 100.0


@pytest.mark.extras
@pytest.mark.slow
def test_a_few_episodes_in_the_real_simulator(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    protocol = SACProtocol(steps=60, warm_up=20, episode=30, batch_size=64, hidden=(16,), capacity=1000)
    config = SACConfig.resolve("cagrad", protocol=protocol, tasks=("reach", "drawer-close"))

    def progress(now: SACProgress) -> None:
        if now.done == 30:
            raise Broken

    whole = train(config, tmp_path / "whole", checkpoint_every=30)
    with pytest.raises(Broken):
        train(config, tmp_path / "broken", checkpoint_every=30, progress=progress)
    train(config, tmp_path / "broken", checkpoint_every=30)
    tables = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "broken")]
    assert tables[0] == tables[1]
    assert os.path.exists(whole.directory / "checkpoint.pt")
