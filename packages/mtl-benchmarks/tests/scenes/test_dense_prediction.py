"""NYUv2 and CityScapes as benchmarks: the papers' protocol, or a small one on generated folders; runs and tables."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from mtl_benchmarks import Choice, RunConfig, delta_m, run, single_task_configs
from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.tally import Tallies, combined
from mtl_benchmarks.benchmarks import CityScapes, NYUv2
from mtl_benchmarks.benchmarks.dense_prediction import DensePrediction
from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line.run_words import parse_run
from mtl_benchmarks.comparison import all_tables, compare, find_runs
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.metrics import Baseline
from mtl_benchmarks.models import DenseOutput, SegNetCrossStitch, SegNetMTAN, SegNetSplit, TaskModel
from mtl_benchmarks.protocol import papers
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Last, MeanOfLast
from mtl_benchmarks.protocol.schedules import Constant, Cosine
from mtl_benchmarks.protocol.training import Training
from mtl_benchmarks.scenes import Scenes
from mtl_benchmarks.scenes.sources import OfficialCityScapes, OfficialNYUv2, Rooms, Streets
from mtl_benchmarks.studies.rows import rows_of
from mtl_benchmarks.studies.study import study
from mtl_core import InvalidInputError, InvalidParameterError, UnknownNameError

KINDS: dict[str, tuple[type[DensePrediction], type[Rooms | Streets]]] = {
    "nyuv2": (NYUv2, Rooms),
    "cityscapes": (CityScapes, Streets),
}
both = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small generated data set of each kind."""
    found = {}
    for name, (_, source) in KINDS.items():
        found[name] = tmp_path_factory.mktemp(name)
        source(train=4, test=3, height=32, width=64).write(found[name], lambda line: None)
    return found


def pretend_official(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_benchmarks.benchmarks.dense_prediction.is_official", lambda root, layout: True)


# --- protocol --------------------------------------------------------------------------------------------------------


@both
def test_official_folders_get_the_papers_protocol(name: str, tmp_path: Path) -> None:
    """By size and number of the pictures: files of the right names suffice to see it."""
    cls, _ = KINDS[name]
    train, test = cls.layout.counts
    for split, count in (("train", train), ("val", test)):
        folder = tmp_path / split / "image"
        folder.mkdir(parents=True)
        for k in range(count):
            folder.joinpath(f"{k}.npy").touch()
    numpy.save(tmp_path / "train" / "image" / "0.npy", numpy.zeros((*cls.layout.size, 3), numpy.float32))
    paper = papers.PROTOCOLS[name]()
    assert cls(root=tmp_path).training == paper
    assert cls(root=tmp_path).published == cls.tables
    folder.joinpath(f"{test - 1}.npy").unlink()  # one picture less is another data set
    assert cls(root=tmp_path).training.epochs == 10
    assert cls(root=tmp_path).published == cls(root=tmp_path).baselines == ()
    # Nothing to see: results of the papers' protocol can be compared where the pictures are not.
    assert cls(root=tmp_path / "nowhere").training == paper


@both
@pytest.mark.parametrize("family", ["nash", "cagrad"])
def test_other_pictures_get_a_falling_rate_and_their_last_epoch(
    name: str, family: papers.Family, folders: dict[str, Path]
) -> None:
    cls, _ = KINDS[name]
    model = functools.partial(SegNetMTAN, attention={"nash": "shared", "cagrad": "task"}[family])
    found = cls(root=folders[name], family=family, model=model).training
    assert found == Training(
        epochs=10,
        batch_size=4,
        optimizer=OptimizerChoice("adam", {"lr": 1e-3}),
        schedule=Cosine(),
        clip=papers.PROTOCOLS[name](family=family).clip,  # type: ignore[call-arg]
        reported=Last(),
    )


@both
def test_the_words_of_a_constant_rate_replace_the_falling_one(name: str, folders: dict[str, Path]) -> None:
    """What earlier tables of docs/benchmarks.md were measured with, and the words that the default stands for."""
    run_words = [name, "--benchmark.root", str(folders[name])]

    def trained(words: str) -> Training:
        plan = parse_run([*run_words, *words.split()])
        assert plan is not None
        return plan.configs[0].training

    default = trained("")
    assert trained("--schedule cosine --reported last") == default
    earlier = trained("--schedule constant --reported mean-of-last --reported.count 2")
    assert earlier == dataclasses.replace(default, schedule=Constant(), reported=MeanOfLast(2))


@both
def test_the_families_differ_in_clipping_and_in_what_is_shared(name: str, folders: dict[str, Path]) -> None:
    cls, _ = KINDS[name]
    nash = cls(root=folders[name])
    cagrad = cls(root=folders[name], family="cagrad", model=functools.partial(SegNetMTAN, attention="task"))
    assert nash.training.clip is not None
    assert cagrad.training.clip is None
    shared = {}
    for problem_of in (nash, cagrad):
        model = problem_of.build()
        shared[problem_of.family] = sum(p.numel() for p in problem_of.problem(model, tasks=cls.tasks).shared)
    assert shared["nash"] > shared["cagrad"]
    with pytest.raises(InvalidParameterError, match=r"`model.attention` must be 'task' where `family` is 'cagrad'"):
        cls(root=folders[name], family="cagrad")
    with pytest.raises(InvalidParameterError, match=r"`model.attention` must be 'shared' where `family` is 'nash'"):
        cls(root=folders[name], model=functools.partial(SegNetMTAN, attention="task"))


@pytest.mark.parametrize(("name", "shared"), [("nyuv2", 44_117_184), ("cityscapes", 41_132_608)])
def test_the_papers_network_to_the_digit(
    name: str, shared: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_official(monkeypatch)
    benchmark = KINDS[name][0](root=folders[name])
    model = benchmark.build()
    assert sum(p.numel() for p in benchmark.problem(model, tasks=benchmark.tasks).shared) == shared
    assert isinstance(model, SegNetMTAN)


@pytest.mark.parametrize(
    ("name", "method", "printed"),
    [("nyuv2", "MARIGOLD", -4.54), ("nyuv2", "MGDA", 1.38), ("cityscapes", "MGDA", 44.14)],
)
def test_the_printed_baselines_give_the_printed_delta(
    name: str, method: str, printed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_official(monkeypatch)
    benchmark = KINDS[name][0](root="nowhere")
    rows = next(table for table in benchmark.published if table.paper == "MARIGOLD").rows()
    assert delta_m(rows[method], benchmark.baselines) == pytest.approx(printed, abs=0.006)


# --- losses, absent tasks, networks ----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("model", [SegNetSplit, SegNetMTAN, SegNetCrossStitch])
def test_each_network_trains_each_task_alone_as_in_the_whole(
    name: str, model: type[nn.Module], folders: dict[str, Path]
) -> None:
    """A task alone has the loss that it has among the others, but for cross-stitch, whose networks feed each other."""
    benchmark = KINDS[name][0](root=folders[name], model=model, width=1 / 16)
    torch.manual_seed(0)
    network = benchmark.build()
    batch = benchmark.batches(batch_size=2, seed=0, device="cpu").batch(0, 0)
    together = benchmark.problem(network, tasks=benchmark.tasks).losses(batch)
    assert together.tasks == benchmark.tasks
    for k, task in enumerate(benchmark.tasks):
        alone = benchmark.problem(network, tasks=(task,)).losses(batch)
        if model is not SegNetCrossStitch:
            torch.testing.assert_close(alone.values[0], together.values[k])
        grads = torch.autograd.grad(alone.values[0], list(network.parameters()), allow_unused=True)
        own = {id(p) for p in network.task_parameters(task)}  # type: ignore[operator]
        others = {id(p) for t in benchmark.tasks if t != task for p in network.task_parameters(t)}  # type: ignore[operator]
        reached = {id(p) for p, g in zip(network.parameters(), grads, strict=True) if g is not None}
        assert own <= reached
        assert not others & reached


def test_one_cross_stitched_network_alone_is_a_plain_one() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 64)
    whole = SegNetCrossStitch(width=1 / 16).eval()
    torch.manual_seed(1)
    single = SegNetCrossStitch({"depth": whole.outputs["depth"]}, width=1 / 16).eval()
    own = {k: v for k, v in whole.state_dict().items() if "stitch" not in k and "depth" in k}
    assert not single.load_state_dict(own, strict=False).unexpected_keys
    found = whole.predict("depth", whole.features(images, ("depth",))["depth"])
    torch.testing.assert_close(found, single(images)["depth"])


@pytest.mark.parametrize(("name", "method"), [("nyuv2", "ls"), ("nyuv2", "fairgrad"), ("cityscapes", "fairgrad")])
def test_a_task_without_a_valid_pixel_is_absent_and_nothing_is_nan(
    name: str, method: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    root = shutil.copytree(folders[name], tmp_path / "blind")
    for path in (root / "train" / "depth").iterdir():
        numpy.save(path, numpy.zeros_like(numpy.load(path)))
    config = RunConfig.resolve(
        Choice(name, {"root": str(root), "model": Choice("segnetsplit"), "width": 1 / 16}), method, epochs=1
    )
    result = run(config, tmp_path / "run")
    assert all(numpy.isfinite(value) for value in result.values.values())
    rows = (tmp_path / "run" / "steps.csv").read_text()
    assert "semantic" in rows


def test_batches_are_augmented_by_their_place_alone(folders: dict[str, Path]) -> None:
    plain, moved = (NYUv2(root=folders["nyuv2"], augment=augment) for augment in (False, True))

    def image(benchmark: NYUv2, epoch: int) -> Tensor:
        found: Scenes = benchmark.batches(batch_size=4, seed=0, device="cpu").batch(epoch, 0)
        return found.images

    assert torch.equal(image(moved, 3), image(moved, 3))
    assert not torch.equal(image(moved, 3), image(plain, 3))
    originals = sorted(float(plain.data("train")[k].images.sum()) for k in range(4))
    assert sorted(float(one.sum()) for one in image(plain, 1)) == pytest.approx(originals)


# --- metrics ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("how", ["pixel", "released"])
def test_an_evaluation_in_parts_is_that_of_the_whole(name: str, how: str, folders: dict[str, Path]) -> None:
    benchmark: Any = KINDS[name][0](root=folders[name], model=SegNetSplit, width=1 / 16, metrics=how)  # type: ignore[arg-type]
    assert isinstance(benchmark, Tallies)
    torch.manual_seed(0)
    model = benchmark.build().train()
    whole = benchmark.evaluate(model, device="cpu")
    assert model.training
    parts = combined([benchmark.tally(model, device="cpu", part=Part(k, 3)) for k in range(3)])
    assert benchmark.metrics_from(parts) == whole
    assert set(whole["test"]) == {metric.name for metric in benchmark.metrics}


# --- bad files -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("truncated", r"image/1\.npy must be a whole \.npy file"),
        ("label", r"labels must be whole numbers from -1 to"),
        ("bytes", r"image/1\.npy: numbers must be from 0 to 1, got 0 to 255"),
        ("negative", r"depth/1\.npy: numbers must be from 0 to 1(00)?, got -1"),
    ],
)
def test_a_run_begins_with_a_look_at_every_file(
    name: str, what: str, text: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(folders[name], tmp_path / "data")
    cls, _ = KINDS[name]
    folder = root / "val" / {"label": cls.layout.labels, "negative": "depth"}.get(what, "image")
    values = numpy.load(folder / "1.npy")
    if what == "truncated":
        whole = (folder / "1.npy").read_bytes()
        (folder / "1.npy").write_bytes(whole[: len(whole) // 2])
    else:
        values[5, 5] = {"label": 13, "bytes": 255, "negative": -1}[what]
        if what == "bytes":
            values[5, 6] = 0
        numpy.save(folder / "1.npy", values)
    with pytest.raises(InvalidInputError, match=text):
        cls(root=root).build()
    assert main(["run", name, "--benchmark.root", str(root), "--out", str(tmp_path / "runs")]) == 2
    assert "1.npy" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/steps.csv"))
    kind = {"nyuv2": "rooms", "cityscapes": "streets"}[name]
    small = ["--data.train", "4", "--data.test", "3", "--data.height", "32", "--data.width", "64"]
    assert main(["data", kind, *small, "--root", str(root)]) == 2
    assert "1.npy" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("model", ["segnetmtan", "segnetsplit", "segnetcrossstitch"])
def test_sides_that_cannot_be_halved_are_refused_before_anything_is_trained(
    model: str, split: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(folders["nyuv2"], tmp_path / "data")
    for path in (root / split).rglob("*.npy"):
        numpy.save(path, numpy.load(path)[:, :40])
    words = f"run nyuv2 --benchmark.root {root} --benchmark.width 0.0625 --model {model} --epochs 1"
    assert main([*words.split(), "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert f"divisible by 32, got 32 × 40 in {root / split}. Cut or pad" in said
    assert not list((tmp_path / "runs").glob("*/steps.csv"))
    # A network of one's own may take any size.
    assert isinstance(NYUv2(root=root, model=AnySize, width=1).build(), AnySize)


class AnySize(TaskModel):
    """One linear map per pixel and task."""

    def __init__(self, outputs: dict[str, DenseOutput], *, width: float) -> None:
        super().__init__(outputs)
        self.heads = nn.ModuleDict({task: nn.Conv2d(3, each.channels, 1) for task, each in outputs.items()})

    def task_modules(self, task: str) -> tuple[nn.Module]:
        return (self.heads[task],)


@both
def test_what_to_fetch_is_said_and_what_is_missing_is_named(
    name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls, _ = KINDS[name]
    assert main(["data", name]) == 0
    said = capsys.readouterr().out
    assert "https://github.com/lorenmt/mtan" in said
    assert f"{cls.layout.counts[0]} files in each folder of train" in said
    for folder in cls.layout.folders:
        assert f"DIR/{{train,val}}/{folder}/{{0,1,2,…}}.npy" in said
    assert main(["data", name, "--root", str(tmp_path / "empty")]) == 2
    assert "train/image: there is no such folder" in capsys.readouterr().err
    # Whole files of another size and number are named as such.
    source = {"nyuv2": OfficialNYUv2, "cityscapes": OfficialCityScapes}[name]()
    found = "\n".join(source.problems(folders[name]))
    assert f"must hold {cls.layout.counts[0]} pictures, got 4" in found
    assert "pixels, got 32 × 64" in found


# --- runs and tables -------------------------------------------------------------------------------------------------


@both
def test_runs_and_their_tables(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    words = f"run {name} --benchmark.root {folders[name]} --model segnet-split --benchmark.width 0.0625 --epochs 1"
    assert main([*words.split(), "--out", str(tmp_path / "runs")]) == 0
    results = find_runs([tmp_path / "runs"])[0]
    assert len(results) == 1 + len(KINDS[name][0].tasks)
    (comparison,) = compare(results)
    (joint,) = comparison.full
    assert joint.delta_m is not None
    assert [table.name for table in all_tables(comparison)] == ["results"]  # generated: nothing published beside it
    assert "are not the official ones" in make_benchmark(comparison.config.benchmark).caveats[0]


@both
def test_published_rows_stand_beside_runs_on_official_pictures(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_official(monkeypatch)
    options = {"root": str(folders[name]), "model": Choice("segnetsplit"), "width": 1 / 16}
    runs = [
        run(RunConfig.resolve(Choice(name, options), method, epochs=1, batch_size=4), tmp_path / method)
        for method in ("ls", "fairgrad")
    ]
    (comparison,) = compare(runs)
    tables = [table for table in all_tables(comparison) if table.name == "published"]
    assert len(tables) == 2
    for table in tables:
        assert any("Known errors of this table" in note for note in table.notes)
        assert any("width 0.0625 instead of None" in note and "epochs 1 instead of 200" in note for note in table.notes)
        labels = [row.label for row in table.rows]
        assert any(label.endswith("(ls)") for label in labels)
        assert any(label.endswith("(single task)") for label in labels)


# --- single-task runs of another network -----------------------------------------------------------------------------


PLAIN = Choice("segnetsplit", {"variant": "standard"})


def small(root: Path, method: str = "ls", **settings: Any) -> RunConfig:
    return RunConfig.resolve(Choice("nyuv2", {"root": str(root), "width": 1 / 16}), method, epochs=1, **settings)


def test_single_task_runs_of_another_network_are_its_own_runs(folders: dict[str, Path]) -> None:
    root = folders["nyuv2"]
    config = small(root, "fairgrad", baseline_model="SegNet-Split", seed=3)
    assert config.baseline_model == PLAIN
    assert config.benchmark.options["model"].name == "segnetmtan"
    singles = single_task_configs(config)
    plain = Choice("nyuv2", {"root": str(root), "width": 1 / 16, "model": "segnetsplit"})
    assert singles == tuple(RunConfig.resolve(plain, epochs=1, seed=3, tasks=(task,)) for task in NYUv2.tasks)
    # One directory for both: the runs of a plain network that anyone trains.
    assert {single.name for single in singles} == {
        single.name for single in single_task_configs(RunConfig.resolve(plain, "mgda", epochs=1, seed=3))
    }
    assert {single.name for single in singles}.isdisjoint(s.name for s in single_task_configs(small(root, seed=3)))


def test_the_file_of_a_run_names_the_network_where_it_is_another(folders: dict[str, Path]) -> None:
    root = folders["nyuv2"]
    without, other = small(root), small(root, baseline_model="segnetsplit")
    assert "baseline_model" not in without.as_dict()
    assert other.as_dict()["baseline_model"] == PLAIN.as_dict()
    assert {k: v for k, v in other.as_dict().items() if k != "baseline_model"} == without.as_dict()
    for config in (without, other):
        assert RunConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert without.name != other.name
    # The run's own network is no other one, and a task alone has no baselines.
    assert small(root, baseline_model=Choice("segnetmtan", {"attention": "shared"})) == without
    assert small(root, baseline_model="segnetsplit", tasks=("depth",)) == small(root, tasks=("depth",))


def test_networks_of_single_task_runs_are_looked_at_before_anything_runs(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = folders["nyuv2"]
    with pytest.raises(UnknownNameError, match="unknown model 'segnet'"):
        small(root, baseline_model="segnet")
    with pytest.raises(InvalidParameterError, match=r"`model.attention` must be 'shared' where `family` is 'nash'"):
        small(root, baseline_model=Choice("segnetmtan", {"attention": "task"}))
    with pytest.raises(InvalidParameterError, match="`baseline_model` must belong to a benchmark that lets its"):
        RunConfig.resolve("toy", baseline_model="segnetsplit")
    assert main(["run", "toy", "--baseline_model", "segnetsplit"]) == 2
    assert "mtl-bench: `--baseline_model` must belong to a benchmark" in capsys.readouterr().err
    words = ["run", "nyuv2", "--benchmark.root", str(root), "--baseline_model"]
    assert main([*words, "segnetsplit:depth=3"]) == 2
    assert "unknown option of model 'segnetsplit' 'depth'" in capsys.readouterr().err


def test_the_words_of_another_network(folders: dict[str, Path], tmp_path: Path) -> None:
    words = ["nyuv2", "--benchmark.root", str(folders["nyuv2"]), "--benchmark.family", "cagrad"]
    words += ["--model.attention", "task"]

    def planned(*more: str) -> RunConfig:
        plan = parse_run([*words, *more])
        assert plan is not None
        return plan.configs[0]

    named = planned("--baseline_model", "segnetmtan:attention=task")
    assert named == planned()
    other = planned("--baseline_model", "segnetsplit")
    assert other.baseline_model == PLAIN
    file = tmp_path / "config.json"
    file.write_text(json.dumps(other.as_dict()))
    again = parse_run(["--config", str(file)])
    assert again is not None
    assert again.configs == (other,)
    back = parse_run(["--config", str(file), "--baseline_model", "none"])
    assert back is not None
    assert back.configs == (named,)


def test_delta_m_against_one_network_never_stands_beside_that_against_another(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the same runs alone are baselines of one and, in a table of their own network, of the other."""
    out = tmp_path / "runs"
    words = f"run cityscapes --benchmark.root {folders['cityscapes']} --benchmark.width 0.0625 --epochs 1 --out {out}"
    assert main([*words.split(), "--baseline_model", "segnetsplit"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "single-task run(s) of this code with the network segnetsplit, seeds 0" in said
    assert main(words.split()) == 0
    assert main([*words.split(), "--model", "segnetsplit"]) == 0
    results = find_runs([out])[0]
    assert len(results) == 3 + 2 * 2  # the plain network's single tasks are trained once
    found = {
        (c.config.benchmark.options["model"].name, c.config.baseline_model is not None): c for c in compare(results)
    }
    assert sorted(found) == [("segnetmtan", False), ("segnetmtan", True), ("segnetsplit", False)]
    other = found["segnetmtan", True]
    assert [group.label for group in other.groups] == [
        "ls", *(f"single {task} (segnetsplit)" for task in CityScapes.tasks)
    ]  # fmt: skip
    assert "baseline_model.name segnetsplit" in other.title
    for key in (("segnetmtan", False), ("segnetsplit", False)):
        assert [group.label for group in found[key].groups] == ["ls", *(f"single {task}" for task in CityScapes.tasks)]
    # By hand: the same joint values against the one and the other network.
    by_key = {run.config.name: run for run in results}
    joint = other.groups[0].runs[0]
    values = {}
    for single in single_task_configs(joint.config):
        assert single.benchmark.options["model"].name == "segnetsplit"
        values |= by_key[single.name].values
    baselines = [Baseline(m, values[m.name], "by hand") for m in CityScapes.metrics]
    assert other.full[0].delta_m is not None
    assert other.full[0].delta_m.mean == pytest.approx(delta_m(joint.values, baselines))
    same = found["segnetmtan", False].full[0]
    assert same.runs[0].values == joint.values
    assert same.delta_m is not None
    assert same.delta_m.mean != other.full[0].delta_m.mean


def test_a_study_is_measured_against_the_network_that_it_names(folders: dict[str, Path], tmp_path: Path) -> None:
    benchmark = Choice("cityscapes", {"root": str(folders["cityscapes"]), "width": 1 / 16})
    settings = {"epochs": 1, "baseline_model": "segnetsplit"}
    found = study(benchmark, [Choice("ls")], seeds=[0], out=tmp_path / "runs", settings=settings)
    assert len({record.protocol for record in found.records}) == 1
    (row,) = rows_of(found.records)
    joint = next(run for run in found.runs if not run.config.is_single_task)
    (comparison,) = compare(found.runs)
    assert row.measure["none"][0] == comparison.full[0].deltas[0]
    plain = study(benchmark, [Choice("ls")], seeds=[0], out=tmp_path / "plain", settings={"epochs": 1})
    assert {record.protocol for record in plain.records}.isdisjoint(record.protocol for record in found.records)
    assert joint.config.baseline_model == PLAIN


def test_published_rows_do_not_mind_which_network_single_tasks_have(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_official(monkeypatch)
    runs = [run(small(folders["nyuv2"], baseline_model="segnetsplit", batch_size=4), tmp_path / "ls")]
    (comparison,) = compare(runs)
    notes = [note for table in all_tables(comparison) if table.name == "published" for note in table.notes]
    assert any("epochs 1 instead of 200" in note for note in notes)
    assert not any("baseline_model" in note for note in notes)


def test_the_papers_low_rank_layers(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As released: 36 convolutions and 502,855 trainable numbers at rank 5."""
    from mtl_teleport import LoRA

    pretend_official(monkeypatch)
    benchmark = NYUv2(root=folders["nyuv2"])
    problem = benchmark.problem(benchmark.build(), tasks=benchmark.tasks)
    session = LoRA(**benchmark.teleport_options["adapter"].options).attach(
        problem, generator=torch.Generator().manual_seed(0)
    )
    assert len(session.delta()) == 36
    assert all(name.endswith("0.weight") and "_block" in name for name in session.delta())
    assert sum(p.numel() for p in session.trainable) == 502_855


@pytest.mark.parametrize(("name", "model"), [("nyuv2", "segnetcrossstitch"), ("cityscapes", "segnetsplit")])
def test_a_run_with_cost_from_the_command_line(name: str, model: str, folders: dict[str, Path], tmp_path: Path) -> None:
    words = (
        f"run {name} --benchmark.root {folders[name]} --benchmark.width 0.0625 --model {model} --epochs 1 "
        f"--method fairgrad --teleport cost --teleport.trigger any-mean --baselines none --out {tmp_path / 'runs'}"
    )
    assert main(words.split()) == 0
    (result,) = find_runs([tmp_path / "runs"])[0]
    assert result.config.teleport is not None
    adapter = result.config.teleport.options["adapter"]
    assert (adapter.name, adapter.options["targets"]) == ("lora", ["*_block*"])


PAGE = Path(__file__).parents[4] / "docs" / "benchmarks.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the package stands alone")
def test_the_commands_of_the_page_are_understood(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `mtl-bench run` of these benchmarks in docs/benchmarks.md, with folders and a module that are there."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    (tmp_path / "equal.py").write_text(PAGE.read_text().partition("```py\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    places = {"nyuv2": folders["nyuv2"], "cityscapes": folders["cityscapes"], "celeba": tmp_path}
    lines = [line[2:].partition(" #")[0].split() for line in PAGE.read_text().splitlines() if line.startswith("$ ")]
    runs = [line[2:] for line in lines if line[:2] == ["mtl-bench", "run"] and line[2] in places]
    assert len(runs) >= 10
    for name, *words in runs:
        words[words.index("--benchmark.root") + 1] = str(places[name])
        plan = parse_run([name, *words])
        assert plan is not None
        assert all(config.benchmark.name == name for config in plan.configs)
