from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from mtl_benchmarks.cli import main
from mtl_benchmarks.comparison import Moves
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.studies.ablation import Row, ablate, ablation_table
from mtl_benchmarks.studies.variants import PARTS_OF_ABLATION, Variant, variants
from mtl_core import InvalidInputError, UnknownNameError

DIGITS = Choice("digits", {"n_train": 192, "n_test": 64})


def test_every_variant_is_a_valid_run() -> None:
    rows = variants(list(PARTS_OF_ABLATION))
    assert len({row.name for row in rows}) == len(rows)
    for benchmark in (DIGITS, Choice("toy", {"start": 0})):
        for row in rows:
            teleport = row.teleport
            if teleport is not None and row.like is not None:
                teleport = Choice(teleport.name, {"length": [0.1]})
            RunConfig.resolve(benchmark, "ls", teleport)


def test_a_part_that_is_named_twice_counts_once() -> None:
    assert variants(["sharpness", "terms", "sharpness"]) == variants(["sharpness", "terms"])


def test_an_unknown_part() -> None:
    with pytest.raises(UnknownNameError, match="adapters"):
        variants(["adapter"])


def test_the_control_moves_as_far_as_what_it_matches(tmp_path: Path) -> None:
    always = {"trigger": "weak", "max_steps": 2, "aim": None}
    rows = ablate(
        DIGITS,
        Choice("ls"),
        [
            Variant("alone", None),
            Variant("cost", Choice("cost", always)),
            Variant("random", Choice("random", {"trigger": "weak"}), like="cost"),
        ],
        seeds=(0, 1),
        out=tmp_path / "runs",
        settings={"epochs": 2},
    )
    assert [row.name for row in rows] == ["alone", "cost", "random"]
    assert all(set(row.measure) == {0, 1} for row in rows)
    assert rows[0].moves is None
    assert rows[1].moves is not None
    assert rows[2].moves is not None
    assert rows[2].moves.accepted >= 1
    assert rows[2].moves.length == pytest.approx(rows[1].moves.length, rel=0.5)


def test_every_adapter_of_the_weights_is_a_variant() -> None:
    names = {row.name for row in variants(["adapters"])}
    assert names >= {f"adapter {name}" for name in ("lora", "loha", "lokr", "oft", "dense")}


def test_an_adapter_without_a_weight_is_left_out(tmp_path: Path) -> None:
    """The toy problem is a vector: no matrix to factorise, so that only free displacements have a row."""
    said: list[str] = []
    rows = ablate(
        Choice("toy", {"start": 4, "steps_per_epoch": 20}),
        Choice("ls"),
        variants(["adapters"]),
        seeds=(0,),
        out=tmp_path / "runs",
        settings={"epochs": 1},
        progress=said.append,
    )
    assert [row.name for row in rows] == ["alone", "default", "adapter dense", "random move, same lengths"]
    left_out = [line for line in said if "left out" in line]
    assert len(left_out) == 4
    assert "at least two dimensions" in left_out[0]


@pytest.mark.parametrize("name", ["loha", "lokr", "oft"])
def test_a_run_with_each_adapter(name: str, tmp_path: Path) -> None:
    always = {"adapter": Choice(name), "trigger": "weak", "max_steps": 2, "aim": None}
    rows = ablate(
        DIGITS,
        Choice("ls"),
        [Variant("alone", None), Variant(name, Choice("cost", always))],
        seeds=(0,),
        out=tmp_path / "runs",
        settings={"epochs": 1},
    )
    assert rows[1].moves is not None
    assert rows[1].moves.accepted >= 1
    assert rows[1].moves.length > 0


def test_table_by_hand() -> None:
    moves = Moves(3, 1, (-0.5, 0.25), (1.0, 2.0), 0.01, 0.3, 0.1)
    rows = [
        Row("alone", {0: 10.0, 1: 12.0}, None, 1.0),
        Row("cost", {0: 9.0, 1: 11.0}, moves, 2.0),
        Row("nothing kept", {0: 1e9, 1: 1e9}, Moves(0, 2, (0.0, 0.0), (0.0, 0.0), 0.0, 0.0, 0.1), 1.0),
    ]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ablation_table(rows, title="digits"))
    lines = console.export_text().splitlines()
    line = next(text for text in lines if "cost" in text)
    assert "10.00 ±12.71" in line
    assert "-1.00 ±0.00" in line
    assert "-0.50 → 0.25" in line
    assert "1.0e+09" in next(text for text in lines if "nothing kept" in text)
    with pytest.raises(InvalidInputError, match="at least one row"):
        ablation_table([], title="none")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", "digits", "--method", "fairgrad", "--method.alpha", "2", "--parts", "sharpness", "--seeds", "1"]
    tiny = ["--benchmark.n_train", "96", "--benchmark.n_test", "32", "--tasks", "left", "image", "--epochs", "1"]
    assert main([*words, *tiny, "--out", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    for row in variants(["sharpness"]):
        assert row.name in printed
