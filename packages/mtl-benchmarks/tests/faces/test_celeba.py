"""CelebA on drawn faces in the official files: reading, what is wrong with files, F1, the protocol and runs."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch.nn import functional

from mtl_benchmarks import RunConfig, delta_m, run
from mtl_benchmarks.batching.batches import Part
from mtl_benchmarks.batching.tally import combined
from mtl_benchmarks.benchmarks import CelebA
from mtl_benchmarks.benchmarks.celeba import f1_score
from mtl_benchmarks.cli import main
from mtl_benchmarks.comparison import find_runs
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.faces import ATTRIBUTES, COUNTS, FaceFolder, OfficialCelebA, source
from mtl_benchmarks.protocol import papers
from mtl_core import InvalidInputError, InvalidParameterError, MissingExtraError, collect

Image = pytest.importorskip("PIL.Image")
ImageDraw = pytest.importorskip("PIL.ImageDraw")

FAIRGRAD = (
    0.673481, 0.6715126, 0.80895394, 0.59129095, 0.716146, 0.84868795, 0.5293899, 0.6024346, 0.79252076, 0.8232979,
    0.49155608, 0.68601424, 0.6678187, 0.50076723, 0.5353463, 0.9543982, 0.6991702, 0.6246493, 0.87510586, 0.85260683,
    0.9679586, 0.91303086, 0.53938675, 0.44097534, 0.9698319, 0.30875763, 0.5560105, 0.5475425, 0.5299987, 0.6050991,
    0.72113657, 0.9100189, 0.48792267, 0.6447788, 0.7013081, 0.8596742, 0.92936283, 0.40353844, 0.7261722, 0.9126637,
)  # fmt: skip
"""F1 of FairGrad as its authors give them; their Δm of 0.37 is published."""


def drawn_face(labels: dict[str, bool], rng: numpy.random.Generator) -> Image.Image:
    """An oval with eyes and a mouth that show what they can of the attributes."""
    picture = Image.new("RGB", (178, 218), tuple(int(x) for x in rng.integers(90, 160, 3)))
    draw = ImageDraw.Draw(picture)
    skin = (235, 215, 200) if labels["Pale_Skin"] else (190, 140, 110)
    hair = (40, 30, 25) if labels["Black_Hair"] else (220, 190, 110)
    if not labels["Bald"]:
        draw.ellipse((29, 15, 149, 150), fill=hair)
    draw.ellipse((39, 40, 139, 195), fill=skin)
    for x in (68, 110):
        draw.ellipse((x - 9, 95, x + 9, 107), fill=(255, 255, 255))
        draw.ellipse((x - 4, 97, x + 4, 105), fill=(30, 40, 60))
        if labels["Eyeglasses"]:
            draw.rectangle((x - 16, 88, x + 16, 114), outline=(0, 0, 0), width=4)
    bounds = (65, 140, 113, 172)
    draw.arc(bounds, *((20, 160) if labels["Smiling"] else (200, 340)), fill=(160, 40, 50), width=5)
    return picture


def written(root: Path, counts: tuple[int, int, int] = (20, 5, 5)) -> Path:
    rng = numpy.random.default_rng(0)
    for folder in ("Img/img_align_celeba", "Anno", "Eval"):
        (root / folder).mkdir(parents=True)
    n = sum(counts)
    values = rng.random((n, 40)) < 0.5
    rows, parts = [], []
    for k in range(n):
        name = f"{k + 1:06d}.jpg"
        picture = drawn_face(dict(zip(ATTRIBUTES, values[k].tolist(), strict=True)), rng)
        picture.save(root / "Img/img_align_celeba" / name)
        rows.append(f"{name}  " + " ".join(" 1" if v else "-1" for v in values[k]))
        parts.append(f"{name} {0 if k < counts[0] else 1 if k < counts[0] + counts[1] else 2}")
    (root / "Anno/list_attr_celeba.txt").write_text("\n".join([str(n), " ".join(ATTRIBUTES) + " ", *rows]) + "\n")
    (root / "Eval/list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("celeba"))


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_are_read_as_they_lie(drawn: Path) -> None:
    sizes = {split: len(FaceFolder(drawn, split)) for split in COUNTS}
    assert sizes == {"train": 20, "validation": 5, "test": 5}
    folder = FaceFolder(drawn, "test")
    assert folder.names == [f"{k:06d}.jpg" for k in range(26, 31)]
    one = folder[2]
    assert (one.images.shape, one.images.dtype, one.labels.shape) == ((1, 3, 64, 64), torch.uint8, (1, 40))
    row = (drawn / "Anno/list_attr_celeba.txt").read_text().splitlines()[2 + 27].split()
    assert row[0] == folder.names[2]
    assert one.labels[0].tolist() == [float(value == "1") for value in row[1:]]
    with Image.open(drawn / "Img/img_align_celeba" / folder.names[2]) as picture:
        whole = numpy.asarray(picture, dtype=numpy.float64)
    # Made smaller without regard to its shape: the means of the halves stay.
    found = one.images[0].double().movedim(0, -1).numpy()
    assert found[:32].mean() == pytest.approx(whole[:109].mean(), abs=2)
    assert found[:, :32].mean() == pytest.approx(whole[:, :89].mean(), abs=2)
    assert float(one.pixels().max()) <= 1


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("no pictures", r"without Img/img_align_celeba\."),
        ("no labels", r"without Anno/list_attr_celeba\.txt\."),
        ("missing picture", r"000007\.jpg: is missing"),
        ("empty picture", r"000007\.jpg: is empty"),
        ("labels without last newline", r"list_attr_celeba\.txt: must end with a newline"),
        ("partition without last newline", r"list_eval_partition\.txt: must end with a newline"),
        ("cut labels", r"must have 30 rows as its first line says, got 17"),
        ("label 0", r"line 5 must have 40 values of -1 or 1, got '0'"),
        ("39 labels", r"line 5 must have 40 values of -1 or 1, got 39 of them"),
        ("other names", r"line 2 must name the 40 attributes, got 40: Young"),
        ("split 3", r"line 4 must be a picture's name and 0, 1 or 2, got '000004\.jpg 3'"),
        ("other order", r"in the same order, got another one in row 2"),
        ("one twice", r"must list each picture once, got 000001\.jpg more than once"),
        ("no test", r"must have pictures of split test, got none"),
        ("twice", r"list_attr_celeba\.txt: must list each picture once, got 000001\.jpg more than once"),
        ("cut picture", r"000007\.jpg: is no whole JPEG file"),
        ("other picture", r"000007\.jpg: is no whole JPEG file"),
        ("folder", r"000007\.jpg: cannot be read: Is a directory"),
    ],
)
def test_what_is_wrong_with_the_files_is_named_before_anything_is_trained(
    drawn: Path, tmp_path: Path, what: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(drawn, tmp_path / "faces")
    pictures, labels, parts = (
        root / "Img/img_align_celeba", root / "Anno/list_attr_celeba.txt", root / "Eval/list_eval_partition.txt"
    )  # fmt: skip
    rows, listed = labels.read_text().splitlines(), parts.read_text().splitlines()
    if what == "no pictures":
        shutil.rmtree(pictures)
    elif what == "no labels":
        labels.unlink()
    elif what == "missing picture":
        (pictures / "000007.jpg").unlink()
    elif what == "empty picture":
        (pictures / "000007.jpg").write_bytes(b"")
    elif what == "cut picture":
        content = (pictures / "000007.jpg").read_bytes()
        (pictures / "000007.jpg").write_bytes(content[: len(content) * 2 // 3])
    elif what == "other picture":
        Image.new("RGB", (178, 218)).save(pictures / "000007.jpg", format="PNG")
    elif what == "folder":
        (pictures / "000007.jpg").unlink()
        (pictures / "000007.jpg").mkdir()
    elif what == "twice":
        # The same in both files: it would be trained on and tested on.
        labels.write_text("\n".join([*rows[:-1], rows[-1].replace("000030", "000001")]) + "\n")
        parts.write_text("\n".join([*listed[:-1], "000001.jpg 2"]) + "\n")
    elif what == "labels without last newline":
        labels.write_text("\n".join(rows))
    elif what == "partition without last newline":
        parts.write_text("\n".join(listed))
    elif what == "one twice":
        rows[3] = rows[3].replace("000002", "000001")
        listed[1] = listed[1].replace("000002", "000001")
        labels.write_text("\n".join(rows) + "\n")
        parts.write_text("\n".join(listed) + "\n")
    elif what == "other order":
        parts.write_text("\n".join([listed[0], listed[2], listed[1], *listed[3:]]) + "\n")
    elif what == "split 3":
        parts.write_text("\n".join([*listed[:3], "000004.jpg 3", *listed[4:]]) + "\n")
    elif what == "no test":
        parts.write_text("\n".join(line.replace(" 2", " 1") for line in listed) + "\n")
    else:
        if what == "cut labels":
            rows = rows[:19]
        elif what == "other names":
            rows[1] = " ".join(reversed(ATTRIBUTES))
        elif what == "label 0":
            rows[4] = rows[4][:-2] + " 0"
        else:
            rows[4] = rows[4].rsplit(None, 1)[0]
        labels.write_text("\n".join(rows) + "\n")
    with pytest.raises(InvalidInputError, match=text):
        CelebA(root=root).build()
    assert main(["run", "celeba", "--benchmark.root", str(root), "--out", str(tmp_path / "runs")]) == 2
    assert not list((tmp_path / "runs").glob("*/steps.csv"))
    assert main(["data", "celeba", "--root", str(root)]) == 2
    capsys.readouterr()


def test_a_few_bytes_behind_the_end_of_a_picture_are_no_harm(drawn: Path, tmp_path: Path) -> None:
    root = shutil.copytree(drawn, tmp_path / "faces")
    path = root / "Img/img_align_celeba/000003.jpg"
    path.write_bytes(path.read_bytes() + b"\0" * 9)
    assert FaceFolder(root, "train")[2].images.equal(FaceFolder(drawn, "train")[2].images)


def test_a_picture_that_is_damaged_inside_is_named_when_it_is_read(drawn: Path, tmp_path: Path) -> None:
    root = shutil.copytree(drawn, tmp_path / "faces")
    path = root / "Img/img_align_celeba/000003.jpg"
    path.write_bytes(b"\xff\xd8" + bytes(200) + b"\xff\xd9")
    with pytest.raises(InvalidInputError, match=r"000003\.jpg must be a readable picture"):
        FaceFolder(root, "train")[2]


def test_another_edition_is_named(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "COUNTS", {"train": 20, "validation": 5, "test": 5})
    found = OfficialCelebA().problems(drawn)
    assert [problem.partition(": must have the MD5 ")[0] for problem in found] == [
        str(drawn / "Anno/list_attr_celeba.txt"), str(drawn / "Eval/list_eval_partition.txt")
    ]  # fmt: skip
    root = shutil.copytree(drawn, tmp_path / "faces")
    texts = (root / "Anno/list_attr_celeba.txt", root / "Eval/list_eval_partition.txt")
    digests = {str(text.relative_to(root)): hashlib.md5(text.read_bytes()).hexdigest() for text in texts}
    monkeypatch.setattr(source, "_DIGESTS", digests)
    assert OfficialCelebA().problems(root) == []
    # One label turned round: no row and no value is wrong.
    texts[0].write_text(texts[0].read_text().replace("-1", " 1", 1))
    (problem,) = OfficialCelebA().problems(root)
    assert problem.startswith(f"{texts[0]}: must have the MD5 ")
    shutil.copy(drawn / "Anno/list_attr_celeba.txt", texts[0])
    # Pictures that were not cropped.
    Image.new("RGB", (409, 687)).save(root / "Img/img_align_celeba/000001.jpg")
    (problem,) = OfficialCelebA().problems(root)
    assert "must hold the aligned pictures of 178 × 218, got one of 409 × 687" in problem
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert OfficialCelebA().problems(root) == []


def test_what_to_fetch_is_said(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "celeba"]) == 0
    said = capsys.readouterr().out
    assert "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html" in said
    assert "202,599 files" in said
    assert "75e246fa4810816ffd6ee81facbd244c  Anno/list_attr_celeba.txt" in said
    assert main(["data", "celeba", "--root", str(drawn)]) == 2
    assert "must have 162,770 pictures of split train, got 20" in capsys.readouterr().err
    assert main(["describe", "celeba"]) == 0
    assert "No faces come with this package" in capsys.readouterr().out


def test_splits_larger_than_the_data(drawn: Path) -> None:
    assert len(CelebA(root=drawn, n_test=3).data("test")) == 3
    with pytest.raises(InvalidInputError, match="`n_test` must be at most 5, the pictures of that split"):
        CelebA(root=drawn, n_test=6).build()
    with pytest.raises(InvalidParameterError, match="`n_train`"):
        CelebA(root=drawn, n_train=0)
    for size in (19, 1):
        with pytest.raises(InvalidParameterError, match="must leave no batch of one picture"):
            CelebA(root=drawn).batches(batch_size=size, seed=0, device="cpu")


def test_without_pillow_it_says_what_to_install(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pillow>="):
        FaceFolder(drawn, "train")[0]


# --- F1 and Δm -------------------------------------------------------------------------------------------------------


def test_f1_by_hand() -> None:
    found = f1_score(torch.tensor([3.0, 0.0, 5.0]), torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0]))
    assert found.tolist() == pytest.approx([0.6, 0.0, 1.0], abs=1e-6)


def test_fairgrads_own_scores_give_the_delta_that_it_publishes() -> None:
    benchmark = CelebA(root="nowhere")
    assert sum(b.value for b in benchmark.baselines) / 40 == pytest.approx(69.7135, abs=1e-4)
    scores = {metric.name: 100 * value for metric, value in zip(benchmark.metrics, FAIRGRAD, strict=True)}
    assert round(delta_m(scores, benchmark.baselines), 4) == 0.3701


def test_scores_count_over_whole_splits(drawn: Path) -> None:
    benchmark = CelebA(root=drawn, width=2)
    torch.manual_seed(0)
    model = benchmark.build().train()
    found = benchmark.evaluate(model, device="cpu")
    assert model.training
    model.eval()
    folder = FaceFolder(drawn, "test")
    for column, task in ((0, ATTRIBUTES[0]), (31, "Smiling")):
        with torch.no_grad():
            yes = [bool(model(folder[k].pixels())[task] > 0) for k in range(5)]
        there = [bool(folder.labels[k, column]) for k in range(5)]
        hits = sum(a and b for a, b in zip(yes, there, strict=True))
        wrong = sum(a != b for a, b in zip(yes, there, strict=True))
        expected = 2 * hits / (2 * hits + wrong) if hits else 0.0
        assert found["test"][f"f1_{task}"] == pytest.approx(100 * expected, abs=1e-4)
    parts = combined([benchmark.tally(model, device="cpu", part=Part(k, 3)) for k in range(3)])
    assert benchmark.metrics_from(parts) == found


# --- protocol and runs -----------------------------------------------------------------------------------------------


def test_official_pictures_get_the_papers_protocol(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Eval").mkdir()
    (tmp_path / "Eval/list_eval_partition.txt").write_text("000001.jpg 0\n" * 202_599)
    assert CelebA(root=tmp_path).training == papers.celeba() == CelebA(root="nowhere").training
    assert CelebA(root=tmp_path, n_train=1000).training.epochs == 5
    assert CelebA(root=drawn).training.epochs == 5
    assert CelebA(root=drawn).baselines == CelebA(root=drawn).published == ()
    monkeypatch.setattr(CelebA, "is_official", True)
    model = CelebA(root=drawn).build()
    assert sum(p.numel() for p in model.parameters()) == 5_197_160
    assert sum(p.numel() for p in CelebA(root=drawn).problem(model, tasks=ATTRIBUTES).shared) == 5_176_640


def test_forty_losses_and_their_gradients(drawn: Path) -> None:
    benchmark = CelebA(root=drawn, width=2)
    torch.manual_seed(0)
    model = benchmark.build()
    problem = benchmark.problem(model, tasks=benchmark.tasks)
    batch = benchmark.batches(batch_size=10, seed=0, device="cpu").batch(0, 0)
    losses = problem.losses(batch)
    assert losses.tasks == ATTRIBUTES
    probability = model(batch.pixels())["Smiling"].sigmoid()
    expected = functional.binary_cross_entropy(probability, batch.labels[:, 31])
    torch.testing.assert_close(losses.values[31], expected)
    with_features = collect(losses.values, problem.shared, features=losses.features, heads=problem.heads)
    without = collect(problem.losses(batch).values, problem.shared)
    torch.testing.assert_close(with_features.matrix, without.matrix, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("fraction", [0.5, 0.4])
def test_a_run_with_cost_waits_for_a_majority(drawn: Path, tmp_path: Path, fraction: float) -> None:
    words = (
        f"run celeba --benchmark.root {drawn} --benchmark.width 2 --epochs 1 --batch_size 10 --method fairgrad "
        f"--teleport cost --baselines none --out {tmp_path}"
    ).split()
    more = [] if fraction == 0.5 else ["--teleport.trigger.fraction", str(fraction)]
    assert main([*words, *more]) == 0
    (result,) = find_runs([tmp_path])[0]
    assert result.config.teleport is not None
    assert result.config.teleport.options["trigger"] == Choice("majority", {"fraction": fraction})
    assert set(result.values) == {f"f1_{task}" for task in ATTRIBUTES}


def test_the_reported_epoch_is_the_best_on_the_validation_pictures(drawn: Path, tmp_path: Path) -> None:
    config = RunConfig.resolve(
        Choice("celeba", {"root": str(drawn), "width": 2}), tasks=("Smiling", "Bald"), epochs=3, batch_size=10
    )
    result = run(config, tmp_path / "run")
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[1:]]

    def scores(split: str, epoch: str) -> list[float]:
        return [float(row[-1]) for row in rows if row[2] == split and row[0] == epoch and row[4].startswith("f1_")]

    means = [sum(scores("validation", str(e))) for e in (1, 2, 3)]
    best = max(e for e in (1, 2, 3) if means[e - 1] == max(means))
    assert sorted(result.values.values()) == pytest.approx(sorted(scores("test", str(best))))
