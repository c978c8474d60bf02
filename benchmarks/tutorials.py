"""How long each tutorial of the documentation takes, in seconds of processor time; a minute is allowed.

    python -m nox -s bench -- tutorials [--only 02_seeing_conflict]

Each is run once, with the processes that it starts. The tutorial on molecules needs the extra ``qm9`` and is left out
where that is absent; its first run reads the package's text, which later ones find in the cache.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MPLBACKEND", "Agg")

from docsite import tutorials  # noqa: E402

TARGET = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    paths = {path.stem: path for path in tutorials.tutorials(ROOT / "docs" / "tutorials")}
    parser.add_argument("--only", nargs="+", choices=sorted(paths), help="these tutorials alone")
    options = parser.parse_args()
    for name in options.only or sorted(paths):
        if "molecules" in name and find_spec("qm9pack") is None:
            print(f"{name:<32} left out: qm9pack is not installed")
            continue
        began = os.times()
        tutorials.executed(paths[name])
        spent = sum(os.times()[:4]) - sum(began[:4])  # of the processor, with processes that it started
        print(f"{name:<32} {spent:6.1f} s  {'met' if spent < TARGET else 'MISSED'}", flush=True)


if __name__ == "__main__":
    main()
