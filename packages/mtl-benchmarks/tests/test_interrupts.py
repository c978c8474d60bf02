"""Ctrl-C and SIGTERM end the command in one line and with 130 or 143, wherever they come; others keep theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtl_benchmarks.interrupts import INTERRUPTED, TERMINATED, shielded

HOOK = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), int(os.environ.get("NUMBER", signal.SIGINT)))
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
@pytest.mark.parametrize(
    ("at", "words", "turned", "said"),
    [
        ("torch", ["list"], "", "terminated."),
        ("mtl_benchmarks.session", TOY, "", "terminated; the same command goes on from the last checkpoint."),
        ("mtl_benchmarks.session", TOY, "yes", "terminated; the same command goes on from the last checkpoint."),
    ],
)
def test_so_is_sigterm(at: str, words: list[str], turned: str, said: str, tmp_path: Path) -> None:
    done = command("-m", words, tmp_path, INTERRUPT_AT=at, TURNED=turned, NUMBER=str(int(signal.SIGTERM)))
    assert (done.returncode, done.stderr) == (TERMINATED, f"mtl-bench: {said}\n")


WATCHED = """
import sys
import time
from pathlib import Path
from mtl_benchmarks.engine import logs
from mtl_benchmarks.engine.observers import Observer
import mtl_benchmarks.cli as cli


class Closes(Observer):
    def __init__(self, *, every=10):
        pass

    def step(self, seen):
        Path("stepped").touch()

    def broken_off(self):
        Path("closed").touch()


logs.LOGS["csv"] = Closes
sys.argv[0] = "mtl-bench"
cli.raise_at_interrupt()
sys.exit(cli.main())
"""


def is_gone(group: int) -> bool:
    """Whether nobody of a group of processes is left, within five minutes."""
    for _ in range(6000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def end(program: list[str], folder: Path, begun: str, number: signal.Signals, *, group: bool) -> tuple[int, str, str]:
    """Start a command, wait for its files, signal it or its whole group, and see how it ends."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heard,
    )
    try:
        deadline = time.monotonic() + 600
        while not list(folder.glob(begun)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (os.killpg if group else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=600)
        assert is_gone(process.pid)
        return process.returncode, out, err
    finally:
        process.kill()
        process.wait()


LONG = ["toy", "--benchmark.start", "0", "--benchmark.steps_per_epoch", "2", "--epochs", "100000"]
GOES_ON = "; the same command goes on from the last checkpoint.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_observers_are_closed(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    code, _, err = end(["watched.py", "run", *LONG, "--log", "csv"], tmp_path, "stepped", number, group=False)
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert (code, err) == (128 + number, f"mtl-bench: {word}{GOES_ON}")
    assert (tmp_path / "closed").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for a group of processes")
@pytest.mark.parametrize("group", [False, True], ids=["the command", "its group"])
def test_children_are_gone(group: bool, tmp_path: Path) -> None:
    words = ["-m", "mtl_benchmarks", "study", *LONG, "--methods", "ls", "mgda", "--processes", "2", "--seeds", "2"]
    code, _, err = end(words, tmp_path, "runs/study/*/checkpoint.pt", signal.SIGTERM, group=group)
    assert (code, err) == (TERMINATED, f"mtl-bench: terminated{GOES_ON}")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_that_was_forked_ends_as_any_other(tmp_path: Path) -> None:
    text = (
        "import sys; sys.argv = ['mtl-bench']\n"
        "import os, signal, mtl_benchmarks.interrupts as i; i.raise_at_interrupt()\n"
        "import time; reading, writing = os.pipe(); child = os.fork()\n"
        "if child == 0:\n    os.write(writing, b'!'); [time.sleep(0.05) for _ in range(600)]; os._exit(1)\n"
        "os.read(reading, 1); os.kill(child, signal.SIGTERM); print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"-{int(signal.SIGTERM)}\n", "")


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
