"""Observers that write what they see: CSV files, TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtl_benchmarks.engine.logs.csv_log import CSVLog
from mtl_benchmarks.engine.logs.log import Log
from mtl_benchmarks.engine.logs.tensorboard_log import TensorBoardLog
from mtl_benchmarks.engine.logs.wandb_log import WandBLog
from mtl_benchmarks.engine.observers import Observer
from mtl_core.checks import one_of

__all__ = ["LOGS", "CSVLog", "Log", "TensorBoardLog", "WandBLog", "make_logs"]

LOGS: Mapping[str, type[Log]] = {"csv": CSVLog, "tensorboard": TensorBoardLog, "wandb": WandBLog}
"""Names that ``--log`` takes."""


def make_logs(names: Sequence[str]) -> list[Observer]:
    """The observers behind names.

    Raises:
        InvalidParameterError: a name that is none of :data:`LOGS`.
        MissingExtraError: what it writes with is not installed.
    """
    return [LOGS[one_of("log", name, tuple(LOGS))]() for name in dict.fromkeys(names)]
