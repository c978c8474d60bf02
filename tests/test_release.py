"""The command that prepares releases, on a copy of what it writes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DAY = date(2027, 1, 2)


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path, release: ModuleType) -> Path:
    for package in release.PACKAGES:
        for path in (
            release.init_of(ROOT, package),
            *(ROOT / "packages" / package / name for name in ("CHANGELOG.md", "pyproject.toml")),
        ):
            to = tmp_path / path.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    return tmp_path


def dependencies(root: Path, package: str) -> str:
    return (root / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")


def test_says_where_each_package_stands(release: ModuleType) -> None:
    lines = release.status(ROOT).splitlines()

    assert [line.split()[0] for line in lines[1:]] == list(release.PACKAGES)
    assert all(release.version_of(ROOT, line.split()[0]) == line.split()[1] for line in lines[1:])


def test_a_breaking_version_moves_the_ranges_of_the_siblings(release: ModuleType, copy: Path) -> None:
    left = release.prepare(copy, "mtl-core", "0.9.0", DAY)

    assert release.version_of(copy, "mtl-core") == "0.9.0"
    assert release.heading_of(copy, "mtl-core") == "0.9.0 (2027-01-02)"
    for sibling in ("mtl-aggregators", "mtl-teleport", "mtl-benchmarks"):
        assert '"mtl-core>=0.9,<0.10"' in dependencies(copy, sibling)
        assert any(f"release {sibling} too" in line for line in left)
    assert '"mtl-core[testing]>=0.9,<0.10"' in dependencies(copy, "mtl-aggregators")
    assert '"mtl-aggregators>=0.9' not in dependencies(copy, "mtl-benchmarks")


def test_a_mending_version_leaves_the_siblings_alone(release: ModuleType, copy: Path) -> None:
    before = [dependencies(copy, package) for package in release.PACKAGES]
    major, minor, patch = release.version_of(copy, "mtl-core").split(".")

    release.prepare(copy, "mtl-core", f"{major}.{minor}.{int(patch) + 1}", DAY)

    assert [dependencies(copy, package) for package in release.PACKAGES] == before


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [("mtl-cor", "1.0.0", "one of"), ("mtl-core", "1.0", "three numbers"), ("mtl-core", "0.0.1", "below")],
)
def test_what_is_refused_changes_nothing(
    release: ModuleType, copy: Path, package: str, version: str, said: str
) -> None:
    with pytest.raises(SystemExit, match=said):
        release.prepare(copy, package, version, DAY)

    assert release.version_of(copy, "mtl-core") == release.version_of(ROOT, "mtl-core")


def git(root: Path, *words: str) -> str:
    own = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", str(root), *own, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.org")
    (copy / "other.txt").write_text("1")
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "start")
    return copy


def test_a_prepared_version_is_committed_and_tagged(release: ModuleType, repository: Path) -> None:
    release.prepare(repository, "mtl-core", "0.9.0", DAY)

    assert release.tag(repository, "mtl-core", "0.9.0") == "mtl-core-v0.9.0"
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "log", "-1", "--format=%s") == "mtl-core 0.9.0\n"
    assert git(repository, "rev-parse", "mtl-core-v0.9.0^{commit}") == git(repository, "rev-parse", "HEAD")
    assert '__version__ = "0.9.0"' in git(repository, "show", "HEAD:packages/mtl-core/src/mtl_core/__init__.py")


def test_what_may_not_be_tagged_is_left_as_it_is(release: ModuleType, repository: Path) -> None:
    with pytest.raises(SystemExit, match=r"mtl-core 0\.9\.0 must be prepared first"):
        release.tag(repository, "mtl-core", "0.9.0")
    release.prepare(repository, "mtl-core", "0.9.0", DAY)
    (repository / "other.txt").write_text("2")
    with pytest.raises(SystemExit, match=r"nothing but versions and changelogs must have changed, got other\.txt"):
        release.tag(repository, "mtl-core", "0.9.0")

    assert git(repository, "tag") == ""
    assert git(repository, "log", "--format=%s") == "start\n"
    git(repository, "checkout", "--quiet", "other.txt")
    release.tag(repository, "mtl-core", "0.9.0")
    with pytest.raises(SystemExit, match="must be new"):
        release.tag(repository, "mtl-core", "0.9.0")
