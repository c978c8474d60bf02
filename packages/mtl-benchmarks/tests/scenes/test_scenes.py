"""NYUv2 and CityScapes: files, augmentation, losses and metrics, by numbers worked by hand and pixel by pixel."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from mtl_benchmarks import printed_baselines
from mtl_benchmarks.models import CITYSCAPES_OUTPUTS, NYUV2_OUTPUTS, SegNetSplit
from mtl_benchmarks.scenes import (
    CITYSCAPES,
    NYUV2,
    SceneFolder,
    SceneLayout,
    Scenes,
    SceneScores,
    augmented,
    depth_loss,
    normal_loss,
    scene_losses,
    scene_metrics,
    semantic_loss,
)
from mtl_benchmarks.scenes.augmentation import cropped, flipped
from mtl_core import InvalidInputError, InvalidParameterError, Problem, step

LAYOUTS = {"NYUv2": NYUV2, "CityScapes": CITYSCAPES}
both = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def arrays(layout: SceneLayout, rng: numpy.random.Generator, size: tuple[int, int]) -> dict[str, numpy.ndarray]:
    h, w = size
    blocks = (numpy.arange(h)[:, None] // 4 * 7 + numpy.arange(w) // 4) % layout.n_classes
    label = blocks.astype(numpy.float64)
    label[:2] = -1
    low, high = (0.7, 9.7) if layout.normals else (0.003, 0.45)
    depth = rng.uniform(low, high, (h, w, 1))
    depth[-3:] = 0
    found = {"image": rng.uniform(0, 1, (h, w, 3)).astype(numpy.float32), layout.labels: label, "depth": depth}
    if layout.normals:
        normal = rng.standard_normal((h, w, 3))
        normal /= numpy.linalg.norm(normal, axis=-1, keepdims=True)
        normal[:, :3] = 0
        found["normal"] = normal
    return found


def written(root: Path, layout: SceneLayout, *, n: int = 3, size: tuple[int, int] = (32, 64)) -> Path:
    """A tiny data set in the official format: train has n pictures, val one."""
    rng = numpy.random.default_rng(0)
    for split, count in (("train", n), ("val", 1)):
        for k in range(count):
            for folder, values in arrays(layout, rng, size).items():
                (root / split / folder).mkdir(parents=True, exist_ok=True)
                numpy.save(root / split / folder / f"{k}.npy", values)
    return root


def scenes(layout: SceneLayout, n: int = 2, *, size: tuple[int, int] = (32, 64), seed: int = 0) -> Scenes:
    rng = numpy.random.default_rng(seed)
    rows = []
    for _ in range(n):
        found = {k: torch.from_numpy(v).float() for k, v in arrays(layout, rng, size).items()}
        normals = found["normal"].movedim(-1, 0)[None] if layout.normals else None
        image, depth = (found[k].movedim(-1, 0)[None] for k in ("image", "depth"))
        rows.append(Scenes.of(image, found[layout.labels][None].long(), depth, normals))
    return Scenes.stack(rows)


# --- files -----------------------------------------------------------------------------------------------------------


@both
def test_files_are_read_as_they_lie(tmp_path: Path, layout: SceneLayout) -> None:
    folder = SceneFolder(written(tmp_path, layout, n=12), "train", layout)  # 10 and 11 sort after 9, not after 1
    assert (len(folder), folder.size) == (12, (32, 64))
    for k in (0, 2, 11):
        found = folder.read(k)
        for name, tensor in (("image", found.images), ("depth", found.depth), ("normal", found.normals)):
            if tensor is not None:
                raw = numpy.load(tmp_path / "train" / name / f"{k}.npy").astype(numpy.float32)
                assert tensor.dtype == torch.float32
                assert numpy.array_equal(tensor[0].movedim(0, -1).numpy(), raw)
        labels = numpy.load(tmp_path / "train" / layout.labels / f"{k}.npy")
        assert found.labels.dtype == torch.int64
        assert numpy.array_equal(found.labels[0].numpy(), labels)
        assert found.present == layout.tasks
    batch = folder.load([2, 0])
    assert torch.equal(batch.images[1], folder.read(0).images[0])
    assert len(SceneFolder(tmp_path, "val", layout)) == 1


def broken(root: Path, what: str) -> str:
    """Break one file; returns what the message must say."""
    train = root / "train"
    if what == "missing file":
        (train / "depth" / "1.npy").unlink()
        return r"depth/1\.npy: is missing"
    if what == "missing folder":
        (train / "normal").rename(train / "normals")
        return "normal: there is no such folder"
    if what == "truncated":
        path = train / "image" / "2.npy"
        path.write_bytes(path.read_bytes()[:-100])
        return r"image/2\.npy must be a whole \.npy file"
    if what == "empty file":
        (train / "image" / "2.npy").write_bytes(b"")
        return r"image/2\.npy must be a whole \.npy file"
    if what == "begins at 1":
        for folder in train.iterdir():
            (folder / "0.npy").rename(folder / "3.npy")
        return r"image/0\.npy: is missing"
    if what == "zero-padded":
        (train / "label" / "1.npy").rename(train / "label" / "0001.npy")
        return r"label/0001\.npy: must be named by a number"
    if what == "another size":
        numpy.save(train / "normal" / "1.npy", numpy.zeros((32, 32, 3)))
        return r"normal/1\.npy: must be numbers of shape \(32, 64, 3\), got float64 of \(32, 32, 3\)"
    if what == "channels first":
        numpy.save(train / "depth" / "1.npy", numpy.zeros((1, 32, 64)))
        return r"depth/1\.npy: must be numbers of shape \(32, 64, 1\)"
    if what == "no pixels":
        for path in train.rglob("*.npy"):
            numpy.save(path, numpy.load(path)[:0])
        return r"image/0\.npy: must have pixels, got an array of shape \(0, 64, 3\)"
    if what == "one row":
        numpy.save(train / "image" / "0.npy", numpy.zeros(64))
        return r"image/0\.npy: must be numbers of shape \(height, width, 3\), got float64 of \(64,\)"
    if what == "archive":
        with (train / "image" / "1.npy").open("wb") as file:
            numpy.savez(file, image=numpy.zeros((32, 64, 3)))
        return r"image/1\.npy must be a whole \.npy file"
    if what == "half an archive":
        (train / "image" / "1.npy").write_bytes(b"PK\x03\x04 and no more")
        return r"image/1\.npy must be a whole \.npy file"
    numpy.save(train / "image" / "1.npy", numpy.full((32, 64, 3), "a"))
    return r"image/1\.npy: must be numbers"


@pytest.mark.parametrize(
    "what",
    ["missing file", "missing folder", "truncated", "empty file", "begins at 1", "zero-padded", "another size",
     "channels first", "no pixels", "one row", "archive", "half an archive", "text"],
)  # fmt: skip
def test_what_is_wrong_with_the_files_is_named_before_anything_is_read(tmp_path: Path, what: str) -> None:
    written(tmp_path, NYUV2)
    text = broken(tmp_path, what)
    with pytest.raises(InvalidInputError, match=text):
        SceneFolder(tmp_path, "train", NYUV2)


def test_no_data_at_all(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="image: there is no such folder"):
        SceneFolder(tmp_path / "nowhere", "train", NYUV2)
    for folder in NYUV2.folders:
        (tmp_path / "train" / folder).mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=r"image: there is no \.npy file"):
        SceneFolder(tmp_path, "train", NYUV2)


@pytest.mark.parametrize(
    ("folder", "value", "text"),
    [
        ("label", 13.0, "whole numbers from -1 to 12, got 13"),
        ("label", -2.0, "got -2"),
        ("label", 3.5, r"got 3\.5"),
        ("depth", math.nan, r"depth/1\.npy must hold finite numbers"),
        ("label", math.nan, r"label/1\.npy must hold finite numbers"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, folder: str, value: float, text: str) -> None:
    path = written(tmp_path, NYUV2) / "train" / folder / "1.npy"
    values = numpy.load(path)
    values[5, 5] = value
    numpy.save(path, values)
    data = SceneFolder(tmp_path, "train", NYUV2)
    data.read(0)
    with pytest.raises(InvalidInputError, match=text):
        data.read(1)
    with pytest.raises(InvalidInputError, match="`index` must be from 0 to 2, got 3"):
        data.read(3)


@pytest.mark.parametrize("change", ["half as long", "longer", "as colours", "one that is longer"])
def test_normals_of_another_length_are_refused(tmp_path: Path, change: str) -> None:
    path = written(tmp_path, NYUV2) / "train" / "normal" / "1.npy"
    values = numpy.load(path)
    mixed = values.copy()
    mixed[:4] *= 0.3  # as where a picture was made smaller beside pixels that were not measured
    numpy.save(path, mixed)
    SceneFolder(tmp_path, "train", NYUV2).read(1)
    if change == "one that is longer":
        values[5, 5] = [0.9, 0.9, 0.0]
    else:
        values = {"half as long": values / 2, "longer": (values * 1.2).clip(-1, 1), "as colours": (values + 1) / 2}[
            change
        ]
    numpy.save(path, values)
    with pytest.raises(InvalidInputError, match=r"normal/1\.npy: normals must have length 1, or 0 .*, got"):
        SceneFolder(tmp_path, "train", NYUV2).read(1)


@pytest.mark.parametrize(("layout", "by", "most"), [(NYUV2, 1000, 100), (CITYSCAPES, 255, 1)])
def test_depth_in_another_unit_is_refused(tmp_path: Path, layout: SceneLayout, by: float, most: float) -> None:
    path = written(tmp_path, layout) / "train" / "depth" / "1.npy"
    numpy.save(path, by * numpy.load(path))
    with pytest.raises(InvalidInputError, match=rf"depth/1\.npy: numbers must be from 0 to {most}, got 0 to"):
        SceneFolder(tmp_path, "train", layout).read(1)


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_a_crop_pixel_by_pixel() -> None:
    whole = scenes(NYUV2, 1, size=(12, 24))
    found = cropped(whole, scale=1.5, top=3, left=5)
    h, w = 8, 16  # int(12 / 1.5), int(24 / 1.5)
    for i in range(12):
        for j in range(24):
            near = 3 + i * h // 12, 5 + j * w // 24
            assert found.labels[0, i, j] == whole.labels[0][near]
            assert found.depth[0, 0, i, j] == whole.depth[0, 0][near] / 1.5
            y, x = i * (h - 1) / 11, j * (w - 1) / 23
            a, b = min(int(y), h - 2), min(int(x), w - 2)
            for source, got in ((whole.images, found.images), (whole.normals, found.normals)):
                assert source is not None
                assert got is not None
                part = source[0, :, 3 + a : 5 + a, 5 + b : 7 + b].double()
                top = part[:, 0, 0] * (1 - x + b) + part[:, 0, 1] * (x - b)
                low = part[:, 1, 0] * (1 - x + b) + part[:, 1, 1] * (x - b)
                expected = top * (1 - y + a) + low * (y - a)
                torch.testing.assert_close(got[0, :, i, j].double(), expected, rtol=0, atol=1e-5)


def test_a_flip() -> None:
    whole = scenes(NYUV2, 1)
    found = flipped(whole)
    assert torch.equal(found.images, whole.images.flip(-1))
    assert torch.equal(found.labels, whole.labels.flip(-1))
    assert torch.equal(found.depth, whole.depth.flip(-1))
    assert whole.normals is not None
    assert found.normals is not None
    assert torch.equal(found.normals[:, 0], -whole.normals[:, 0].flip(-1))
    assert torch.equal(found.normals[:, 1:], whole.normals[:, 1:].flip(-1))


def test_sizes_of_the_papers_crops() -> None:
    assert [(int(288 / s), int(384 / s)) for s in (1.0, 1.2, 1.5)] == [(288, 384), (240, 320), (192, 256)]


def test_augmentation_draws_every_scale_place_and_side() -> None:
    """Pictures that hold their own coordinates tell what was cut out of them."""
    h, w = 12, 24
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    image = torch.stack([y, x, torch.zeros(h, w)]).float()[None]
    one = Scenes.of(image, torch.zeros(1, h, w).long(), torch.ones(1, 1, h, w))
    many = Scenes.stack([one] * 400)
    found = augmented(many, generator=torch.Generator().manual_seed(0))
    corners = {(round(float(p[0, 0, 0])), round(float(p[1, 0, 0])), round(float(p[1, 0, -1]))) for p in found.images}
    expected = set()
    for s in (1.0, 1.2, 1.5):
        ch, cw = int(h / s), int(w / s)
        for top in range(h - ch + 1):
            for left in range(w - cw + 1):
                expected |= {(top, left, left + cw - 1), (top, left + cw - 1, left)}
    assert corners <= expected
    assert len(corners) > 0.8 * len(expected)
    scales, counts = found.depth[:, 0, 0, 0].reciprocal().unique(return_counts=True)
    torch.testing.assert_close(scales, torch.tensor([1.0, 1.2, 1.5]))
    assert int(counts.min()) > 100
    flips = sum(float(p[1, 0, 0]) > float(p[1, 0, -1]) for p in found.images)
    assert 160 < flips < 240
    again = augmented(many, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.images, found.images)


def test_no_augmentation_leaves_the_scenes() -> None:
    whole = scenes(CITYSCAPES)
    same = augmented(whole, generator=torch.Generator(), scales=(1.0,), flip=0.0)
    torch.testing.assert_close(same.images, whole.images)
    assert torch.equal(same.labels, whole.labels)
    assert torch.equal(same.depth, whole.depth)


def test_augmentation_of_nothing_sensible_is_refused() -> None:
    with pytest.raises(InvalidParameterError, match="`scales`"):
        augmented(scenes(NYUV2), generator=torch.Generator(), scales=(0.5,))
    with pytest.raises(InvalidParameterError, match="`flip`"):
        augmented(scenes(NYUV2), generator=torch.Generator(), flip=1.5)


# --- losses ----------------------------------------------------------------------------------------------------------


def predictions(layout: SceneLayout, like: Scenes, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    b, _, h, w = like.images.shape
    found = {
        "semantic": torch.randn(b, layout.n_classes, h, w, generator=g).log_softmax(1),
        "depth": torch.rand(b, 1, h, w, generator=g),
    }
    if layout.normals:
        found["normal"] = torch.nn.functional.normalize(torch.randn(b, 3, h, w, generator=g), dim=1)
    return found


@both
def test_losses_pixel_by_pixel(layout: SceneLayout) -> None:
    truth = scenes(layout, size=(8, 12))
    outputs = predictions(layout, truth)
    sums = dict.fromkeys(layout.tasks, 0.0)
    counts = dict.fromkeys(layout.tasks, 0)
    for b in range(2):
        for i in range(8):
            for j in range(12):
                label = int(truth.labels[b, i, j])
                if label != -1:
                    sums["semantic"] -= float(outputs["semantic"][b, label, i, j])
                    counts["semantic"] += 1
                depth = float(truth.depth[b, 0, i, j])
                if depth != 0:
                    sums["depth"] += abs(float(outputs["depth"][b, 0, i, j]) - depth)
                    counts["depth"] += 1
                if truth.normals is not None and float(truth.normals[b, :, i, j].abs().sum()):
                    sums["normal"] -= float(outputs["normal"][b, :, i, j] @ truth.normals[b, :, i, j])
                    counts["normal"] += 1
    found = scene_losses(outputs, truth)
    assert tuple(found) == layout.tasks
    for task, loss in found.items():
        assert loss is not None
        assert loss.item() == pytest.approx(sums[task] / counts[task] + (task == "normal"), rel=1e-4)


def test_a_task_without_a_valid_pixel_is_absent() -> None:
    truth = scenes(NYUV2)
    assert truth.normals is not None
    blind = Scenes.of(truth.images, torch.full_like(truth.labels, -1), truth.depth, torch.zeros_like(truth.normals))
    assert blind.present == ("depth",)
    outputs = predictions(NYUV2, blind)
    found = scene_losses(outputs, blind)
    assert found["semantic"] is found["normal"] is None
    assert found["depth"] is not None
    assert math.isfinite(found["depth"].item())
    # What the plain formulas give, as in the released code:
    assert math.isnan(semantic_loss(outputs["semantic"], blind.labels).item())
    assert math.isnan(normal_loss(outputs["normal"], blind.normals).item())  # type: ignore[arg-type]
    assert math.isnan(depth_loss(outputs["depth"], torch.zeros_like(blind.depth)).item())


@both
def test_a_training_step(layout: SceneLayout, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = SceneFolder(written(tmp_path, layout), "train", layout)
    outputs = NYUV2_OUTPUTS if layout.normals else CITYSCAPES_OUTPUTS
    model = SegNetSplit(outputs, width=1 / 16)
    assert model.tasks == layout.tasks

    def losses(model: torch.nn.Module, batch: Scenes) -> dict[str, Tensor | None]:
        return scene_losses(model(batch.images), batch)

    problem = Problem(model, losses, shared=model.shared_parameters(), tasks=model.tasks)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = augmented(data.load(range(3)), generator=torch.Generator().manual_seed(0))
    before = problem.losses(batch).outputs
    for _ in range(6):
        step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))
    after = problem.losses(batch).outputs
    assert sum(after[1:], after[0]) < sum(before[1:], before[0])


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_published_tables() -> None:
    for name, layout in LAYOUTS.items():
        assert scene_metrics(layout) == tuple(baseline.metric for baseline in printed_baselines(name))


def share_below(values: list[float], *, bound: float) -> float:
    return sum(value < bound for value in values) / len(values)


@both
@pytest.mark.parametrize("how", ["pixel", "released"])
def test_metrics_pixel_by_pixel(layout: SceneLayout, how: str) -> None:
    parts = [scenes(layout, n, size=(8, 12), seed=n) for n in (2, 1)]
    scores = SceneScores(layout, metrics=how)  # type: ignore[arg-type]
    n = layout.n_classes
    inside, target_count, predicted_count = [0] * n, [0] * n, [0] * n
    batches: list[dict[str, list[float]]] = []
    for part in parts:
        outputs = predictions(layout, part)
        scores.update(outputs, part)
        found: dict[str, list[float]] = {"absolute": [], "relative": [], "angle": []}
        for b in range(len(part)):
            for i in range(8):
                for j in range(12):
                    label, guess = int(part.labels[b, i, j]), int(outputs["semantic"][b, :, i, j].argmax())
                    if label >= 0:
                        target_count[label] += 1
                        predicted_count[guess] += 1
                        inside[label] += label == guess
                    depth = float(part.depth[b, 0, i, j])
                    if depth:
                        error = abs(float(outputs["depth"][b, 0, i, j]) - depth)
                        found["absolute"].append(error)
                        found["relative"].append(error / depth)
                    if part.normals is not None and float(part.normals[b, :, i, j].abs().sum()):
                        cosine = float(outputs["normal"][b, :, i, j].double() @ part.normals[b, :, i, j].double())
                        found["angle"].append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
        batches.append(found)

    def reduced(key: str, function) -> float:  # type: ignore[no-untyped-def]
        if how == "pixel":
            return float(function(batches[0][key] + batches[1][key]))
        return float(numpy.mean([function(batch[key]) for batch in batches]))

    def lower_median(values: list[float]) -> float:
        return sorted(values)[(len(values) - 1) // 2]

    ratios = [i / (t + p - i) for i, t, p in zip(inside, target_count, predicted_count, strict=True) if t + p]
    expected = {
        "mIoU": 100 * float(numpy.mean(ratios)),
        "PixAcc": 100 * sum(inside) / sum(target_count),
        "AbsErr": reduced("absolute", numpy.mean),
        "RelErr": reduced("relative", numpy.mean),
    }
    if layout.normals:
        expected["NormalMean"] = reduced("angle", numpy.mean)
        expected["NormalMedian"] = reduced("angle", lower_median)
        for bound in (11.25, 22.5, 30):
            expected[f"Within{bound:g}"] = 100 * reduced("angle", partial(share_below, bound=bound))
    values = scores.values()
    assert list(values) == [metric.name for metric in scene_metrics(layout)]
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=1e-4), name


def test_pixel_and_released_differ_where_batches_do() -> None:
    """Two batches, one of two good pictures and one of a bad one: pixels weigh by their number, batches do not."""
    values = {}
    for how in ("pixel", "released"):
        scores = SceneScores(CITYSCAPES, metrics=how)  # type: ignore[arg-type]
        for n, error in ((2, 0.0), (1, 3.0)):
            truth = Scenes.of(torch.zeros(n, 3, 2, 2), torch.zeros(n, 2, 2).long(), torch.ones(n, 1, 2, 2))
            scores.update({"depth": truth.depth + error}, truth)
        values[how] = scores.values()["AbsErr"]
    assert values == {"pixel": 1.0, "released": 1.5}


def test_classes_that_never_occur_are_left_out_and_nothing_is_nan_that_was_seen() -> None:
    labels = torch.tensor([[[0, 0], [1, -1]]])
    truth = Scenes.of(torch.zeros(1, 3, 2, 2), labels, torch.zeros(1, 1, 2, 2))
    scores = SceneScores(CITYSCAPES)
    guess = torch.nn.functional.one_hot(torch.tensor([[[0, 2], [1, 5]]]), 7).movedim(-1, 1).float()
    scores.update({"semantic": guess, "depth": torch.ones(1, 1, 2, 2)}, truth)
    # Class 2 is predicted but never there; class 5 is predicted only where no class is known.
    values = scores.values()
    assert values["mIoU"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    assert values["PixAcc"] == pytest.approx(200 / 3)
    assert math.isnan(values["AbsErr"])


def test_scenes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\(1, 4, 4\) where \(1, 4, 8\) is due"):
        Scenes.of(torch.zeros(1, 3, 4, 8), torch.zeros(1, 4, 4).long(), torch.zeros(1, 1, 4, 8))
    with pytest.raises(InvalidInputError, match="got 1 of 2 with them"):
        Scenes.stack([scenes(NYUV2, 1), scenes(CITYSCAPES, 1)])
