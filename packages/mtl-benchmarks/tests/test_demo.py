from pathlib import Path

import pytest

from mtl_benchmarks.demo import main


def test_demo_trains_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "demo"), "--seeds", "1", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "fairgrad + cost" in out
    assert "single image" in out
    assert "fairgrad + random" in out
    assert out.splitlines()[-1] == f"runs: {(tmp_path / 'demo').resolve()}"
    assert (tmp_path / "demo" / "figures" / "digits-learning.png").is_file()


def test_demo_refuses_a_foreign_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path)]) == 2
    assert "must be empty" in capsys.readouterr().err
