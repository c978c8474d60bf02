"""How long ``mtl-bench`` takes to begin, beside ``import torch`` alone.

Run it by ``nox -s bench -- startup``, or ``python benchmarks/startup.py [--rounds N] [--modules N]``.
Each round starts one process per command, in turn: ``import torch``, ``mtl-bench --version``, ``mtl-bench list`` and
``mtl-bench run digits --help``. Printed are medians and the median of what each takes beyond ``import torch`` in the
same round, in seconds on the clock and in seconds of processor time, which says more where other processes hold the
cores; then what ``python -X importtime -m mtl_benchmarks list`` says of the modules that are not torch's.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "mtl-bench --version": ["-m", "mtl_benchmarks", "--version"],
    "mtl-bench list": ["-m", "mtl_benchmarks", "list"],
    "mtl-bench run digits --help": ["-m", "mtl_benchmarks", "run", "digits", "--help"],
}
LIMIT = 1.5


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(words: list[str]) -> tuple[float, float]:
    """On the clock, and of processor time."""
    start, before = time.perf_counter(), processor()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, processor() - before


def timed(rounds: int) -> dict[str, list[tuple[float, float]]]:
    for words in COMMANDS.values():  # once, so that every file is in the cache and every module compiled
        seconds(words)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            found[name].append(seconds(words))
    return found


def own_times() -> dict[str, float]:
    """Package → seconds of its modules themselves, without what they import."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mtl_benchmarks", "list"], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = defaultdict(float)
    for line in ran.stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if own.strip().isdecimal():
            found[rest.partition("|")[2].strip().partition(".")[0]] += int(own) / 1e6
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--modules", type=int, default=8, help="packages that are shown")
    options = parser.parse_args()
    found = timed(options.rounds)
    print(f"{'':30s}{'clock':>9s}{'beyond torch':>14s}{'processor':>12s}{'beyond torch':>14s}")
    beyond = {}
    for name, times in found.items():
        line = f"{name:30s}"
        for k, width in ((0, 9), (1, 12)):
            more = statistics.median(t[k] - b[k] for t, b in zip(times, found["import torch"], strict=True))
            line += f"{statistics.median(t[k] for t in times):{width}.2f}{more:14.2f}"
            beyond[name, k] = more
        print(line)
    print(f"\nlist within {LIMIT} s of torch on the clock: {beyond['mtl-bench list', 0] <= LIMIT}")
    print("\nof `list`, by package, without what each imports:")
    shares = own_times()
    for name in sorted(shares, key=lambda each: -shares[each])[: options.modules]:
        print(f"{name:30s}{shares[name]:9.2f}")


if __name__ == "__main__":
    main()
