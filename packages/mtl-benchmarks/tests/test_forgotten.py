"""What remembers something that no checkpoint holds is named, and what has a state goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_aggregators import registry
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.runner import run

TOY = Choice("toy", {"start": 0, "steps_per_epoch": 2})


def method(name: str) -> RunConfig:
    return RunConfig.resolve(TOY, f"forgetful:{name}", epochs=3)


def teleport(name: str, within: str = "ls", **options: Any) -> RunConfig:
    return RunConfig.resolve(TOY, within, Choice(name, options), epochs=3)


def benchmark(name: str) -> RunConfig:
    return RunConfig.resolve(f"many_lines:{name}", epochs=3)


KINDS: dict[str, tuple[Callable[[], RunConfig], list[str]]] = {
    "method": (lambda: method("Counts"), ["Counts.calls"]),
    "wrapped method": (
        lambda: teleport("random", "forgetful:Counts", length=0.1),
        ["Counts.calls"],
    ),
    "with a state": (lambda: method("Says"), []),
    "containers": (lambda: method("Within"), ["Within.list", "Within.large"]),
    "module": (lambda: method("Module"), ["Module.unsaved", "Module.calls"]),
    "module with a state": (lambda: method("SaysAll"), []),
    "generator": (lambda: method("Draws"), []),
    "wrapped generator": (lambda: teleport("random", "forgetful:Draws", length=0.1), []),
    "other generator": (lambda: method("Elsewhere"), ["Elsewhere.source"]),
    "nothing": (lambda: method("Plain"), []),
    "wrapper": (lambda: teleport("forgetful:Shakes"), ["Shakes.source"]),
    "wrapper with a state": (lambda: teleport("forgetful:ShakesOn"), []),
    "trigger": (
        lambda: teleport("random", length=0.1, trigger=Choice("forgetful:EverySecond"), max_per_epoch=None),
        ["RandomTeleport.trigger"],
    ),
    "benchmark": (lambda: benchmark("Fading"), ["Fading.asked"]),
    "benchmark with a state": (lambda: benchmark("FadingOn"), []),
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_in_no_checkpoint_is_named_before_and_after_a_run_was_broken_off(kind: str, tmp_path: Path) -> None:
    make, names = KINDS[kind]
    said: list[str] = []
    whole = run(make(), tmp_path / "whole", say=said.append)
    assert whole.notes == ()
    listed = ", ".join(f"`{name}`" for name in names)
    assert [f"{listed} changed in the steps and is in no checkpoint" in line for line in said] == [True] * bool(names)

    def stop(now: Any) -> None:
        if now.done * 6 == now.total * 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make(), tmp_path / "run", progress=stop, say=said.append)
    said.clear()
    found = run(make(), tmp_path / "run", say=said.append)
    assert [f"went on without what was in {listed}, which" in note for note in found.notes] == [True] * bool(names)
    assert len(said) == len(found.notes)
    # What is not said to be forgotten is remembered; and what is said to be is not named for nothing.
    assert (found.values == whole.values) == (not names)


# Without those that divide a batch, which that of three lines is not.
@pytest.mark.parametrize("name", sorted({*registry.available()} - {"modo", "sdmgrad"}))
def test_the_methods_that_there_are_forget_nothing(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    run(RunConfig.resolve("many_lines:Three", name, epochs=2), tmp_path / "run", checkpoint_every=1, say=said.append)
    assert said == []
