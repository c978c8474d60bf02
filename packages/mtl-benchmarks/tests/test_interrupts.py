"""Ctrl-C ends the command in one line and with 130, wherever it comes; other programs keep their own way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_benchmarks.interrupts import INTERRUPTED, shielded

HOOK = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            except KeyboardInterrupt:
                if os.environ.get("TURNED"):
                    raise ImportError(name)
                raise

sys.meta_path.insert(0, Interrupts())
"""
SCRIPT = """
import sys
from mtl_benchmarks.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


def heard() -> None:
    """In a process that begins: those of one that a shell has started in the background ignore Ctrl-C, as it does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


TOY = ["run", "toy", "--benchmark.start", "0", "--steps", "2"]


def command(how: str, words: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(HOOK)
    script = folder / "mtl-bench"
    script.write_text(SCRIPT)
    begin = [sys.executable, "-m", "mtl_benchmarks"] if how == "-m" else [sys.executable, str(script)]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [*begin, *words],
        env={**os.environ, "PYTHONPATH": path, **env},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=heard,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("how", "at", "words", "turned", "said"),
    [
        ("-m", "torch", ["list"], "", "interrupted."),
        ("script", "numpy", TOY, "", "interrupted."),
        ("script", "mtl_benchmarks.cli", ["--help"], "", "interrupted."),
        ("-m", "mtl_benchmarks.commands.listing", ["list"], "", "interrupted."),
        (
            "script",
            "mtl_benchmarks.session",
            TOY,
            "",
            "interrupted; the same command goes on from the last checkpoint.",
        ),
        ("-m", "mtl_benchmarks.session", TOY, "yes", "interrupted; the same command goes on from the last checkpoint."),
    ],
)
def test_an_interrupt_is_one_line_from_the_first_import_on(
    how: str, at: str, words: list[str], turned: str, said: str, tmp_path: Path
) -> None:
    done = command(how, words, tmp_path, INTERRUPT_AT=at, TURNED=turned)
    assert (done.returncode, done.stderr) == (INTERRUPTED, f"mtl-bench: {said}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_who_only_imports_the_package_keeps_its_signals(tmp_path: Path) -> None:
    text = "import signal, mtl_benchmarks.cli as c; c.main(['--version']); print(signal.getsignal(signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, preexec_fn=heard)
    assert done.stdout.splitlines()[-1] == str(signal.default_int_handler)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_children_that_are_started_shielded_never_see_it_and_here_it_comes_later() -> None:
    come: list[str] = []
    before = signal.signal(signal.SIGINT, lambda *_: come.append("here"))
    try:
        with shielded():
            text = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('lives')"
            signal.raise_signal(signal.SIGINT)  # to this thread: the process may have others that do not wait
            child = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
            assert come == []
        assert come == ["here"]
    finally:
        signal.signal(signal.SIGINT, before)
    assert (child.returncode, child.stdout, child.stderr) == (0, "lives\n", "")
