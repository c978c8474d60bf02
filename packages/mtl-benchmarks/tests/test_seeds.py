"""Which seeds there are: those that the generators can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mtl_benchmarks.benchmarks import CTR, QM9, Digits, MovieLens, Yeast
from mtl_benchmarks.cli import main
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.sac import SACConfig
from mtl_benchmarks.scenes.sources import Rooms
from mtl_core import InvalidParameterError, checks

NO_SEEDS = (-1, 2**32, 2**32 + 1, 2**63, True, 1.0, "1", None)

TAKERS: dict[str, Callable[[Any], object]] = {
    "a run": lambda seed: RunConfig.resolve("digits", seed=seed),
    "soft actor-critic": lambda seed: SACConfig.resolve(seed=seed),
    "digits": lambda seed: Digits(data_seed=seed),
    "ctr": lambda seed: CTR(data_seed=seed),
    "qm9": lambda seed: QM9(data_seed=seed),
    "yeast": lambda seed: Yeast(data_seed=seed),
    "movielens": lambda seed: MovieLens(data_seed=seed),
    "rooms": lambda seed: Rooms(data_seed=seed),
}


def test_a_generator_reads_32_bits() -> None:
    """The reason for the rule: it may be dropped when this no longer holds."""
    first, second = (torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in (5, 2**32 + 5))
    assert torch.equal(first, second)


@pytest.mark.parametrize("take", TAKERS.values(), ids=list(TAKERS))
@pytest.mark.parametrize("seed", NO_SEEDS)
def test_what_is_no_seed_is_refused(take: Callable[[Any], object], seed: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"seed` must be a whole number from 0 to 4294967295, got"):
        take(seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_are_seeds(seed: int) -> None:
    assert checks.seed("seed", seed) == seed
    assert RunConfig.resolve("digits", seed=seed).seed == seed


@pytest.mark.parametrize("command", ["run digits", "study digits", "ablate digits", "figure cost-3", "sac"])
def test_commands_refuse_them_in_their_own_words(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--seed" if command == "sac" else "--seeds"
    word = "4294967296" if command == "sac" else "0,4294967296"
    assert main([*command.split(), flag, word]) == 2
    assert f"`{flag}` must be a whole number from 0 to 4294967295, got 4294967296" in capsys.readouterr().err
