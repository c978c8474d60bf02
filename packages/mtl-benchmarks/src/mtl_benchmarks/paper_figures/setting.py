"""What a figure is made in: a benchmark, methods, seeds, and where its runs are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_benchmark
from mtl_benchmarks.configuration.naming import by_label, method_label
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.runs.baselines import measure_against
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.runner import RunResult
from mtl_benchmarks.session import with_baselines
from mtl_core import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Case", "Made", "Measured", "Setting"]

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Made:
    """A figure as it came out.

    Attributes:
        figure: the picture.
        header: of the table of its numbers.
        rows: the numbers that are drawn.
        said: what is drawn, and what was measured, in a sentence or two.
    """

    figure: Figure
    header: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    said: str


@dataclass(frozen=True)
class Case:
    """One case of a benchmark, and how it is trained.

    Attributes:
        benchmark: with its options.
        settings: what ``RunConfig.resolve`` takes beside names and seed.
    """

    benchmark: Choice
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Measured(Generic[Key]):
    """Runs and what stands for each.

    Attributes:
        runs: key → run.
        values: key → Δm in percent, or the benchmark's main metric where there is no Δm.
        label: what these values are, with their direction.
    """

    runs: Mapping[Key, RunResult]
    values: Mapping[Key, float]
    label: str


@dataclass(frozen=True)
class Setting:
    """What a figure is made in.

    Attributes:
        cases: of the benchmark, one unless it stands for several problems.
        many: a benchmark of many tasks, for the figure that needs two.
        methods: in the order in which they are drawn.
        teleport: what moves the parameters, for the figures that have teleports.
        seeds: of the runs.
        runs: the collection of runs.
        processes: how many run at a time.
        say: called with a line of text after each run.
    """

    cases: tuple[Case, ...]
    many: Case | None
    methods: tuple[Choice, ...]
    teleport: Choice | None
    seeds: tuple[int, ...]
    runs: Path
    processes: int
    say: Callable[[str], None]

    @property
    def labels(self) -> dict[str, Choice]:
        """The methods by name, with their options where they have any."""
        return by_label("methods", self.methods, method_label, lambda text: None)

    @property
    def case(self) -> Case:
        """The only case.

        Raises:
            InvalidInputError: there are several.
        """
        if len(self.cases) > 1:
            names = ", ".join(f"{key} {value}" for key, value in self.cases[0].benchmark.options.items())
            raise InvalidInputError(
                f"`--benchmark` must be one problem for this figure, got the {len(self.cases)} of "
                f"{self.cases[0].benchmark.name}. Choose one by its options, such as {names}."
            )
        return self.cases[0]

    def config(
        self, method: str | Choice, teleport: str | Choice | None = None, *, seed: int, case: Case | None = None
    ) -> RunConfig:
        """The configuration of a run in a case; None: the only one."""
        chosen = case or self.case
        return RunConfig.resolve(chosen.benchmark, method, teleport, seed=seed, **chosen.settings)

    def train(self, configs: Sequence[RunConfig]) -> list[RunResult]:
        """Train what is missing; the results, in the order of ``configs``."""
        done = 0

        def progress(result: RunResult) -> None:
            nonlocal done
            done += 1
            name = result.config.benchmark.name
            self.say(
                f"  {done} of {len(configs)}: {name}, {result.config.label}, seed {result.config.seed}: "
                f"{result.seconds:.1f} s"
            )

        return run_all(configs, self.runs, processes=self.processes, progress=progress, say=self.say)

    def measured(self, planned: Mapping[Key, RunConfig]) -> Measured[Key]:
        """Train runs with the single-task runs they are measured against, and measure them."""
        configs = list({config.name: config for config in with_baselines(list(planned.values()))}.values())
        results = self.train(configs)
        by_name = {result.config.name: result for result in results}
        runs = {key: by_name[config.name] for key, config in planned.items()}
        first = next(iter(planned.values()))
        measure = measure_against(first, results)
        values = {key: measure.of(run.values) for key, run in runs.items()}
        metric = measure.metric
        if metric is None:
            return Measured(runs, values, "Δm [%], lower is better")
        if make_benchmark(first.benchmark).has_single_task_runs:
            self.say(measure.note)
        direction = "higher" if metric.higher_is_better else "lower"
        unit = f" [{metric.unit}]" if metric.unit else ""
        return Measured(runs, values, f"{metric.name}{unit}, {direction} is better")
