"""Generated scenes: exact geometry, balanced classes, the same pictures again, read by the official loader."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy
import pytest
import torch

from mtl_benchmarks.cli import main
from mtl_benchmarks.scenes import CITYSCAPES, NYUV2, SceneFolder
from mtl_benchmarks.scenes.folders import is_official
from mtl_benchmarks.scenes.generated.casting import look, shaded
from mtl_benchmarks.scenes.generated.imperfections import blotches, edges, framed
from mtl_benchmarks.scenes.generated.rendering import Arrays, rendered_room, rendered_street
from mtl_benchmarks.scenes.generated.world import Camera, Composer, Light, Paint
from mtl_benchmarks.scenes.sources import Rooms, Streets

WHITE = Paint((1.0, 1.0, 1.0))
AHEAD = Camera((0.0, 0.0, 0.0), yaw=0.0, pitch=0.0, view=math.pi / 2)
"""One metre ahead it sees from −1 to 1 sideways; in a square picture up and down as well."""


# --- geometry --------------------------------------------------------------------------------------------------------


def test_a_box_straight_ahead() -> None:
    scene = Composer()
    scene.box(5, WHITE, low=(0.5, -0.5, 2.0), size=(1.0, 1.0, 3.0))  # x from 0 to 1, y from −0.5 to 0.5, z from 2
    seen = look(scene.world(), AHEAD, 8, 8)
    # At two metres a pixel is half a metre wide; the middles of its columns are at ±0.25, ±0.75, ±1.25, ±1.75.
    expected = torch.full((8, 8), math.inf)
    expected[3:5, 4:6] = 2.0
    assert torch.equal(seen.depth.view(8, 8), expected)
    assert seen.labels.view(8, 8)[3, 3:7].tolist() == [-1, 5, 5, -1]
    assert seen.normals.view(3, 8, 8)[:, 3, 4].tolist() == [0.0, 0.0, -1.0]
    assert seen.points.view(3, 8, 8)[:, 3, 5].tolist() == [0.75, 0.25, 2.0]


def test_a_turned_box_by_hand() -> None:
    """A box turned by 45° shows an edge: the two faces before it slope away with slope 1."""
    scene = Composer()
    half = math.sqrt(2.0)
    scene.box(1, WHITE, low=(0.0, -9.0, 5.0 - half), size=(2 * half, 18.0, 2 * half), yaw=math.pi / 4)
    width = 33
    seen = look(scene.world(), AHEAD, 33, width)
    row = slice(16 * width, 17 * width)
    depth, normals = seen.depth[row], seen.normals[:, row]
    for column, u in enumerate(((torch.arange(width) + 0.5) / width * 2 - 1).tolist()):
        t = 3 / (1 - abs(u))  # z = 3 + |x| with x = u z
        if t * abs(u) < 2:
            assert float(depth[column]) == pytest.approx(t, rel=1e-5)
            if u:
                toward = [math.copysign(math.sqrt(0.5), u), 0.0, -math.sqrt(0.5)]
                assert normals[:, column].tolist() == pytest.approx(toward, abs=1e-6)
        else:
            assert math.isinf(float(depth[column]))


def test_a_ball_by_hand() -> None:
    scene = Composer()
    scene.ball(2, WHITE, (0.0, 0.0, 4.0), 1.0)
    seen = look(scene.world(), AHEAD, 3, 3)
    assert float(seen.depth.view(3, 3)[1, 1]) == pytest.approx(3.0)
    assert seen.normals.view(3, 3, 3)[:, 1, 1].tolist() == pytest.approx([0, 0, -1])
    assert torch.isinf(seen.depth.view(3, 3)[0]).all()


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.6, -0.3), (-2.0, 0.4)])
def test_every_pixel_of_an_empty_room_lies_on_a_wall(yaw: float, pitch: float) -> None:
    """From a known room: each seen point is on a face, its normal is that face's, and its depth along the axis."""
    size = (4.0, 2.5, 5.0)
    faces = [(label, WHITE) for label in range(6)]
    world = Composer().world((size, faces))
    camera = Camera((1.0, 1.2, 2.0), yaw, pitch, 1.2)
    seen = look(world, camera, 24, 32)
    ahead = torch.tensor([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    axial = ((seen.points - torch.tensor(camera.at)[:, None]) * ahead[:, None]).sum(0)
    torch.testing.assert_close(axial, seen.depth, rtol=1e-5, atol=1e-5)
    for k in range(24 * 32):
        face = int(seen.labels[k])
        axis, far = divmod(face, 2)
        assert float(seen.points[axis, k]) == pytest.approx(size[axis] * far, abs=1e-5)
        expected = [0.0, 0.0, 0.0]
        expected[axis] = -1.0 if far else 1.0
        assert seen.normals[:, k].tolist() == expected


def test_the_room_in_the_cameras_axes() -> None:
    """Looking down at 90° the floor faces the camera: (0, 0, 1) there, and its depth is the camera's height."""
    from mtl_benchmarks.scenes.generated.rendering import _in_camera

    world = Composer().world(((4.0, 2.5, 5.0), [(0, WHITE)] * 6))
    camera = Camera((2.0, 1.5, 2.5), 0.3, -math.pi / 2, 0.5)
    seen = look(world, camera, 4, 4)
    torch.testing.assert_close(seen.depth, torch.full((16,), 1.5))
    torch.testing.assert_close(_in_camera(seen.normals, camera), torch.tensor([[0.0], [0.0], [1.0]]).expand(3, 16))
    level = Camera((2.0, 1.5, 2.5), 0.0, 0.0, 0.1)
    wall = look(world, level, 4, 4)
    torch.testing.assert_close(_in_camera(wall.normals, level)[2], torch.ones(16))
    torch.testing.assert_close(wall.depth, torch.full((16,), 2.5))


def test_light_and_shadow_by_hand() -> None:
    """A wall under 60° to the sun is half as bright; behind a box only the ambient light is left."""
    scene = Composer()
    scene.box(0, Paint((0.5, 1.0, 0.25)), low=(0.0, -9.0, 10.0), size=(40.0, 18.0, 1.0))
    sun = Light((0.0, math.sin(math.pi / 3), -math.cos(math.pi / 3)), is_sun=True, ambient=0.2)
    narrow = Camera((0.0, 0.0, 0.0), 0.0, 0.0, 0.01)
    bright = shaded(scene.world(), look(scene.world(), narrow, 1, 1), sun)
    assert bright[:, 0].tolist() == pytest.approx([x * (0.2 + 0.8 * 0.5) for x in (0.5, 1.0, 0.25)], rel=1e-4)
    scene.box(1, WHITE, low=(0.0, 4.0, 5.0), size=(9.0, 1.0, 4.0))  # between the wall and the sun, above the view
    dark = shaded(scene.world(), look(scene.world(), narrow, 1, 1), sun)
    assert dark[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.05], rel=1e-4)


def test_nothing_is_seen_of_an_empty_world() -> None:
    seen = look(Composer().world(), AHEAD, 2, 3)
    assert torch.isinf(seen.depth).all()
    assert seen.labels.tolist() == [-1] * 6


def test_edges_rim_and_blotches() -> None:
    values = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [5.0, 0.0, 1.0]])
    assert edges(values, 0.5).tolist() == [[False, True, False], [True, True, False], [True, True, False]]
    assert int(framed(5, 6, 1).sum()) == 30 - 12
    field = blotches(64, 96, torch.Generator().manual_seed(0))
    assert field.shape == (64, 96)
    assert float((field[:, 1:] - field[:, :-1]).abs().max()) < 0.6  # smooth


# --- pictures --------------------------------------------------------------------------------------------------------

KINDS = {"rooms": (rendered_room, NYUV2), "streets": (rendered_street, CITYSCAPES)}


@pytest.fixture(scope="module", params=KINDS)
def pictures(request: pytest.FixtureRequest) -> tuple[str, list[Arrays]]:
    render, _ = KINDS[request.param]
    return request.param, [render(64, 96, seed=0, split=0, index=k) for k in range(40)]


def test_every_class_fills_a_hundredth(pictures: tuple[str, list[Arrays]]) -> None:
    kind, found = pictures
    layout = KINDS[kind][1]
    labels = numpy.stack([each[layout.labels] for each in found])
    shares = [float((labels == c).mean()) for c in range(layout.n_classes)]
    assert min(shares) >= 0.01
    assert max(shares) < 0.4
    assert 0.03 < float((labels == -1).mean()) < 0.2


def test_what_sensors_leave_out(pictures: tuple[str, list[Arrays]]) -> None:
    kind, found = pictures
    for each in found:
        assert each["image"].dtype == numpy.float32
        assert each["image"].min() >= 0
        assert each["image"].max() <= 1
        assert each["image"].std() > 0.03
        depth = each["depth"][..., 0]
        assert 0.02 < (depth == 0).mean() < 0.85
        if kind == "rooms":
            assert depth.max() <= 10
            assert depth[depth > 0].min() > 0.1
            length = numpy.linalg.norm(each["normal"], axis=-1)
            valid = length > 0
            assert numpy.abs(length[valid] - 1).max() < 1e-5
            assert 0.4 < valid.mean() < 0.98
            assert (each["normal"][..., 2][valid] > -0.75).all()  # nothing that is seen faces away
        else:
            assert depth.max() <= 0.4922
            assert (depth[each["label_7"] == 4] == 0).all()  # the sky has none


def test_a_picture_is_a_function_of_its_numbers(pictures: tuple[str, list[Arrays]]) -> None:
    kind, found = pictures
    render, layout = KINDS[kind]
    torch.manual_seed(5)
    again = render(64, 96, seed=0, split=0, index=7)
    for name in layout.folders:
        assert numpy.array_equal(again[name], found[7][name])
    for other in ({"seed": 1, "split": 0, "index": 7}, {"seed": 0, "split": 1, "index": 7}):
        assert not numpy.array_equal(render(64, 96, **other)["image"], found[7]["image"])


# --- folders ---------------------------------------------------------------------------------------------------------


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.npy")):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize(("kind", "layout"), [("rooms", NYUV2), ("streets", CITYSCAPES)], ids=["rooms", "streets"])
def test_the_command_writes_folders_that_the_loader_reads(kind, layout, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    words = f"data {kind} --data.train 3 --data.test 2 --data.height 32 --data.width 64 --root".split()
    assert main([*words, str(tmp_path / "a")]) == 0
    assert "a: complete." in capsys.readouterr().out
    folder = SceneFolder(tmp_path / "a", "train", layout)
    assert (len(folder), folder.size, len(SceneFolder(tmp_path / "a", "val", layout))) == (3, (32, 64), 2)
    assert folder.read(0).present == layout.tasks
    assert not is_official(tmp_path / "a", layout)
    # A broken-off command is given again: what is missing is drawn, the rest stays, and all of it is the same.
    (tmp_path / "a" / "val" / "image" / "1.npy").unlink()
    kept = (tmp_path / "a" / "val" / "image" / "0.npy").stat().st_mtime_ns
    assert main([*words, str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "val" / "image" / "0.npy").stat().st_mtime_ns == kept
    assert main([*words, str(tmp_path / "b")]) == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_bad_input_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.train", "1", "--data.test", "1", "--data.height", "32", "--data.width", "32", "--root"]
    for words, message in {
        "--data.height 65": "`height` must be a multiple of 32, which the networks halve five times, got 65.",
        "--data.width 0": "`width` must be a multiple of 32",
        "--data.train 0": "`train`",
        "--data.data_seed -1": "`data_seed` must be a whole number from 0 to 4294967295, got -1.",
    }.items():
        assert main(["data", "rooms", *words.split(), "--root", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["data", "rooms", *small, str(tmp_path / "r")]) == 0
    for words, message in {
        "data streets": "must be of the same streets",
        "data rooms --data.data_seed 3": "Choose another folder for pictures of another size or seed.",
    }.items():
        assert main([*words.split(), *small, str(tmp_path / "r")]) == 2
        assert message in capsys.readouterr().err
    # Fewer than there are: not what was asked for.
    assert main(["data", "rooms", "--data.train", "2", *small[2:], str(tmp_path / "r")]) == 0
    assert main(["data", "rooms", *small, str(tmp_path / "r")]) == 2
    assert "image: must hold 1 pictures, got 2" in capsys.readouterr().err
    # Never into somebody's official files.
    other = tmp_path / "theirs"
    (other / "train").mkdir(parents=True)
    assert main(["data", "rooms", *small, str(other)]) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in other.rglob("*")] == ["train"]


def test_a_damaged_note_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.joinpath("generated.json").write_text('{"made": ')
    assert main(["data", "rooms", "--root", str(tmp_path)]) == 2
    assert f"{tmp_path / 'generated.json'} must be of the same rooms" in capsys.readouterr().err


def test_the_note_says_what_was_drawn(tmp_path: Path) -> None:
    source = Streets(train=1, test=1, height=32, width=64, data_seed=4)
    source.write(tmp_path, lambda line: None)
    assert source.problems(tmp_path) == []
    note = json.loads((tmp_path / "generated.json").read_text())
    assert note == {"made": "streets", "version": 1, "height": 32, "width": 64, "seed": 4}
    assert any("must be 64 × 64 pixels" in p for p in Streets(train=1, test=1, height=64, width=64).problems(tmp_path))
    assert Rooms().problems(tmp_path)[0].endswith("there is no such folder")
