"""A process that measures one state of this repository, so that two states can be measured in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks")


# The C library gives large blocks back to the system and takes them anew by rules that depend on what the process has
# freed before: seen as 0 to 8,000 page faults in the same step of a net with 12 MiB of parameters, a fifth of its time.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


class Server:
    """A script started with ``--serve`` on the packages of a checkout; it answers each line of JSON with another.

    Memory that the process has freed stays with it, see ``ALLOCATOR``.
    """

    def __init__(self, script: str, root: Path = ROOT) -> None:
        paths = [str(root / "packages" / package / "src") for package in PACKAGES]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **ALLOCATOR}
        self.process = subprocess.Popen(
            [sys.executable, script, "--serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **asked: Any) -> dict[str, float]:
        """One question, and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the process that measures has ended; what it said last is above")
        found: dict[str, float] = json.loads(answer)
        return found

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
