"""Options that no machine and no data set has are one error each, before anything is made of them."""

from __future__ import annotations

import math
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.cli import main
from mtl_benchmarks.components.options import Choice, option_arguments
from mtl_benchmarks.components.reading import placeholder
from mtl_benchmarks.components.sizes import fitting, network_within_memory, refuse_huge, within_memory
from mtl_benchmarks.configuration.making import make_benchmark, resolve_benchmark
from mtl_core import InvalidInputError, InvalidParameterError

READS = ("nyuv2", "cityscapes", "celeba")
SIZES = [
    (name, option)
    for name in available()
    for option, argument in option_arguments(benchmark_class(name)).items()
    if "INTEGER" in placeholder(argument.annotation) and option not in ("data_seed", "start")
]


def made(name: str, **options: Any) -> Any:
    root = {"root": "nowhere"} if name in READS else {}
    return make_benchmark(resolve_benchmark(Choice(name, {**root, **options})))


@pytest.mark.parametrize("value", [-1, 10**9, 10**18, 10**30, math.nan, math.inf])
@pytest.mark.parametrize(("name", "option"), SIZES, ids=[f"{name}.{option}" for name, option in SIZES])
def test_sizes_that_nothing_has(name: str, option: str, value: float) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidParameterError, match=rf"`{option}` must "):
        made(name, **{option: value})
    # Nothing was made of it: a thousand million of anything are gigabytes. Linux counts kibibytes, macOS bytes.
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 2**28


@pytest.mark.parametrize(("name", "option"), SIZES, ids=[f"{name}.{option}" for name, option in SIZES])
def test_no_size_is_zero_but_where_it_leaves_something_out(name: str, option: str) -> None:
    if option in ("n_validation", "shift") and name != "celeba":
        made(name, **{option: 0})
        return
    with pytest.raises(InvalidParameterError, match=rf"`{option}` must "):
        made(name, **{option: 0})


@pytest.mark.parametrize(
    ("name", "option"),
    [("digits", "n_train"), ("digits", "n_test"), ("digits", "n_validation"), ("ctr", "n_train"), ("mt10", "layers")],
)
def test_data_that_does_not_fit(name: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_benchmarks.components.sizes._memory", lambda: 10**9)
    with pytest.raises(InvalidParameterError, match=rf"`{option}` must be at most [\d,]+ on this machine, got 9"):
        made(name, **{option: 90_000_000})


def memory() -> float:
    """The most that this process has held until now, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024.0)


WIDTHS = [("digits", "width"), ("digits", "n_train"), ("ctr", "width"), ("ctr", "embedding")]


@pytest.mark.parametrize(("name", "option"), WIDTHS)
@pytest.mark.parametrize("value", ["1000000000", "99999999"])
def test_the_command_ends_in_one_line_and_nothing_begins(
    name: str, option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", name, f"--benchmark.{option}", value, "--out", str(tmp_path / "runs")]
    before = memory()
    assert main(words) == 2
    assert memory() - before < 2e9  # no layer of it was made
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "must be at most" in said or "must fit into this machine's memory, got options that ask for" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("width", [40_000, 10**8, 10**13])
def test_a_network_is_looked_at_before_it_is_made(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_benchmarks.components.sizes._memory", lambda: 10**9)
    asked = {40_000: r"6\.4 GB of 1\.0 GB", 10**8: r"[\d.]+ [PE]B", 10**13: "more than there is|at once"}[width]
    with pytest.raises(InvalidInputError, match=rf"^it must fit into this machine's memory, got options .*({asked})"):
        network_within_memory("it", lambda: nn.Linear(width, width), {"width": width})


def test_networks_that_fit_or_say_themselves_what_is_wrong() -> None:
    built: list[str] = []

    def build() -> nn.Module:
        built.append(str(torch.empty(1).device))
        return nn.Linear(2000, 3)

    def fails() -> nn.Module:
        raise KeyError("no such layer")

    network_within_memory("it", build, {"width": 999, "data_seed": 10**9})
    assert built == []  # not for what cannot be large
    part = {"model": Choice("overlaycnn", {"width": 2000})}
    network_within_memory("it", build, part)
    assert built == ["meta"]
    network_within_memory("it", fails, part)


def test_parts_are_looked_at_too() -> None:
    with pytest.raises(InvalidParameterError, match="`width` must be at most 100,000,000, got 1000000000"):
        refuse_huge({"model": Choice("overlaycnn", {"width": 10**9}), "data_seed": 2**32 - 1, "is_on": True})


def test_what_the_system_refuses_is_said_and_all_else_goes_on_its_way() -> None:
    said = r"^it must fit .* got options that ask for 4\.0 PB at once\."
    with pytest.raises(InvalidInputError, match=said), within_memory("it"):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="shapes"), within_memory("it"):
        raise RuntimeError("shapes do not fit")
    assert fitting("n", 3, bytes_each=1) == 3
