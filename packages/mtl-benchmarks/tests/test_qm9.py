"""QM9 as a benchmark, on molecules that are written here, and on the real ones where they are installed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_benchmarks import Choice, OptimizerChoice, RunConfig, Training, delta_m, load_result, run
from mtl_benchmarks.batching.batches import Batches, Part
from mtl_benchmarks.batching.loading import LoadedBatches
from mtl_benchmarks.batching.tally import combined
from mtl_benchmarks.benchmarks.qm9 import PAPERS_OPTIONS, QM9
from mtl_benchmarks.benchmarks.qm9_samples import PRINTED
from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line import parse_run
from mtl_benchmarks.comparison import compare, published_rows_table
from mtl_benchmarks.comparison.tabular import Table
from mtl_benchmarks.models import MPNN
from mtl_benchmarks.models.declaration import count
from mtl_benchmarks.molecules import TARGETS, files, load_qm9
from mtl_benchmarks.molecules.files import QM9Files
from mtl_benchmarks.molecules.raw import RAW_FILES
from mtl_benchmarks.protocol import papers
from mtl_benchmarks.protocol.outcome import Best
from mtl_benchmarks.protocol.schedules import Plateau
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.storage.results import RunDirectory
from mtl_core import InvalidParameterError, MissingExtraError
from mtl_core.extension import install_line

sys.path.insert(0, str(Path(__file__).parent))
from written_molecules import chains, write_raw

IS_INSTALLED = importlib.util.find_spec("qm9pack") is not None
CACHE = os.environ.get("MTL_CACHE")
"""Of whoever runs the tests: the real molecules are parsed there once."""
SMALL: dict[str, Any] = {"n_train": 24, "n_validation": 8, "n_test": 10, "width": 4, "hidden": 4}

PAPERS_WORDS = """
    --benchmark.n_train 110831 --benchmark.n_validation 10000 --benchmark.n_test 10000
    --benchmark.width 64 --benchmark.hidden 128 --benchmark.statistics all
    --epochs 300 --batch_size 120 --lr 0.001 --max_norm 1
    --schedule plateau --schedule.watched delta_m --schedule.factor 0.7 --schedule.patience 5 --schedule.min_lr 1e-5
    --reported best --reported.by delta_m --reported.ties later
"""


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Fifty molecules as raw files, and a cache of this module's own."""
    folder = tmp_path_factory.mktemp("molecules")
    molecules, bonds = chains(50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTL_CACHE", str(folder / "cache"))
        yield str(write_raw(folder, molecules=molecules, bonds=bonds))


def numbers(benchmark: QM9) -> dict[str, list[int]]:
    return {split: benchmark.data(split).numbers.tolist() for split in ("train", "validation", "test")}  # type: ignore[arg-type]


def config_of(root: str, method: str = "ls", teleport: Choice | None = None, **training: Any) -> RunConfig:
    return RunConfig.resolve(Choice("qm9", {**SMALL, "root": root}), method, teleport, batch_size=8, **training)


# --- data ------------------------------------------------------------------------------------------------------------


def test_no_molecule_is_in_two_splits(root: str) -> None:
    found = numbers(QM9(root=root, **SMALL))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 24, "validation": 8, "test": 10}
    assert len({row for rows in found.values() for row in rows}) == 42
    torch.manual_seed(9)
    assert numbers(QM9(root=root, **SMALL)) == found
    assert numbers(QM9(root=root, **SMALL, data_seed=1)) != found


def test_more_molecules_for_training_leave_the_others_where_they_are(root: str) -> None:
    few, more = numbers(QM9(root=root, **SMALL)), numbers(QM9(root=root, **{**SMALL, "n_train": 30}))
    assert (more["test"], more["validation"], more["train"][:24]) == (few["test"], few["validation"], few["train"])


def test_whose_mean_and_deviation_count(root: str) -> None:
    train = QM9(root=root, **SMALL).data("train").targets
    torch.testing.assert_close(train.mean(0), torch.zeros(11), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0), torch.ones(11), atol=1e-5, rtol=0)
    every = QM9(root=root, n_train=30, n_validation=8, n_test=12, width=4, hidden=4, statistics="all")
    whole = torch.cat([every.data(split).targets for split in ("train", "validation", "test")])  # type: ignore[arg-type]
    torch.testing.assert_close(whole.mean(0), torch.zeros(11), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.std(0), torch.ones(11), atol=1e-5, rtol=0)


def test_the_cutoff_is_in_the_batches(root: str) -> None:
    complete, near = QM9(root=root, **SMALL), QM9(root=root, **SMALL, cutoff=1.6)
    for benchmark in (complete, near):
        sample = benchmark.batches(batch_size=6, seed=0, device="cpu").batch(0, 0)
        distances = sample.molecules.to_graphs().edge_attr[:, -1]
        n_pairs = sum(n * (n - 1) for n in sample.molecules.sizes)
        assert (len(distances) == n_pairs) is (benchmark is complete)
        assert (float(distances.max()) <= 1.6) is (benchmark is near)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_made_ahead_are_the_same(root: str, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    kept = QM9(root=root, **SMALL, cutoff=2.0).batches(batch_size=7, seed=3, device="cpu")
    monkeypatch.setattr("mtl_benchmarks.benchmarks.qm9_samples._PREPARED", 10)
    made = QM9(root=root, **SMALL, cutoff=2.0).batches(batch_size=7, seed=3, device="cpu")
    assert isinstance(made, LoadedBatches)
    assert isinstance(kept, Batches)
    made.open(workers=workers)
    for epoch, index in ((0, 2), (0, 3), (1, 0)):
        one, other = kept.batch(epoch, index), made.batch(epoch, index)
        assert one.targets.equal(other.targets)
        assert one.molecules.order.equal(other.molecules.order)
        for group, again in zip(one.molecules.groups, other.molecules.groups, strict=True):
            assert group.nodes.equal(again.nodes)
            assert group.edges.equal(again.edges)
            assert group.links is not None
            assert again.links is not None
            assert group.links.equal(again.links)
    made.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": 40}, r"at most 50, the molecules there are, got 40 \+ 8 \+ 10 = 58"),
        ({"n_train": 1}, "`n_train` must be molecules that differ"),
        ({"n_test": 0}, "`n_test`"),
        ({"cutoff": 0.0}, "`cutoff` must be positive"),
        ({"statistics": "test"}, "`statistics` must be one of 'train', 'all'"),
    ],
)
def test_bad_options_are_refused(root: str, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        QM9(root=root, **{**SMALL, **options}).data("train")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install qm9pack=="):
        load_qm9()


def test_the_command_for_data_says_what_to_fetch_and_what_is_wrong(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "qm9"]) == 0
    said = capsys.readouterr().out
    assert f"{install_line('mtl-benchmarks[qm9]')}. Nothing else" in said
    assert "qm9.zip" in said
    assert main(["data", "qm9", "--root", str(tmp_path)]) == 2
    assert "gdb9.sdf, gdb9.sdf.csv, uncharacterized.txt" in capsys.readouterr().err
    assert main(["data", "qm9", "--root", root]) == 2
    assert "must leave 130831 molecules up to number 133885, got 50 up to number 50" in capsys.readouterr().err


def test_raw_files_are_held_to_their_digests(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(Path(root) / "raw", tmp_path / "raw"))
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RAW_FILES]
    monkeypatch.setattr(files, "_MOLECULES", 50)
    monkeypatch.setattr(files, "_LAST", 50)
    others = QM9Files().problems(tmp_path)
    assert [problem.partition(": must have the SHA256 ")[0] for problem in others] == [
        str(folder / name) for name in RAW_FILES
    ]
    monkeypatch.setattr(files, "_DIGESTS", digests)
    assert QM9Files().problems(tmp_path) == []
    # The last number of the table cut short: still a number, and still a line per molecule.
    table = folder / "gdb9.sdf.csv"
    table.write_text(table.read_text().rstrip()[:-3])
    (problem,) = QM9Files().problems(tmp_path)
    assert problem.startswith(f"{table}: must have the SHA256 {digests[1]}, got ")


# --- losses and metrics ----------------------------------------------------------------------------------------------


def test_losses_by_hand(root: str) -> None:
    qm9 = QM9(root=root, **SMALL)
    model = qm9.build()
    sample = qm9.batches(batch_size=7, seed=0, device="cpu").batch(0, 1)
    output: dict[str, Tensor] = model(sample.molecules)
    losses = qm9.problem(model, tasks=("lumo", "cv")).losses(sample)
    assert losses.tasks == ("lumo", "cv")
    for task, value in zip(losses.tasks, losses.values, strict=True):
        error = output[task] - sample.targets[:, qm9.tasks.index(task)]
        assert float(value.detach()) == pytest.approx(float(error.detach().square().mean()), rel=1e-5)


def test_a_model_that_says_zero_errs_by_the_mean_deviation_in_the_papers_units(root: str) -> None:
    qm9 = QM9(root=root, **SMALL)
    model = qm9.build()
    for head in model.get_submodule("heads").parameters():
        torch.nn.init.zeros_(head)
    found = qm9.evaluate(model, device="cpu")
    molecules = load_qm9(root)
    place = {number: row for row, number in enumerate(molecules.numbers.tolist())}
    columns = [name for name, _ in TARGETS]
    chosen = {split: [place[number] for number in rows] for split, rows in numbers(qm9).items()}
    for task, column, factor in (("mu", "mu", 1), ("homo", "homo", 1000), ("u0", "u0_atom", 1000), ("cv", "cv", 1)):
        values = molecules.targets[:, columns.index(column)]
        deviation = (values[chosen["test"]] - values[chosen["train"]].mean()).abs().mean()
        assert found["test"][f"error_{task}"] == pytest.approx(factor * float(deviation), rel=1e-5)
    assert set(found) == {"validation", "test"}
    assert "validation" not in QM9(root=root, **{**SMALL, "n_validation": 0}).evaluate(model, device="cpu")


@pytest.mark.parametrize("n_parts", [2, 3, 11])
def test_parts_add_up(root: str, n_parts: int) -> None:
    """Also where a part is empty: eight molecules for validation in eleven parts."""
    qm9 = QM9(root=root, **SMALL)
    model = qm9.build().train()
    whole = qm9.evaluate(model, device="cpu")
    parts = [qm9.tally(model, device="cpu", part=Part(k, n_parts)) for k in range(n_parts)]
    added = qm9.metrics_from(combined(parts))
    assert model.training
    for split, values in whole.items():
        assert added[split] == pytest.approx(values, rel=1e-5)


# --- the papers' protocol --------------------------------------------------------------------------------------------


def test_the_papers_command_is_the_papers_protocol() -> None:
    plan = parse_run(["qm9", *PAPERS_WORDS.split()])
    config = plan.configs[0]
    assert config.training == RunConfig.resolve("qm9", training=papers.qm9()).training
    assert {k: config.benchmark.options[k] for k in PAPERS_OPTIONS} == dict(PAPERS_OPTIONS)
    assert sum(v for k, v in PAPERS_OPTIONS.items() if k.startswith("n_")) == 130_831


def test_the_papers_network() -> None:
    model = QM9(**PAPERS_OPTIONS).build()
    assert isinstance(model, MPNN)
    assert count(model.parameters()) == 617_675


def test_the_rate_falls_and_the_epoch_is_chosen_by_validation_delta_m(root: str, tmp_path: Path) -> None:
    training = RunConfig.resolve("qm9", training=papers.qm9()).training
    assert (training.schedule, training.reported) == (
        Plateau(watched="delta_m", factor=0.7, patience=5, min_lr=1e-5),
        Best(by="delta_m", ties="later"),
    )
    # So fast and impatient that the best epoch is not the last, and that there is a plateau.
    short = {**training.as_dict(), "epochs": 8}
    short["optimizer"]["options"]["lr"], short["schedule"]["patience"] = 1.0, 0
    found = run(config_of(root, training=type(training).from_dict(short)), tmp_path / "run")
    rows = _evaluations(tmp_path / "run")
    deltas = [delta_m(values["validation"], PRINTED) for values in rows]
    best = min(range(len(deltas)), key=lambda k: (deltas[k], -k))
    assert found.values == pytest.approx(rows[best]["test"], rel=1e-12)
    rates = _rates(tmp_path / "run")
    lowered = Plateau(watched="delta_m", factor=0.7, patience=0).reductions(deltas[:-1], higher_is_better=False)
    assert rates[-1] == pytest.approx(0.7**lowered)
    assert lowered > 0
    assert best < 7


def _read(directory: Path) -> list[dict[str, str]]:
    import csv

    with (directory / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


def _evaluations(directory: Path) -> list[dict[str, dict[str, float]]]:
    found: dict[int, dict[str, dict[str, float]]] = {}
    for row in _read(directory):
        if row["split"] in ("validation", "test"):
            found.setdefault(int(row["epoch"]), {}).setdefault(row["split"], {})[row["metric"]] = float(row["value"])
    return [found[epoch] for epoch in sorted(found)]


def _rates(directory: Path) -> list[float]:
    return [float(row["value"]) for row in _read(directory) if row["metric"].startswith("lr")]


# --- beside the papers -----------------------------------------------------------------------------------------------


def _result(config: RunConfig, scale: float) -> RunResult:
    values = {b.metric.name: scale * b.value for b in PRINTED if b.metric.task in config.tasks}
    return RunResult(config, Path("nowhere"), values, (), 2.0)


def _published(**options: Any) -> Table:
    choice = Choice("qm9", {**PAPERS_OPTIONS, **options})
    multi = RunConfig.resolve(choice, training=papers.qm9())
    runs = [_result(multi, 3.0), *(_result(multi.single_task(task), 2.0) for task in multi.tasks)]
    (comparison,) = compare(runs)
    (table,) = published_rows_table(comparison)
    return table


def test_the_papers_row_stands_beside_a_run_of_the_papers_protocol() -> None:
    table = _published()
    rows = {row.label: row.cells for row in table.rows}
    assert list(rows) == ["single task, printed", "single task, here", "LS (ls)", "ls, here"]
    assert rows["single task, printed"]["error_homo"] == 60.576
    assert rows["single task, here"]["error_homo"] == pytest.approx(121.152)
    assert rows["LS (ls)"]["delta_m"] == 177.6
    own = rows["ls, here"]["delta_m"]
    assert own.mean == pytest.approx(200.0)  # type: ignore[union-attr]
    notes = " ".join(table.notes)
    assert "another protocol" not in notes
    assert "its row has no code" in notes


def test_rows_that_the_papers_ran_again_are_of_that_method() -> None:
    labels = QM9.published[0].labels()
    assert labels["FairGrad-R"] == "fairgrad"
    assert labels["COST"] == "fairgrad + cost"
    assert labels["IMTL-G"] == "imtlg"


def test_a_smaller_run_is_said_to_be_another_experiment() -> None:
    notes = " ".join(_published(n_train=3000).notes)
    assert "another protocol than this table: n_train 3000 instead of 110831." in notes


# --- COST ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "targets"),
    [("", None), ("--teleport.adapter lora --teleport.adapter.targets lin0,lin1", ["lin0", "lin1"])],
)
def test_cost_on_the_papers_two_layers_and_on_all(
    root: str, words: str, targets: list[str] | None, tmp_path: Path
) -> None:
    small = " ".join(f"--benchmark.{name} {value}" for name, value in SMALL.items())
    line = f"qm9 {small} --benchmark.root {root} --epochs 1 --batch_size 12 --teleport cost --teleport.trigger weak"
    config = parse_run(f"{line} {words}".split()).configs[-1]
    assert config.teleport is not None
    assert config.teleport.options["adapter"].options["targets"] == targets
    found = run(config, tmp_path / "run")
    moves = [event for event in found.events if event["kind"] == "teleport"]
    assert len(moves) == 1
    assert all(event["length"] > 0 for event in moves if event["accepted"])
    assert load_result(tmp_path / "run").values == found.values
    assert RunDirectory(tmp_path / "run").path.is_dir()


# --- the real molecules ----------------------------------------------------------------------------------------------

METHANE = {
    "mu": 0.0, "alpha": 13.21, "homo": -10.5499, "lumo": 3.1865, "gap": 13.7363, "r2": 35.3641, "zpve": 1.2177,
    "u0": -1101.4878, "u298": -1101.4098, "h298": -1101.3840, "g298": -1102.0229, "cv": 6.4690, "u0_atom": -17.1722,
    "u298_atom": -17.2868, "h298_atom": -17.3897, "g298_atom": -16.1519, "a": 157.7118, "b": 157.7100, "c": 157.7070,
}  # fmt: skip
"""The first molecule as torch_geometric.datasets.QM9 gives it."""


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    if CACHE is None:
        monkeypatch.delenv("MTL_CACHE")
    else:
        monkeypatch.setenv("MTL_CACHE", CACHE)


@pytest.mark.extras
@pytest.mark.usefixtures("real")
@pytest.mark.skipif(not IS_INSTALLED, reason="the package qm9pack is not installed")
def test_the_real_molecules_are_all_there() -> None:
    molecules = load_qm9()
    assert len(molecules) == 130_831
    assert int(molecules.numbers[-1]) == 133_885
    first = dict(zip([name for name, _ in TARGETS], molecules.targets[0].tolist(), strict=True))
    assert first == pytest.approx(METHANE, rel=1e-4, abs=1e-4)
    assert bool((molecules.orders <= 3).all())
    assert int(molecules.sizes.max()) == 29


@pytest.mark.extras
@pytest.mark.usefixtures("real")
@pytest.mark.skipif(not IS_INSTALLED, reason="the package qm9pack is not installed")
def test_a_run_on_real_molecules_learns(tmp_path: Path) -> None:
    small = Choice("qm9", {"n_train": 600, "n_validation": 0, "n_test": 300, "width": 16, "hidden": 16})
    # Forty steps at the whole rate: over so few a falling one would hardly have begun.
    constant = Training(epochs=4, batch_size=60, optimizer=OptimizerChoice("adam", {"lr": 2e-3}))
    before = RunConfig.resolve(small, training=constant, steps=1)
    after = RunConfig.resolve(small, training=constant)
    start, end = (run(each, tmp_path / str(k)).values for k, each in enumerate((before, after)))
    assert delta_m(end, PRINTED) < 0.9 * delta_m(start, PRINTED)


@pytest.mark.extras
def test_torch_geometrics_own_values_on_the_same_files(root: str) -> None:
    """Its reader needs RDKit: positions, elements, bonds and all targets of fifty molecules."""
    pytest.importorskip("rdkit", reason="torch-geometric reads QM9 by RDKit, which is not installed")
    datasets = pytest.importorskip("torch_geometric.datasets")
    theirs, ours = datasets.QM9(root), load_qm9(root)
    assert len(theirs) == len(ours) == 50
    for row, data in enumerate(theirs):
        one = ours.take(torch.tensor([row]))
        assert data.name == f"gdb_{int(one.numbers)}"
        torch.testing.assert_close(one.targets.float(), data.y, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one.positions, data.pos)
        assert data.z.tolist() == [(1, 6, 7, 8, 9)[k] for k in one.elements]
        pairs = {(a, b): k for (a, b), k in zip(one.bonded.tolist(), one.orders.tolist(), strict=True)}
        kinds = (data.edge_attr.argmax(1) + 1).tolist()
        assert {
            (a, b): k for (a, b), k in zip(data.edge_index.T.tolist(), kinds, strict=True) if (a, b) in pairs
        } == pairs
        assert data.edge_index.shape[1] == 2 * len(pairs)
