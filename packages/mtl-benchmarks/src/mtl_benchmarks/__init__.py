"""Benchmarks, training runs that resume exactly, metrics and reports for multi-task optimisation."""

from mtl_benchmarks.baselines import own_baselines, single_task_configs
from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.benchmarks import CTR, Digits, Toy
from mtl_benchmarks.config import RunConfig
from mtl_benchmarks.data_files import DataSource, ReadsFiles
from mtl_benchmarks.loading import LoadedBatches, Loading
from mtl_benchmarks.metrics import Baseline, Metric, delta_m, mean_rank, ranks
from mtl_benchmarks.observers import EvaluationSeen, Observer, ObserverError, RunStart, StepSeen
from mtl_benchmarks.optimizers import OptimizerChoice
from mtl_benchmarks.options import Choice
from mtl_benchmarks.outcome import Best, EarlyStopping, Last, MeanOfLast
from mtl_benchmarks.pool import run_all
from mtl_benchmarks.published import (
    PublishedTable,
    PublishedValue,
    printed_baselines,
    published_table,
    published_values,
)
from mtl_benchmarks.results import Collection, RunDirectory
from mtl_benchmarks.runner import RunResult, load_result, run
from mtl_benchmarks.schedules import Constant, Cosine, Plateau, Span, StepDecay
from mtl_benchmarks.trainer import Progress
from mtl_benchmarks.training import Clip, Training

__version__ = "0.2.0"

__all__ = [
    "CTR",
    "Baseline",
    "Benchmark",
    "Best",
    "Choice",
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
    "Observer",
    "ObserverError",
    "OptimizerChoice",
    "Plateau",
    "Progress",
    "PublishedTable",
    "PublishedValue",
    "ReadsFiles",
    "RunConfig",
    "RunDirectory",
    "RunResult",
    "RunStart",
    "Span",
    "StepDecay",
    "StepSeen",
    "Toy",
    "Training",
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
