# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2025.11.12"]
#
# [tool.nox]
# script-venv-backend = "virtualenv"
# ///
"""Everything that is run on this repository: `python -m nox -l` lists it.

Nothing has to be installed beforehand but nox; each session makes its own environment under `.nox` and uses it
again the next time. The block above lets nox fetch uv for itself, which fills the environments several times
faster than pip does; `NOX_SCRIPT_MODE=none NOX_DEFAULT_VENV_BACKEND=virtualenv` does without it.

`MTL_TORCH` names the version of torch to install (`MTL_TORCH=2.9.1 python -m nox -s tests`). `MTL_PYTHONS` names
folders of interpreters that are not on the path, such as `~/.pyenv/versions`, for the matrix.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.download_python = "never"  # the matrix says which interpreter is absent instead of fetching one
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "typecheck", "layers", "tests"]

ROOT = Path(__file__).parent
TORCH = os.environ.get("MTL_TORCH", "2.13.0")
TORCH_MATRIX = (TORCH,) if "MTL_TORCH" in os.environ else ("2.9.1", TORCH)
PYTHON_MATRIX = ("3.11", "3.12", "3.13")


def link_interpreters(folders: str) -> None:
    """Put the interpreters in these folders at the head of the path, by links in a folder that holds nothing else.

    Version managers keep them off the path, and what they put there instead may refuse to start.
    """
    links = ROOT / ".nox" / "interpreters"
    for folder in filter(None, folders.split(os.pathsep)):
        for found in sorted(Path(folder).expanduser().glob("*/bin/python3.[0-9]*")):
            link = links / found.name
            if re.fullmatch(r"python3\.\d+", found.name) and not link.exists():
                links.mkdir(parents=True, exist_ok=True)
                link.symlink_to(found)
    if links.is_dir():
        os.environ["PATH"] = os.pathsep.join([str(links), os.environ["PATH"]])


link_interpreters(os.environ.get("MTL_PYTHONS", ""))

# Installed files are not compiled; what is imported is, once, and kept. With this set, as container images like to have
# it, each of the hundreds of processes that tests start would compile torch for itself, which takes seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each package and the siblings it stands on, lowest first: what its tests may find installed.
LADDER = {
    "mtl-core": ("mtl-core",),
    "mtl-aggregators": ("mtl-core", "mtl-aggregators"),
    "mtl-teleport": ("mtl-core", "mtl-teleport"),
    "mtl-benchmarks": ("mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks"),
}
EVERYTHING = LADDER["mtl-benchmarks"]
RUNGS = [nox.param(package, id=package.removeprefix("mtl-")) for package in LADDER]


@cache
def pip_settings() -> dict[str, str]:
    """Where pip is told to look for packages, as the variables with which uv is told the same.

    uv reads none of pip's configuration, so a mirror, a certificate or a folder of wheels that is configured for
    pip would be passed over. Asked of pip at run time; what the user has set for uv stays as it is.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    configured: dict[str, str] = {}
    for section in ("global.", "install.", ":env:."):  # in pip's order: the later wins
        for line in listed.stdout.splitlines() if listed.returncode == 0 else ():
            name, _, value = line.partition("=")
            if name.startswith(section):
                configured[name.removeprefix(section)] = str(ast.literal_eval(value))
    settings = {
        "UV_DEFAULT_INDEX": configured.get("index-url", ""),
        "UV_INDEX": " ".join(configured.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(configured.get("find-links", "").split()),
        "SSL_CERT_FILE": configured.get("cert", ""),
    }
    if settings["UV_INDEX"]:
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's rule: all indexes count alike
    return {name: value for name, value in settings.items() if value and name not in os.environ}


def group(name: str, project: str = ".") -> tuple[str, ...]:
    """Return the requirements of a dependency group of one `pyproject.toml`; none if it has no such group."""
    toml = nox.project.load_toml(ROOT / project / "pyproject.toml")
    return nox.project.dependency_groups(toml, name) if name in toml.get("dependency-groups", {}) else ()


def install(
    session: nox.Session,
    packages: tuple[str, ...],
    *requirements: str,
    extras: dict[str, str] | None = None,
    editable: bool = True,
    torch: str = TORCH,
) -> None:
    """Install torch, then packages of this repository with their requirements.

    The version of torch comes first and again on the second line: any other order lets a package that needs torch
    choose a build of its own, with gigabytes of GPU libraries. All siblings go on one line, so that each finds the
    others there and not in a registry.
    """
    uv = session.venv_backend == "uv"
    env = pip_settings() if uv else {}
    options = () if uv else ("--no-compile",)  # as uv: what is imported is compiled then, the rest never
    pin = f"torch=={torch}"
    session.install(*options, pin, env=env)
    sources: list[str] = []
    for package in packages:
        extra = (extras or {}).get(package, "")
        source = f"./packages/{package}{extra}"
        sources += ["-e", source] if editable else [source]
    session.install(*options, pin, *sources, *requirements, env=env)


def install_tools(session: nox.Session, name: str) -> None:
    """Install one of the root's dependency groups and nothing else."""
    session.install(*group(name), env=pip_settings() if session.venv_backend == "uv" else {})


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest on all cores up to four, deterministically unless `HYPOTHESIS_PROFILE` says otherwise."""
    env = {
        "HYPOTHESIS_PROFILE": os.environ.get("HYPOTHESIS_PROFILE", "ci"),
        "OMP_NUM_THREADS": "1",  # the workers share the cores
    }
    session.run("python", "-m", "pytest", "-n", "auto", "--maxprocesses", "4", *arguments, env=env)


def provide_browser(session: nox.Session) -> None:
    """A Chromium for the tests that look at the HTML report: the system's, or Debian's where it can be installed.

    Without either these tests are skipped, and say so.
    """
    if any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        return
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        session.log("no Chromium here, and no right to install it: the HTML report is not opened in a browser")
        return
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        session.run("apt-get", "--quiet", *arguments, external=True, silent=True, success_codes=[0, 100])


def run_tests(session: nox.Session, package: str, torch: str = TORCH) -> None:
    """Install a package, those below it and its test group; run its tests and the examples in its docstrings."""
    install(session, LADDER[package], *group("test"), *group("test", f"packages/{package}"), torch=torch)
    if package == "mtl-benchmarks":
        provide_browser(session)
    pytest(session, f"packages/{package}", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Train on the bundled digits with FairGrad, without and with COST; write figures and a run directory."""
    install(session, EVERYTHING, extras={"mtl-benchmarks": "[digits,figures]"})
    session.run("python", "-m", "mtl_benchmarks.demo", "--out", "runs/demo", *session.posargs)
    if not session.posargs:  # says whether the README's numbers are these; another processor may make others
        session.run("python", ".ci/demo_numbers.py", "runs/demo", success_codes=[0, 1])


@nox.session
@nox.parametrize("package", [*RUNGS, nox.param("monorepo", id="monorepo")])
def tests(session: nox.Session, package: str) -> None:
    """Each package's tests beside only the packages below it; then the tests of the repository as a whole."""
    if package != "monorepo":
        run_tests(session, package)
        return
    install(session, EVERYTHING, *group("test"), extras={"mtl-benchmarks": "[digits,figures]"})
    # What needs more than this environment has sessions of its own: `recipes` and `docs`.
    pytest(session, "tests", "--ignore", "tests/recipes", "--ignore", "tests/site", *session.posargs)


def cache_of_extras() -> str:
    """Where what heavy extras parse and collect is kept."""
    return os.environ.get("MTL_CACHE", str(ROOT / ".nox/extras-cache"))


@nox.session(default=False)
def extras(session: nox.Session) -> None:
    """Run, each once, the tests that need heavy extras: real molecules, Meta-World, Yeast, MovieLens.

    Only the files of recbole are read: its own requirements, which pin other libraries to old versions, stay out. What
    is parsed and collected is kept in `.nox/extras-cache` unless `MTL_CACHE` names a folder.
    """
    heavy = nox.project.load_toml(ROOT / "packages/mtl-benchmarks/pyproject.toml")["project"]["optional-dependencies"]
    needed = [name for package in ("test", "extras") for name in group(package, "packages/mtl-benchmarks")]
    install(session, EVERYTHING, *group("test"), *needed, extras={"mtl-benchmarks": "[qm9,mt10,yeast]"})
    session.install("--no-deps", *heavy["movielens"], env=pip_settings() if session.venv_backend == "uv" else {})
    session.env.setdefault("MTL_CACHE", cache_of_extras())
    # A file's tests in one process: what one of them parses is in memory for the others.
    pytest(session, "packages/mtl-benchmarks", "-m", "extras", "--dist", "loadfile", *session.posargs)


@nox.session(python=PYTHON_MATRIX, default=False)
@nox.parametrize("torch", TORCH_MATRIX)
@nox.parametrize("package", RUNGS)
def matrix(session: nox.Session, package: str, torch: str) -> None:
    """Run the tests on every supported Python and torch; an interpreter that is absent is skipped and named."""
    run_tests(session, package, torch)


@nox.session(venv_backend="virtualenv", reuse_venv=False)
@nox.parametrize("package", RUNGS)
def ladder(session: nox.Session, package: str) -> None:
    """Install each package as a user would, by pip, with those below it, and use it: nothing else may be there."""
    install(session, LADDER[package], editable=False)
    session.run("python", "-I", "tests/ladder/check.py", package)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation site, strictly, into .nox/site, and look at five of its pages in a browser."""
    install(session, EVERYTHING, *group("docs"), extras={"mtl-benchmarks": "[digits,figures,qm9]"})
    provide_browser(session)
    # A tutorial reads real molecules. The notices are advertisements of other builders.
    env = {"MTL_CACHE": cache_of_extras(), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "NO_MKDOCS_2_WARNING": "1"}
    session.run("mkdocs", "build", "--strict", env=env)
    session.run("python", "-m", "pytest", "tests/site", *session.posargs)


@nox.session(default=False)
def recipes(session: nox.Session) -> None:
    """Run the recipes of docs/recipes.md that need an installation or processes of their own: Lightning, FSDP2."""
    install(session, EVERYTHING, *group("test"), *group("recipes"))
    session.run("python", "-m", "pytest", "tests/recipes", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(default=False, venv_backend="virtualenv")
def build(session: nox.Session) -> None:
    """Make and check sdists and wheels in dist/, install them in order, run their READMEs' examples, list licences."""
    install_tools(session, "build")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in EVERYTHING:
        session.run("python", "-m", "build", "--outdir", str(dist), f"packages/{package}", silent=True)
    files = sorted(str(path) for path in dist.iterdir())
    session.run("twine", "check", "--strict", *files)
    session.run("check-wheel-contents", *(name for name in files if name.endswith(".whl")))
    empty = Path(session.create_tmp()) / "empty"
    session.run("python", "-m", "venv", "--clear", str(empty))
    python = str(empty / ("Scripts" if os.name == "nt" else "bin") / "python")
    extras = {"mtl-core": "[testing]", "mtl-aggregators": "[testing]", "mtl-benchmarks": "[digits,figures]"}
    for package in EVERYTHING:
        wanted = (f"torch=={TORCH}", "--find-links", str(dist), package + extras.get(package, ""))
        session.run(python, "-m", "pip", "install", "--quiet", *wanted, external=True)
        readme = str(ROOT / "packages" / package / "README.md")
        session.run(python, "-I", str(ROOT / "tests" / "ladder" / "examples.py"), readme, external=True)
    _install_from_git(session)
    # The environment has nothing but the packages and what they need: the list of it is the bill of materials.
    session.run(python, "docsite/licences.py", "--cyclonedx", str(dist / "bom.json"), external=True)


def _install_from_git(session: nox.Session) -> None:
    """Install each package by the line of docs/installing.md, with this clone's last commit for the address."""
    folder = Path(session.create_tmp()) / "git"
    session.run("python", "-m", "venv", "--clear", str(folder))
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    for package, needed in LADDER.items():
        sources = [f"git+{ROOT.as_uri()}#subdirectory=packages/{name}" for name in needed]
        session.run(python, "-m", "pip", "install", "--quiet", f"torch=={TORCH}", *sources, external=True)
        session.run(python, "-I", "-c", f"import {package.replace('-', '_')}", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting: ruff."""
    install_tools(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Run mypy --strict over all packages."""
    install(session, EVERYTHING, *group("test"), *group("typecheck"), extras={"mtl-benchmarks": "[all]"})
    session.run("mypy", *session.posargs)


@nox.session
def layers(session: nox.Session) -> None:
    """Imports point downward only: import-linter, on the sources as they lie."""
    install_tools(session, "layers")
    sources = os.pathsep.join(str(ROOT / "packages" / package / "src") for package in EVERYTHING)
    session.run("lint-imports", *session.posargs, env={"PYTHONPATH": sources})


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Report which lines and branches the tests of all packages reach."""
    needed = [requirement for package in EVERYTHING for requirement in group("test", f"packages/{package}")]
    install(session, EVERYTHING, *group("test"), *group("coverage"), *needed)
    pytest(session, "--cov", "--cov-report=term", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run benchmarks/NAME.py beside the libraries it compares with: `nox -s bench -- NAME [arguments]`."""
    available = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    if not session.posargs or session.posargs[0] not in available:
        session.error(f"name one of: {', '.join(available) or 'none yet'}, as in `nox -s bench -- NAME`")
    name, *arguments = session.posargs
    install(session, EVERYTHING, *group("bench"), extras={"mtl-benchmarks": "[all]"})
    session.run("python", f"benchmarks/{name}.py", *arguments)
