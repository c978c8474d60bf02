"""What of a teleport matters: its terms, triggers, adapters and sharpness one at a time, and a random move beside them.

``mtl-bench ablate BENCHMARK`` trains one method with every variant over several seeds and prints one table per case of
the benchmark, in the shape of tables 4 and appendix 3 and 4 of the COST paper. The random control moves as far as the
default did, seed by seed and move by move: a variant that gains no more than it gains nothing from where it moved.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mtl_benchmarks.comparison import Estimate, Moves, moves
from mtl_benchmarks.components.options import Choice, construct
from mtl_benchmarks.configuration.making import ADAPTERS, make_benchmark
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.metrics import Metric, difference
from mtl_benchmarks.runs.baselines import measure_against, single_tasks
from mtl_benchmarks.runs.ended import train_or_stop
from mtl_benchmarks.runs.rehearsal import rehearse
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.studies.matching_lengths import lengths_of
from mtl_benchmarks.studies.rows import heading_of
from mtl_benchmarks.studies.variants import Variant
from mtl_core import InvalidInputError, NoMatchError

__all__ = ["Row", "ablate", "ablation_table", "first_kinds"]


@dataclass(frozen=True)
class Row:
    """What became of a variant.

    Attributes:
        name: the variant's.
        measure: seed → Δm in percent, or the benchmark's own measure where there is no Δm.
        moves: what its teleports did, over all seeds.
        seconds: training time of one run.
        metric: what is measured; None: Δm.
    """

    name: str
    measure: Mapping[int, float]
    moves: Moves | None
    seconds: float
    metric: Metric | None = None


def ablate(
    benchmark: Choice,
    method: Choice,
    chosen: Sequence[Variant],
    *,
    seeds: Sequence[int],
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Train every variant with every seed on one case of a benchmark; complete runs are only read.

    Args:
        benchmark: one case, with its options.
        method: the method, wrapped or alone.
        chosen: the variants, with those that others are to match.
        seeds: of the runs; one that is named twice counts once.
        out: the collection of runs.
        settings: what else ``RunConfig.resolve`` takes, the same for all runs: ``tasks``, ``epochs`` and so on.
        processes: how many runs at a time.
        progress: called with a line of text after each run.

    Returns:
        one row per variant; one whose adapter finds nothing to adapt in this benchmark's model is left out.

    Raises:
        InvalidInputError: a run would be refused at its first step; none is begun then.
    """
    said = progress or (lambda line: None)
    seeds = tuple(dict.fromkeys(seeds))

    def resolve(teleport: Choice | None, seed: int) -> RunConfig:
        return RunConfig.resolve(benchmark, method, teleport, seed=seed, **(settings or {}))

    chosen = [variant for variant in chosen if _fits(variant, lambda move: resolve(move, seeds[0]), said)]
    rehearse(_in_advance(chosen, lambda move: resolve(move, seeds[0])), out, say=said)

    def train(configs: Sequence[RunConfig]) -> list[RunResult]:
        found = train_or_stop(configs, out, processes=processes, progress=lambda run: said(_told(run)), say=said)
        for result in found:
            if result.stopped:
                said(f"{result.config.label}, seed {result.config.seed} diverged, {result.stopped}")
        return found

    def matched(variant: Variant, seed: int) -> Choice | None:
        assert variant.like is not None
        assert variant.teleport is not None
        lengths = lengths_of(trained[variant.like, seed])
        # Where nothing moved there is nothing to match, and the control is the method alone.
        return Choice(variant.teleport.name, {**variant.teleport.options, "length": lengths}) if lengths else None

    singles = train(single_tasks([resolve(None, seed) for seed in seeds]))
    measure = measure_against(resolve(None, seeds[0]), singles)
    said(measure.note)
    trained: dict[tuple[str, int], RunResult] = {}
    # Those first that match nothing: the others need the lengths of their moves.
    for waits in (False, True):
        keys = [(variant, seed) for variant in chosen if (variant.like is not None) == waits for seed in seeds]
        configs = [resolve(matched(v, seed) if waits else v.teleport, seed) for v, seed in keys]
        for (variant, seed), result in zip(keys, train(configs), strict=True):
            trained[variant.name, seed] = result
    rows = []
    for variant in chosen:
        found = {seed: trained[variant.name, seed] for seed in seeds}
        by_seed = {seed: measure.of(result.values) for seed, result in found.items()}
        seconds = statistics.fmean([result.seconds for result in found.values() if not result.stopped] or [math.nan])
        rows.append(Row(variant.name, by_seed, moves(found.values()), seconds, measure.metric))
    return rows


def first_kinds(
    benchmark: Choice,
    method: Choice,
    chosen: Sequence[Variant],
    *,
    seed: int,
    settings: Mapping[str, Any] | None = None,
) -> list[RunConfig]:
    """What an ablation would train with one seed, to be looked at before that of another case begins.

    Args:
        benchmark: one case, with its options.
        method: the method, wrapped or alone.
        chosen: the variants.
        seed: of the runs.
        settings: as for :func:`ablate`.
    """

    def resolve(teleport: Choice | None) -> RunConfig:
        return RunConfig.resolve(benchmark, method, teleport, seed=seed, **(settings or {}))

    return _in_advance([variant for variant in chosen if _fits(variant, resolve, lambda line: None)], resolve)


def _in_advance(chosen: Sequence[Variant], resolve: Callable[[Choice | None], RunConfig]) -> list[RunConfig]:
    """The runs of one seed; of those that wait for the lengths of others as if these had moved once."""
    found = []
    for variant in chosen:
        move = variant.teleport
        if move is not None and variant.like is not None:
            move = Choice(move.name, {**move.options, "length": [1.0]})
        found.append(resolve(move))
    return [*single_tasks(found), *found]


def _told(result: RunResult) -> str:
    return f"{result.config.label}, seed {result.config.seed}: {result.seconds:.1f} s"


def _fits(variant: Variant, resolve: Callable[[Choice | None], RunConfig], said: Callable[[str], None]) -> bool:
    """Whether the variant's adapter, if it names one, can be attached to the benchmark's model; says why not."""
    if variant.teleport is None or "adapter" not in variant.teleport.options:
        return True
    config = resolve(variant.teleport)
    assert config.teleport is not None
    problem_of = make_benchmark(config.benchmark)
    problem = problem_of.problem(problem_of.build(), tasks=config.tasks)
    adapter = config.teleport.options["adapter"]
    try:
        construct(ADAPTERS.find(adapter.name), adapter.options).attach(problem).detach()
    except NoMatchError as error:
        said(f"{variant.name} is left out: {error}")
        return False
    return True


def ablation_table(rows: Sequence[Row], *, title: str) -> Table:
    """One line per variant: what it reached, against the first row seed by seed, what it moved, and what it cost.

    Args:
        rows: from ``ablate``; the first is the method alone.
        title: of the table.

    Raises:
        InvalidInputError: there is no row.
    """
    if not rows:
        raise InvalidInputError("`rows` must hold at least one row, got none.")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("variant", no_wrap=True)
    for column in (
        heading_of(rows[0].metric),
        "minus alone,\nby seed",
        "moves\nkept",
        "undone",
        "min cosine",
        "‖mean gradient‖",
        "drift %",
        "train\nseconds",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    alone = rows[0].measure
    for number, row in enumerate(rows):
        is_delta = row.metric is None
        differences = [difference(value, alone[seed], percent=is_delta) for seed, value in row.measure.items()]
        table.add_row(
            row.name,
            Estimate.of(list(row.measure.values())).brief(),
            Estimate.of(differences).brief() if number else "",
            *_moved(row.moves),
            f"{row.seconds:.1f}",
        )
    table.caption = (
        "Means over seeds ± half of the 95 % interval by Student's t. An interval of a difference that holds 0 shows "
        "no effect, and of many intervals about one in twenty misses. Compare every row with the random move."
    )
    table.caption_justify = "left"
    return table


def _moved(found: Moves | None) -> list[str]:
    if found is None:
        return [""] * 5
    if not found.accepted:
        return ["0", str(found.rejected), "", "", ""]
    return [
        str(found.accepted),
        str(found.rejected),
        f"{found.min_cosine[0]:.2f} → {found.min_cosine[1]:.2f}",
        f"{found.mean_norm[0]:.3g} → {found.mean_norm[1]:.3g}",
        f"{100 * found.drift:.2g}",
    ]
