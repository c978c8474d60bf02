"""Settings for the tests of every package."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# `ci`: the same examples on every run and every machine. `dev`: new examples each time, failures remembered.
# `thorough`: for a night. No deadlines: the first call of an operator pays for its set-up.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", deadline=None, max_examples=50, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if "CI" in os.environ else "dev"))

# The matrices of the tests are small: threads would cost more than they save, and the order of a sum over several
# threads is not fixed.
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file whose tests share what a fixture makes to one worker, first; the others one by one.

    Two workers would each make it, such as a pair of processes that trains for half a minute. By the files' names:
    under pytest 9.2, xdist 3.8 does not see the groups of ``--dist loadgroup``.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def shares(file: str) -> bool:
        path = config.rootpath / file
        return path.suffix == ".py" and 'scope="module"' in path.read_text(encoding="utf-8")

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if shares(file) else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Start every test from the same global generator, and fail the one that leaves a changed default dtype."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    yield
    after = torch.get_default_dtype()
    torch.set_default_dtype(before)
    assert after == before, f"the test left {after} as the default dtype, found {before}"


@pytest.fixture(autouse=True, scope="module")
def _accelerate_afresh() -> Iterator[None]:
    """Accelerate keeps the first precision it is asked for in a process; the next module may ask for another."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, or the one that playwright has brought."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (groups `test` of mtl-benchmarks, `docs`)"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with api.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        if found is None and not own.is_file():
            pytest.skip("no Chromium here (Debian: apt-get install chromium; else: playwright install chromium)")
        opened = started.chromium.launch(executable_path=found or str(own), args=flags, timeout=180_000)
        yield opened
        opened.close()
