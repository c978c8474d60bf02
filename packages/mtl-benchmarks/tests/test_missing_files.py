"""A folder in which something is missing: all of it is named on one line, with what to do, before a run writes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mtl_benchmarks import Choice
from mtl_benchmarks.cli import main
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.data_files import DataSource, refuse_missing
from mtl_core import InvalidInputError


def scenes(*folders: str) -> list[str]:
    return [f"{split}/{folder}/{k}.npy" for split in ("train", "val") for folder in folders for k in range(3)]


FILES: dict[str, list[str]] = {
    "nyuv2": scenes("image", "label", "depth", "normal"),
    "cityscapes": scenes("image", "label_7", "depth"),
    "celeba": ["Img/img_align_celeba/000001.jpg", "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"],
    "qm9": ["raw/gdb9.sdf", "raw/gdb9.sdf.csv", "raw/uncharacterized.txt"],
}
"""What lies in a whole folder; empty files do, as nothing is read."""

WAYS = {
    "nyuv2": ("`mtl-bench data nyuv2` says what to fetch", "`mtl-bench data rooms --root ROOT …` makes"),
    "cityscapes": ("`mtl-bench data cityscapes` says what to fetch", "`mtl-bench data streets --root ROOT …` makes"),
    "celeba": ("`mtl-bench data celeba` says what to fetch",),
    "qm9": ("torch_geometric.datasets.QM9(root) downloads them", "`mtl-bench data qm9` says from where"),
}

CASES = [
    # What is taken away, and what has to be named.
    ("nyuv2", ["val"], ["val/image", "val/label", "val/depth", "val/normal"]),
    ("nyuv2", ["train"], ["train/image", "train/label", "train/depth", "train/normal"]),
    ("nyuv2", ["train/normal"], ["train/normal"]),
    ("nyuv2", ["train/image", "val/depth"], ["train/image", "val/depth"]),
    ("nyuv2", ["val/label/1.npy"], ["val/label/1.npy"]),
    ("nyuv2", ["val/label/*"], ["val/label/0.npy", "val/label/1.npy", "val/label/2.npy"]),
    ("nyuv2", ["val/*/*"], ["val/image/0.npy", "val/label/0.npy", "val/depth/0.npy", "val/normal/0.npy"]),
    ("nyuv2", ["train/depth", "val/image/0.npy"], ["train/depth", "val/image/0.npy"]),
    ("cityscapes", ["val"], ["val/image", "val/label_7", "val/depth"]),
    ("cityscapes", ["train/label_7", "val/label_7"], ["train/label_7", "val/label_7"]),
    ("celeba", ["Img"], ["Img/img_align_celeba"]),
    ("celeba", ["Eval"], ["Eval/list_eval_partition.txt"]),
    ("celeba", ["Anno/list_attr_celeba.txt", "Img"], ["Img/img_align_celeba", "Anno/list_attr_celeba.txt"]),
    ("qm9", ["raw/gdb9.sdf.csv"], ["gdb9.sdf.csv"]),
    ("qm9", ["raw/gdb9.sdf", "raw/uncharacterized.txt"], ["gdb9.sdf", "uncharacterized.txt"]),
]


def laid_out(root: Path, files: Iterable[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("name", FILES)
def test_a_whole_folder_lacks_nothing(name: str, tmp_path: Path) -> None:
    root = laid_out(tmp_path / "data", FILES[name])
    make_benchmark(Choice(name, {"root": str(root)})).prepare(pytest.fail)


@pytest.mark.parametrize(("name", "taken", "named"), CASES, ids=[f"{n} without {' '.join(t)}" for n, t, _ in CASES])
@pytest.mark.parametrize("baselines", ["single-task", "none"])
def test_all_that_is_missing_is_named_before_a_run_writes(
    name: str, taken: list[str], named: list[str], baselines: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = laid_out(tmp_path / "data", FILES[name])
    for pattern in taken:
        found = list(root.glob(pattern))
        assert found
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = ["run", name, "--benchmark.root", str(root), "--out", str(tmp_path / "runs"), "--baselines", baselines]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    (listed,) = re.findall(r" without (.+?)\. ", said)
    assert listed.split(", ") == named
    for way in WAYS[name]:
        assert way.replace("ROOT", str(root)) in said
    assert not list((tmp_path / "runs").glob("*/*"))
    with pytest.raises(InvalidInputError, match=re.escape(listed)):
        make_benchmark(Choice(name, {"root": str(root)})).batches(batch_size=2, seed=0, device="cpu")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_is_not_there(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", name, "--benchmark.root", str(tmp_path / "no where"), "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "no where" in said
    assert "mtl-bench data" in said
    assert said.count("\n") == 1


class Fetched(DataSource):
    def instructions(self, root: Path) -> str:
        return ""

    def problems(self, root: Path) -> list[str]:
        return []


class Made(Fetched):
    def write(self, root: Path, said: Any) -> None:
        pass


def test_the_way_out_is_that_of_the_sources(tmp_path: Path) -> None:
    refuse_missing("it", tmp_path, [], {"one": Fetched})
    with pytest.raises(InvalidInputError) as caught:
        refuse_missing("it", Path("a b"), ["x", "y"], {"two": Made, "one": Fetched})
    assert str(caught.value) == (
        "`root` must hold it, got 'a b' without x, y. What to do: `mtl-bench data one` says what to fetch; of "
        "generated two, the same `mtl-bench data two --root 'a b' …` makes what is missing."
    )
