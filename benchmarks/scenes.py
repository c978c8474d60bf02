"""How many generated pictures are drawn a second, with all their maps, on one thread.

    python -m nox -s bench -- scenes [--pictures 20] [--rounds 5] [--height 64] [--width 96]

Rooms and streets take turns. Printed are pictures per second of processor time, the median over rounds with the lowest
and the highest, which another process on the core hardly changes; the target is 20.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from mtl_benchmarks.scenes.generated.rendering import rendered_room, rendered_street

KINDS = {"rooms": rendered_room, "streets": rendered_street}
TARGET = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(-1, options.rounds):  # the first, uncounted, warms up
        for kind, render in KINDS.items():
            begin = time.process_time()
            for k in range(options.pictures):
                render(options.height, options.width, seed=1, split=0, index=options.pictures * (round_ + 1) + k)
            if round_ >= 0:
                rates[kind].append(options.pictures / (time.process_time() - begin))
    for kind, found in rates.items():
        middle = statistics.median(found)
        said = "met" if middle >= TARGET else "MISSED"
        print(f"{kind:<8} {middle:6.1f} a second ({min(found):.1f} to {max(found):.1f})  target {TARGET:.0f} {said}")


if __name__ == "__main__":
    main()
