from dataclasses import replace
from pathlib import Path

import pytest

from mtl_benchmarks.command_line import parse_run
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.protocol.training import Clip
from mtl_benchmarks.runs.runner import RunResult, run
from mtl_benchmarks.storage.results import Collection
from mtl_benchmarks.studies.matching_lengths import lengths_of, matching_lengths
from mtl_core import InvalidInputError

TINY = Choice("digits", {"n_train": 96, "n_test": 60, "width": 2})
SIZES = ["--benchmark.n_train", "96", "--benchmark.n_test", "60", "--benchmark.width", "2"]
WORDS = ["digits", *SIZES, "--epochs", "2", "--batch_size", "24"]


def test_lengths_are_those_of_the_accepted_moves() -> None:
    config = RunConfig.resolve(TINY, "ls", "cost")
    events = ({"accepted": True, "length": 0.5}, {"accepted": False, "length": 0.0}, {"accepted": True, "length": 0.25})
    found = RunResult(config, Path(), {}, events, 0.0)
    assert lengths_of(found) == [0.5, 0.25]
    assert matching_lengths([found], benchmark=config.benchmark, method=config.method, seed=0) == [0.5, 0.25]
    copy = replace(found, directory=Path("copy"))
    assert matching_lengths([found, copy], benchmark=config.benchmark, method=config.method, seed=0) == [0.5, 0.25]
    with pytest.raises(InvalidInputError, match="seed 1, and the same options, got 0"):
        matching_lengths([found], benchmark=config.benchmark, method=config.method, seed=1)
    other = replace(found, config=replace(config, training=replace(config.training, clip=Clip(max_norm=1.0))))
    with pytest.raises(InvalidInputError, match="got 2"):
        matching_lengths([found, other], benchmark=config.benchmark, method=config.method, seed=0)
    still = RunResult(config, Path(), {}, events[1:2], 0.0)
    with pytest.raises(InvalidInputError, match="with teleports, got none"):
        matching_lengths([still], benchmark=config.benchmark, method=config.method, seed=0)


def test_a_control_goes_as_far_as_the_run_it_controls(tmp_path: Path) -> None:
    collection = Collection(tmp_path / "runs")
    move = Choice("cost", {"trigger": "weak", "max_steps": 2})
    config = RunConfig.resolve(TINY, "ls", move, epochs=2, batch_size=24)
    teleported = run(config, collection.run_path(config.name))
    lengths = lengths_of(teleported)
    assert lengths
    words = [*WORDS, "--teleport", "random", "--teleport.trigger", "weak", "--teleport.like", str(collection.path)]
    plan = parse_run(words)
    assert plan is not None
    (control,) = plan.configs
    assert control.teleport is not None
    # Moves of a run with another learning rate are no measure for this one.
    with pytest.raises(InvalidInputError, match="same options, got 0"):
        parse_run([*words, "--lr", "0.5"])
    assert control.teleport.options["length"] == lengths
    moved = run(control, collection.run_path(control.name))
    assert lengths_of(moved) == pytest.approx(lengths[: len(lengths_of(moved))], rel=1e-3)


def test_like_needs_a_random_teleport(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="must come with --teleport random"):
        parse_run([*WORDS, "--teleport", "cost", "--teleport.like", str(tmp_path)])
