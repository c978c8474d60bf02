"""Versions, changelogs and tags of the four packages, by one command that a person runs: ``python .ci/release.py``.

Without arguments it says where each package stands. ``python .ci/release.py mtl-core 0.3.0`` sets the version, heads
the changelog with it, moves the ranges of the siblings if the breaking number changed, and prints what is left to
do. With ``--tag``, given once the changelog says what users see, it commits these files and tags the commit. It pushes
and uploads nothing. Needs Python and git only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks")


def init_of(root: Path, package: str) -> Path:
    """The file with a package's version."""
    return root / "packages" / package / "src" / package.replace("-", "_") / "__init__.py"


def version_of(root: Path, package: str) -> str:
    """A package's version in the sources."""
    found = re.search(r'^__version__ = "([^"]+)"$', init_of(root, package).read_text(encoding="utf-8"), flags=re.M)
    if found is None:
        raise SystemExit(f'release: {init_of(root, package)} has no line `__version__ = "..."`.')
    return found[1]


def heading_of(root: Path, package: str) -> str:
    """The first heading of a package's changelog."""
    text = (root / "packages" / package / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## +(.+)$", text, flags=re.M)
    return "" if found is None else found[1].strip()


def breaking(version: str) -> tuple[int, ...]:
    """The numbers of a version up to the breaking one: the second before 1.0, the first from then on."""
    major, minor, _ = (int(part) for part in version.split("."))
    return (major,) if major else (0, minor)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def range_of(version: str) -> str:
    """The range that siblings have of this version: from its minor version to the next breaking one."""
    major, minor, _ = (int(part) for part in version.split("."))
    return f">={major}.{minor},<{major + 1}" if major else f">=0.{minor},<0.{minor + 1}"


def git(root: Path, *arguments: str) -> str:
    """What git answers, or nothing where it cannot."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def status(root: Path) -> str:
    """One line for each package: version, changelog, last tag, and how many commits touched it since."""
    lines = [f"{'package':<16} {'version':<9} {'changelog':<22} {'last tag':<24} commits since"]
    for package in PACKAGES:
        tag = git(root, "describe", "--tags", "--abbrev=0", "--match", f"{package}-v*")
        since = git(root, "rev-list", "--count", f"{tag}..HEAD" if tag else "HEAD", "--", f"packages/{package}") or "?"
        lines.append(
            f"{package:<16} {version_of(root, package):<9} {heading_of(root, package):<22} {tag or 'none':<24} {since}"
        )
    return "\n".join(lines)


def prepare(root: Path, package: str, version: str, today: date) -> list[str]:
    """Write a new version into the sources.

    Returns:
        what is left for a person to do, one line each.

    Raises:
        SystemExit: the package or the version is none, or the version is not above the present one.
    """
    if package not in PACKAGES:
        raise SystemExit(f"release: the package must be one of {', '.join(PACKAGES)}, got {package!r}.")
    if re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        raise SystemExit(f"release: the version must be three numbers such as 0.3.0, got {version!r}.")
    old = version_of(root, package)
    if _numbers(version) < _numbers(old):
        raise SystemExit(f"release: the version must not be below that of the sources, {old}, got {version}.")
    path = init_of(root, package)
    text = path.read_text(encoding="utf-8").replace(f'__version__ = "{old}"', f'__version__ = "{version}"')
    path.write_text(text, encoding="utf-8")
    changelog = root / "packages" / package / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    heading = heading_of(root, package)
    if heading.split(" ")[0] == version or heading.lower().startswith(
        "unreleased"
    ):  # "0.3.0" or "0.3.0 (unreleased)" gets its date
        text = text.replace(f"## {heading}\n", f"## {version} ({today.isoformat()})\n", 1)
    else:
        before, mark, after = text.partition("## ")
        text = f"{before}## {version} ({today.isoformat()})\n\n{mark}{after}"
    changelog.write_text(text, encoding="utf-8")
    moved = _moved_ranges(root, package, version) if breaking(old) != breaking(version) else []
    return [
        f"say in packages/{package}/CHANGELOG.md what users see of {version}",
        *(f"release {sibling} too: its range of {package} is now {range_of(version)}" for sibling in moved),
        "python -m nox && python -m nox -s ladder build",
        f"python .ci/release.py {package} {version} --tag",
        f"upload dist/{package.replace('-', '_')}-{version}*",
    ]


def tag(root: Path, package: str, version: str) -> str:
    """Commit what ``prepare`` wrote and tag the commit.

    Returns:
        the tag.

    Raises:
        SystemExit: the version was not prepared, its tag is there, or files that are no part of a release have changed.
    """
    name = f"{package}-v{version}"
    if package not in PACKAGES or version_of(root, package) != version:
        raise SystemExit(
            f"release: {package} {version} must be prepared first: python .ci/release.py {package} {version}"
        )
    if not heading_of(root, package).startswith(f"{version} ("):
        raise SystemExit(
            f"release: the changelog of {package} must begin with {version} and its date, got another heading."
        )
    if git(root, "tag", "--list", name):
        raise SystemExit(f"release: the tag {name} must be new, got one that is there.")
    own = {f"packages/{each}/{file}" for each in PACKAGES for file in ("CHANGELOG.md", "pyproject.toml")}
    own |= {init_of(root, each).relative_to(root).as_posix() for each in PACKAGES}
    changed = [line[3:] for line in _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()]
    foreign = [path for path in changed if path not in own]
    if foreign:
        raise SystemExit(f"release: nothing but versions and changelogs must have changed, got {', '.join(foreign)}.")
    if changed:
        _git(root, "commit", "--quiet", "--all", "--message", f"{package} {version}")
    _git(root, "tag", "--annotate", name, "--message", f"{package} {version}")
    return name


def _git(root: Path, *arguments: str) -> str:
    """What git prints; what it cannot do is an error in its own words."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"release: git {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _moved_ranges(root: Path, package: str, version: str) -> list[str]:
    moved = []
    for sibling in PACKAGES:
        path = root / "packages" / sibling / "pyproject.toml"
        old = path.read_text(encoding="utf-8")
        new = re.sub(rf'("{package}(?:\[\w+\])?)>=[\d.]+,<[\d.]+"', rf'\g<1>{range_of(version)}"', old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            moved.append(sibling)
    return [sibling for sibling in moved if sibling != package]


def main(arguments: list[str] | None = None) -> int:
    """Say where the packages stand, or prepare a release."""
    parser = argparse.ArgumentParser(prog="python .ci/release.py", description=__doc__)
    parser.add_argument("package", nargs="?", help=", ".join(PACKAGES))
    parser.add_argument("version", nargs="?", help="three numbers")
    parser.add_argument("--tag", action="store_true", help="commit what was prepared, and tag it")
    options = parser.parse_args(arguments)
    if options.package is None:
        print(status(ROOT))
    elif options.version is None:
        parser.error("name the version as well, as in `python .ci/release.py mtl-core 0.3.0`")
    elif options.tag:
        print(f"tagged {tag(ROOT, options.package, options.version)}; nothing was pushed.")
    else:
        print(
            "\n".join(
                f"{k}. {line}"
                for k, line in enumerate(prepare(ROOT, options.package, options.version, date.today()), start=1)
            )
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
