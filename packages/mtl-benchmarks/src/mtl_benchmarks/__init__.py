"""Benchmarks, training runs that resume exactly, metrics and reports for multi-task optimisation."""

# First of all: what follows takes seconds, in which Ctrl-C must end the command in words.
from mtl_benchmarks import interrupts  # noqa: F401

# isort: split
from mtl_benchmarks.batching.batches import Batches
from mtl_benchmarks.batching.loading import LoadedBatches, Loading
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import CTR, MT10, QM9, CelebA, CityScapes, Digits, MovieLens, NYUv2, Toy, Yeast
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.data_files import DataSource, ReadsFiles
from mtl_benchmarks.engine.observers import EvaluationSeen, Observer, ObserverError, RunStart, StepSeen
from mtl_benchmarks.engine.progress import Progress
from mtl_benchmarks.metrics import Baseline, Metric, delta_m, mean_rank, ranks
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.outcome import Best, EarlyStopping, Last, MeanOfLast
from mtl_benchmarks.protocol.schedules import Constant, Cosine, Plateau, Span, StepDecay
from mtl_benchmarks.protocol.training import Clip, Training
from mtl_benchmarks.published import (
    PublishedTable,
    PublishedValue,
    printed_baselines,
    published_table,
    published_values,
)
from mtl_benchmarks.runs.baselines import own_baselines, single_task_configs
from mtl_benchmarks.runs.pool import run_all
from mtl_benchmarks.runs.runner import RunResult, load_result, run
from mtl_benchmarks.scenes.sources import Rooms, Streets
from mtl_benchmarks.storage.results import Collection, RunDirectory

__version__ = "0.2.0"

__all__ = [
    "CTR",
    "MT10",
    "QM9",
    "Baseline",
    "Batches",
    "Benchmark",
    "Best",
    "CelebA",
    "Choice",
    "CityScapes",
    "Clip",
    "Collection",
    "Constant",
    "Cosine",
    "DataSource",
    "Digits",
    "EarlyStopping",
    "EvaluationSeen",
    "Last",
    "LoadedBatches",
    "Loading",
    "MeanOfLast",
    "Metric",
    "MovieLens",
    "NYUv2",
    "Observer",
    "ObserverError",
    "OptimizerChoice",
    "Plateau",
    "Progress",
    "PublishedTable",
    "PublishedValue",
    "ReadsFiles",
    "Rooms",
    "RunConfig",
    "RunDirectory",
    "RunResult",
    "RunStart",
    "Span",
    "StepDecay",
    "StepSeen",
    "Streets",
    "Toy",
    "Training",
    "Yeast",
    "delta_m",
    "load_result",
    "mean_rank",
    "own_baselines",
    "printed_baselines",
    "published_table",
    "published_values",
    "ranks",
    "run",
    "run_all",
    "single_task_configs",
]
