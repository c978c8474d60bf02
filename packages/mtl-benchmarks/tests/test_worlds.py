"""Demonstrations and policies in a world, on a point mass in place of the simulator."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from mtl_benchmarks.worlds import (
    MT10_TASKS,
    MetaWorld,
    WorkerError,
    Workers,
    expert_success,
    keeping,
    known_expert_success,
    load_demonstrations,
    play,
    shared_workers,
    success_rates,
)
from mtl_benchmarks.worlds.demonstrations import Demonstrations, collect_demonstrations
from mtl_benchmarks.worlds.workers import counted
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, UnknownNameError

sys.path.insert(0, str(Path(__file__).parent))
from small_world import Field, process_id

WORLD = "small_world:Field"


@pytest.fixture(autouse=True)
def _found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(Path(__file__).parent), old])))


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    """Two processes for several tests, since each loads torch when it starts, which is at the first job."""
    with Workers(2) as workers:
        yield workers


class Homing(nn.Module):
    """The expert as a policy; ``gain`` 0 stands still."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def act(self, task: str, observations: Tensor) -> Tensor:
        move = (self.gain * (observations[:, 36:] - observations[:, :3])).clamp(-1, 1)
        return torch.cat([move, torch.zeros(len(move), 1)], dim=1)


def collect(workers: Workers, *, tasks: tuple[str, ...] = ("near", "far"), noise: float = 0.1) -> Demonstrations:
    return collect_demonstrations(tasks, n_episodes=4, horizon=60, noise=noise, workers=workers, world=WORLD)


def test_an_episode_keeps_the_actions_without_the_noise_and_ends_at_success() -> None:
    world = Field("near")
    plain = play(world, 0, world.expert, horizon=60)
    assert plain.success
    assert plain.observations.shape == (len(plain.actions), 39)
    assert len(plain.actions) < 60
    noisy = play(world, 0, world.expert, horizon=60, noise=lambda: -0.3)  # type: ignore[arg-type, return-value]
    for observation, action in zip(noisy.observations, noisy.actions, strict=True):
        assert action == pytest.approx(world.expert(observation), abs=1e-5)
    assert not (noisy.observations[1] == plain.observations[1]).all()


def test_an_episode_that_fails_has_all_its_steps() -> None:
    world = Field("never")
    found = play(world, 0, world.expert, horizon=7)
    assert not found.success
    assert len(found.actions) == 7


def test_demonstrations_do_not_depend_on_how_many_collect(two: Workers) -> None:
    alone, together = collect(Workers(1)), collect(two)
    assert alone.observations.equal(together.observations)
    assert alone.actions.equal(together.actions)
    assert alone.starts.equal(together.starts)
    assert alone.episodes[alone.of("far")].unique().tolist() == [0, 1, 2, 3]
    assert not collect(Workers(1), noise=0.0).observations.equal(alone.observations)


def test_an_expert_that_never_succeeds_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"got none for never.*hides its goals"):
        collect(Workers(1), tasks=("near", "never"))


@pytest.mark.parametrize("processes", [1, 2])
def test_success_is_the_share_of_goals(processes: int, two: Workers) -> None:
    workers = two if processes == 2 else Workers(1)

    def rates(policy: nn.Module) -> dict[str, float]:
        return success_rates(policy, ("near", "never"), goals=5, n_goals=7, horizon=60, workers=workers, world=WORLD)

    assert rates(Homing(10.0)) == {"near": 1.0, "never": 0.0}
    assert rates(Homing(0.0)) == {"near": 0.0, "never": 0.0}


@pytest.mark.parametrize("processes", [1, 2])
def test_workers_count_what_is_done(processes: int, two: Workers) -> None:
    counts: list[int] = []
    workers = two if processes == 2 else Workers(1)
    assert workers.map(abs, [-3, 2, -1], done=counts.append) == [3, 2, 1]
    assert counts == [1, 2, 3]


def test_every_hundredth_episode_and_the_last_is_told() -> None:
    said: list[str] = []
    done = counted("experts play", 1250, said.append)
    assert done is not None
    for n in range(1, 1251):
        done(n)
    told = [0, *range(100, 1250, 100), 1250]
    assert said == [f"mt10, once on this machine: experts play, {n:,} of 1,250 episodes" for n in told]
    assert counted("experts play", 1250, None) is None


def test_an_error_of_the_operating_system_in_a_job_is_no_worker_that_ended(two: Workers) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        two.map(os.listdir, ["no-such-folder", "no-such-folder"])
    assert two.map(abs, [-1, -2]) == [1, 2]


def test_errors_and_ends_of_workers_are_told() -> None:
    with Workers(2) as workers:
        with pytest.raises(ValueError, match="a simulator's own words"):
            collect(workers, tasks=("raises", "near"))
        assert len(set(workers.map(process_id, range(8))) - {os.getpid()}) >= 1
        with pytest.raises(WorkerError, match="worker process ended"):
            collect(workers, tasks=("dies",))
        assert len(workers.map(process_id, range(3))) == 3


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal
            from small_world import process_id
            from mtl_benchmarks.worlds.workers import Workers

            if __name__ == "__main__":
                workers = Workers(2)
                print(*set(workers.map(process_id, range(6))), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=False)
    numbers = [int(word) for word in done.stdout.split()]
    assert numbers, done.stderr
    until = time.monotonic() + 300
    while any(_is_alive(number) for number in numbers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_is_alive(number) for number in numbers)


def _is_alive(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().split()[2]
    except OSError:
        return False


def test_without_the_simulator_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(MissingExtraError, match=r"pip install metaworld=="):
        MetaWorld("reach")
    with pytest.raises(UnknownNameError, match="reach"):
        MetaWorld("juggle")

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(MissingExtraError, match=r"pip install metaworld=="):
        load_demonstrations(Workers(1))


def test_what_was_collected_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path))
    workers = Counting(1)
    first = load_demonstrations(workers, n_episodes=2, horizon=60, world=WORLD)
    again = load_demonstrations(workers, n_episodes=2, horizon=60, world=WORLD)
    assert workers.jobs == 2 * 10
    assert first.observations.equal(again.observations)
    assert again.tasks == MT10_TASKS
    assert known_expert_success(horizon=60, n_goals=3, world=WORLD) is None
    assert expert_success(workers, horizon=60, n_goals=3, world=WORLD) == dict.fromkeys(MT10_TASKS, 1.0)
    assert known_expert_success(horizon=60, n_goals=3, world=WORLD) == dict.fromkeys(MT10_TASKS, 1.0)
    assert workers.jobs == 2 * 10 + 3 * 10
    load_demonstrations(workers, n_episodes=3, horizon=60, world=WORLD)
    assert workers.jobs == 2 * 10 + 3 * 10 + 3 * 10


def test_a_cache_of_another_version_or_damaged_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path))
    load_demonstrations(Workers(1), n_episodes=1, horizon=60, world=WORLD)
    monkeypatch.setattr(keeping, "_VERSION", 99)
    with pytest.raises(InvalidInputError, match=r"version 99'.*of another version. Delete it"):
        load_demonstrations(Workers(1), n_episodes=1, horizon=60, world=WORLD)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InvalidInputError, match=r"must be readable.*Delete it"):
        load_demonstrations(Workers(1), n_episodes=1, horizon=60, world=WORLD)


Arrays = dict[str, numpy.ndarray]


@pytest.mark.parametrize(
    ("kind", "damage", "says"),
    [
        ("demonstrations", lambda a: a.pop("actions"), "got: no array 'actions'"),
        ("demonstrations", lambda a: a.update(actions=a["actions"][:5]), r"`actions` must have shape \(\d+, 4\)"),
        ("demonstrations", lambda a: a.update(episodes=a["episodes"][:3]), "`episodes` must have shape"),
        ("demonstrations", lambda a: a.update(observations=a["observations"][:, :5]), "`observations` must have shape"),
        ("demonstrations", lambda a: a.update(starts=a["starts"][::-1].copy()), "`starts` must rise from 0"),
        ("demonstrations", lambda a: a.update(starts=a["starts"][:4]), r"`starts` must have shape \(11,\)"),
        ("demonstrations", lambda a: a.update(actions=a["actions"] * math.nan), "must be finite"),
        ("demonstrations", lambda a: a.update(actions=a["actions"].astype("U9")), "numpy.str_"),
        ("experts", lambda a: a.pop("success"), "got: no array 'success'"),
        ("experts", lambda a: a.update(success=a["success"][:9]), "a share for each of 10 tasks"),
        ("experts", lambda a: a.update(success=a["success"] * math.nan), "a share for each of 10 tasks"),
    ],
)
def test_a_cache_without_what_belongs_in_it_is_refused(
    kind: str, damage: Callable[[Arrays], Any], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path))

    def load() -> None:
        load_demonstrations(Workers(1), n_episodes=1, horizon=60, world=WORLD)
        expert_success(Workers(1), horizon=60, n_goals=1, world=WORLD)

    load()
    load()
    (file,) = tmp_path.glob(f"mt10-{kind}-*")
    with numpy.load(file) as archive:
        arrays = dict(archive)
    damage(arrays)
    with file.open("wb") as content:
        numpy.savez(content, **arrays)
    with pytest.raises(InvalidInputError, match=rf"cache file '.*{file.name}' must hold {kind}, .*{says}.*Delete it"):
        load()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("small_world:process_id", "'small_world:process_id' must take a task and a family of goals"),
        ("small_world:NoWorld", "must have begin, step and expert, got NoWorld without step, expert"),
    ],
)
def test_what_is_no_world_is_refused(spec: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        expert_success(Workers(1), horizon=2, n_goals=1, world=spec)


def test_experts_who_reach_no_goal_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTL_CACHE", str(tmp_path))
    with pytest.raises(InvalidInputError, match=r"within `horizon` 2, got none for reach, push"):
        expert_success(Workers(1), horizon=2, n_goals=2, world=WORLD)
    assert not list(tmp_path.iterdir())


def test_the_number_of_workers_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_WORKERS", "1")
    assert shared_workers() is shared_workers()
    assert shared_workers().map(process_id, [0]) == [os.getpid()]
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("MTL_WORKERS", wrong)
        with pytest.raises(InvalidParameterError, match=f"`MTL_WORKERS`.*got '{wrong}'"):
            shared_workers()


class Counting(Workers):
    """Counts the jobs."""

    jobs = 0

    def map(self, function: Callable[[Any], Any], jobs: Sequence[Any], **told: Any) -> list[Any]:
        self.jobs += len(jobs)
        return super().map(function, jobs, **told)


@pytest.mark.parametrize("is_hidden", [True, False])
def test_a_simulator_that_hides_its_goal_is_refused(monkeypatch: pytest.MonkeyPatch, is_hidden: bool) -> None:
    class Environment:
        def set_task(self, task: float) -> None:
            self.goal = 0.0 if is_hidden else task

        def reset(self, seed: int) -> tuple[numpy.ndarray, dict[str, object]]:
            return numpy.append(numpy.ones(36), [self.goal] * 3), {}

    class Block:
        def __init__(self, name: str, seed: int) -> None:
            self.train_classes = {name: Environment}
            self.train_tasks = [1000.0 * seed + k for k in range(50)]

    fake = ModuleType("metaworld")
    policies = ModuleType("metaworld.policies")
    vars(fake)["MT1"], vars(policies)["ENV_POLICY_MAP"] = Block, {"reach-v3": object}
    monkeypatch.setitem(sys.modules, "metaworld", fake)
    monkeypatch.setitem(sys.modules, "metaworld.policies", policies)
    world = MetaWorld("reach", 7)
    if is_hidden:
        with pytest.raises(InvalidInputError, match="the goal of 'reach' must be part of the observation"):
            world.begin(3)
    else:
        assert world.begin(3)[36:].tolist() == [7003.0] * 3
        assert world.begin(52)[36:].tolist() == [8002.0] * 3  # the next seed's goals
