"""Damaged .npy files: which one, what is wrong and what to do, from every reader, and never an error of others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from mtl_benchmarks.cache import read_arrays, write_arrays
from mtl_benchmarks.scenes.folders import SceneFolder, folder_problems, is_official
from mtl_benchmarks.scenes.layout import CITYSCAPES, NYUV2
from mtl_benchmarks.scenes.npy import header_of, read_npy
from mtl_core import InvalidInputError

ARRAY = numpy.arange(72, dtype=numpy.float32).reshape(4, 6, 3)
WAYS_OUT = ("Fetch or make it again.", "See to it.", "Write it as numbers.")


def content(array: numpy.ndarray = ARRAY) -> bytes:
    file = io.BytesIO()
    numpy.save(file, array)
    return file.getvalue()


WHOLE = content()
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty one"),
    "two bytes": (WHOLE[:2], "does not begin as such a file does"),
    "only the magic": (WHOLE[:6], "header is damaged or cut off"),
    "half a header": (WHOLE[:60], "header is damaged or cut off"),
    "a header alone": (WHOLE[:128], "is cut off: 128 bytes, where its header makes 416"),
    "half": (WHOLE[:300], "is cut off: 300 bytes, where its header makes 416"),
    "a byte too few": (WHOLE[:-1], "is cut off: 415 bytes"),
    "a byte too many": (WHOLE + b"!", "goes on behind its array: 417 bytes"),
    "text": (b"1,2,3\n", "does not begin as such a file does"),
    "an archive": (b"PK\x03\x04 and no more", "does not begin as such a file does"),
    "a huge shape": (WHOLE.replace(b"(4, 6, 3)", b"(9999999999999999,)"[:9]), "header is damaged or cut off"),
    "a larger shape": (WHOLE.replace(b"(4, 6, 3)", b"(4, 9, 3)"), "is cut off"),
    "a smaller shape": (WHOLE.replace(b"(4, 6, 3)", b"(4, 2, 3)"), "goes on behind its array"),
    "objects": (WHOLE.replace(b"'<f4'", b"'|O' "), "which are no numbers"),
}


@pytest.mark.parametrize("read", [header_of, read_npy])
@pytest.mark.parametrize("what", DAMAGED)
def test_one_error_in_words_of_its_own(what: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "7.npy"
    file.write_bytes(DAMAGED[what][0])
    with pytest.raises(InvalidInputError) as caught:
        read(file)
    said = str(caught.value)
    assert said.startswith(f"{file} must be a whole .npy file, got ")
    assert DAMAGED[what][1] in said
    assert said.endswith(WAYS_OUT)
    assert "\n" not in said
    assert "mmap" not in said


@pytest.mark.parametrize("read", [header_of, read_npy])
def test_what_cannot_be_opened(read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.npy").mkdir()
    with pytest.raises(InvalidInputError, match=r"0\.npy must be a whole \.npy file, got a folder of that name"):
        read(tmp_path / "0.npy")
    with pytest.raises(InvalidInputError, match=r"1\.npy .*cannot be read \(No such file or directory\)\. See to it"):
        read(tmp_path / "1.npy")

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root may read whatever its rights are
    with pytest.raises(InvalidInputError, match=r"2\.npy .*cannot be read \(Permission denied\)\. See to it"):
        read(tmp_path / "2.npy")


def test_any_bit_of_a_header(tmp_path: Path) -> None:
    """Either the array has the shape and type that it had, or another that is as long, or it is refused in words."""
    file = tmp_path / "0.npy"
    said = []
    for place in range(128):
        for bit in range(8):
            damaged = bytearray(WHOLE)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            try:
                header = header_of(file)
            except InvalidInputError as error:
                said.append(str(error))
            else:
                assert int(numpy.prod(header.shape)) * header.dtype.itemsize == 288
    assert len(said) > 900
    assert all(str(file) in each for each in said)


def test_whole_files_are_read(tmp_path: Path) -> None:
    for array in (ARRAY, ARRAY.astype(">f8"), numpy.asfortranarray(ARRAY), numpy.zeros(0), numpy.float32(3.0)):
        (tmp_path / "0.npy").write_bytes(content(numpy.asarray(array)))
        header = header_of(tmp_path / "0.npy")
        assert (header.shape, header.dtype) == (numpy.shape(array), numpy.asarray(array).dtype)
        assert numpy.array_equal(read_npy(tmp_path / "0.npy"), array)


@pytest.mark.parametrize("layout", [NYUV2, CITYSCAPES], ids=["nyuv2", "cityscapes"])
@pytest.mark.parametrize("what", DAMAGED)
def test_the_folders_name_them(what: str, layout: object, tmp_path: Path) -> None:
    for name, channels in layout.folders.items():  # type: ignore[attr-defined]
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for k in range(2):
            numpy.save(folder / f"{k}.npy", numpy.zeros((4, 6) if channels is None else (4, 6, channels)))
    assert not folder_problems(tmp_path, "train", layout)  # type: ignore[arg-type]
    for name in ("0.npy", "1.npy"):
        whole = (tmp_path / "train" / "image" / name).read_bytes()
        (tmp_path / "train" / "image" / name).write_bytes(DAMAGED[what][0])
        with pytest.raises(InvalidInputError, match=rf"image/{name} must be a whole \.npy file, got "):
            SceneFolder(tmp_path, "train", layout)  # type: ignore[arg-type]
        is_official(tmp_path, layout)  # type: ignore[arg-type]
        (tmp_path / "train" / "image" / name).write_bytes(whole)


def test_any_bit_of_a_cache(tmp_path: Path) -> None:
    file = tmp_path / "c.npz"
    write_arrays(file, {"x": ARRAY[:2, :2]}, layout="some, version 1")
    whole, said = file.read_bytes(), []
    for place in range(len(whole)):
        for bit in (0, 3, 6):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            try:
                found = read_arrays(file, layout="some, version 1")
            except InvalidInputError as error:
                said.append(str(error))
            else:
                assert found is not None
                assert all(numpy.array_equal(array, ARRAY[:2, :2]) for array in found.values())
    assert len(said) > len(whole)
    assert all(str(file) in each and "Delete it" in each for each in said)
