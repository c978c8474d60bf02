"""Task gradients, conflict metrics and the protocols of multi-task optimisation.

``collect`` turns losses into ``TaskGradients``; the functions of ``conflict`` measure how tasks disagree; ``step`` does
a whole training step with any method that keeps to one of the four protocols.
"""

from mtl_core import checks
from mtl_core.collecting.task_gradients import TaskGradients
from mtl_core.collection import accumulate
from mtl_core.conflict import (
    conflict_count,
    cosines,
    dominated_conflict,
    imbalance_ratio,
    individual_progress,
    majority_conflict,
    mean_cosines,
    weak_conflict,
)
from mtl_core.errors import (
    DamagedFileError,
    DetachedLossError,
    DuplicateModuleError,
    InvalidInputError,
    InvalidJacobianError,
    InvalidParameterError,
    MissingExtraError,
    NoLossesError,
    NoMatchError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteStateError,
    NonScalarLossError,
    NoSharedParametersError,
    RankError,
    ResultsDirectoryError,
    SolverError,
    UnknownNameError,
)
from mtl_core.frequency import TaskSampling, UpdateEvery
from mtl_core.gradients import collect
from mtl_core.micro_batches import MicroBatches
from mtl_core.monitor import ConflictMonitor, EpochConflict
from mtl_core.per_task import collect_per_task
from mtl_core.problem import Problem
from mtl_core.protocols import Aggregator, LossWeighting, Method, Weighting
from mtl_core.report import Event, Note, SkippedUpdate, StepOptions, StepReport
from mtl_core.stepping import step
from mtl_core.task_losses import TaskLosses

__version__ = "0.2.0"

__all__ = [
    "Aggregator",
    "ConflictMonitor",
    "DamagedFileError",
    "DetachedLossError",
    "DuplicateModuleError",
    "EpochConflict",
    "Event",
    "InvalidInputError",
    "InvalidJacobianError",
    "InvalidParameterError",
    "LossWeighting",
    "Method",
    "MicroBatches",
    "MissingExtraError",
    "NoLossesError",
    "NoMatchError",
    "NoSharedParametersError",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "NonFiniteStateError",
    "NonScalarLossError",
    "Note",
    "Problem",
    "RankError",
    "ResultsDirectoryError",
    "SkippedUpdate",
    "SolverError",
    "StepOptions",
    "StepReport",
    "TaskGradients",
    "TaskLosses",
    "TaskSampling",
    "UnknownNameError",
    "UpdateEvery",
    "Weighting",
    "accumulate",
    "checks",
    "collect",
    "collect_per_task",
    "conflict_count",
    "cosines",
    "dominated_conflict",
    "imbalance_ratio",
    "individual_progress",
    "majority_conflict",
    "mean_cosines",
    "step",
    "weak_conflict",
]
