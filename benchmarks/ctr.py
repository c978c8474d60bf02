"""Auxiliary learning on the simulated click log: gains in normalised entropy over LS, beside MGDA, FAMO and MARIGOLD.

    python -m nox -s bench -- ctr [--seeds 3] [--epochs 2] [--train 60000] [--methods ...] [--data-seed 0]

Every method trains the same network from the same start on the same batches with Adam; a seed sets both. Printed are
the means over the seeds of each task's gain in percent, `100 (NE_LS - NE) / NE_LS` against LS of the same seed, with
the half-width of Student's 95 % interval, and the test NE of LS with that of the true probabilities; and how far from
equal the weights' shares of their sum are at the end, the largest distance over the tasks. `MARIGOLD` has the settings
of its paper, with which weights hardly move in so few steps. `auxiliary` is
`Bilevel(upper=MainTasks("click"), weights=AuxiliaryWeights(["distill"]))`, the ads-ranking experiment of the MARIGOLD
paper in small. Its learning rate and the settings of `MARIGOLD exact adversary` and
`MARIGOLD fused antithetic` were chosen on seeds 10 to 12.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from mtl_aggregators import FAMO, LS, MARIGOLD, MGDA, AuxiliaryWeights, Bilevel, MainTasks
from mtl_benchmarks import CTR
from mtl_benchmarks.benchmarks.ctr import ne_gain
from mtl_benchmarks.comparison import Estimate
from mtl_core import step


def auxiliary(**settings: Any) -> Bilevel:
    return Bilevel(upper=MainTasks("click"), weights=AuxiliaryWeights(["distill"], lr=1e-2), **settings)


METHODS: dict[str, Callable[[torch.Generator], Any]] = {
    "LS": lambda generator: LS(),
    "LS without teacher": lambda generator: LS(weights=[1.0, 1.0, 1.0, 0.0]),
    "MGDA": lambda generator: MGDA(),
    "FAMO": lambda generator: FAMO(),
    "MARIGOLD": lambda generator: MARIGOLD(generator=generator),
    "MARIGOLD symmetric": lambda generator: MARIGOLD(estimate="symmetric", radius=0.1, lr=1e-3, generator=generator),
    "MARIGOLD exact adversary": lambda generator: MARIGOLD(
        adversary="exact", estimate="symmetric", radius=0.1, lr=1e-2, generator=generator
    ),
    "MARIGOLD fused": lambda generator: MARIGOLD(lookahead="fused", generator=generator),
    "MARIGOLD fused antithetic": lambda generator: MARIGOLD(
        adversary="exact", lookahead="fused", estimate="antithetic", radius=0.2, lr=1e-2, generator=generator
    ),
    "auxiliary": lambda generator: auxiliary(generator=generator),
    "auxiliary symmetric": lambda generator: auxiliary(estimate="symmetric", radius=0.1, generator=generator),
    "auxiliary fused": lambda generator: auxiliary(lookahead="fused", estimate="two_point", generator=generator),
    "auxiliary exact": lambda generator: auxiliary(hypergradient="exact", generator=generator),
}


def train(benchmark: CTR, name: str, seed: int, epochs: int) -> tuple[dict[str, float], float]:
    """The test scores, and how far from equal the weights' shares are in the last twenty steps."""
    torch.manual_seed(seed)
    model = benchmark.build()
    problem = benchmark.problem(model, tasks=benchmark.tasks)
    protocol = benchmark.training
    optimizer = protocol.optimizer.build(problem)
    batches = benchmark.batches(batch_size=protocol.batch_size, seed=seed, device="cpu")
    method = METHODS[name](torch.Generator().manual_seed(seed))
    shares = []
    for epoch in range(epochs):
        for index in range(len(batches)):
            report = step(problem, batches.batch(epoch, index), optimizer, method)
            if report.weights is not None and not report.losses.isnan().any():
                shares.append(report.weights / report.weights.sum())
    unequal = float((torch.stack(shares[-20:]).mean(0) - 1.0 / len(benchmark.tasks)).abs().max())
    return dict(benchmark.evaluate(model, device="cpu")["test"]), unequal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    benchmark = CTR(n_train=arguments.train, data_seed=arguments.data_seed)
    reference = [train(benchmark, "LS", seed, arguments.epochs)[0] for seed in range(arguments.seeds)]
    best = benchmark.oracle()
    print(f"{'NE':<27}" + "".join(f"{task:>18}" for task in benchmark.tasks))
    rows = {"LS": {name: Estimate.of([values[name] for values in reference]).text(4) for name in reference[0]}}
    rows["true probabilities"] = {name: f"{value:.4f}" for name, value in best.items()}
    for name, row in rows.items():
        print(f"{name:<27}" + "".join(f"{row[f'ne_{task}']:>18}" for task in benchmark.tasks))
    print(
        f"\n{'NE gain over LS in %':<27}"
        + "".join(f"{task:>18}" for task in benchmark.tasks)
        + f"{'unequal':>9}{'s / run':>9}"
    )
    for name in arguments.methods:
        if name == "LS":
            continue
        start = time.perf_counter()
        runs = [train(benchmark, name, seed, arguments.epochs) for seed in range(len(reference))]
        found = [ne_gain(values, first) for (values, _), first in zip(runs, reference, strict=True)]
        unequal = sum(change for _, change in runs) / len(runs)
        seconds = (time.perf_counter() - start) / len(found)
        cells = [Estimate.of([gains[task] for gains in found]).text(3) for task in benchmark.tasks]
        print(f"{name:<27}" + "".join(f"{cell:>18}" for cell in cells) + f"{unequal:9.3f}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
