"""What packages that build on this one may use beside its public names.

Methods that own their step, wrappers, teleports and benchmarks need more than a user does. What they need is here, one
address for each name, and kept as stable as ``mtl_core`` itself; whatever is in neither is internal.

**A step of one's own.** ``guarded`` undoes an error, ``begin`` is the beginning of every step, ``collect_batch``,
``collect_problem``, ``checked_gramian``, ``check_finite_losses`` and ``evaluate_without_graph`` look at the problem,
``finish`` and ``step_from_losses`` end a step, ``together`` lets all ranks raise if one has. ``refuse_reentrant`` is
for whoever differentiates losses without these; ``memory_of`` takes back what was learnt in a step that is none;
``called_tasks`` has the tasks' names, for messages of what is handed numbers only.

**A method within a method.** ``Wrapper`` hands on what the wrapped method offers; ``offers`` asks for it, by the
optional protocols; ``check_method`` refuses what is none; ``ProblemView`` changes the losses; ``FixedWeights`` are
weights that are known. ``SavedState`` is the base of methods that remember something.

**Numbers.** ``gramian_of``, ``weighted_sum``, ``read_gramian``; ``full_precision`` for a function of them that is to
be the same within an autocast region. ``BlasThreads`` limits the threads of numpy's and scipy's BLAS (``NUMPY``,
``SCIPY``); ``blas_pools`` shows them.

**Models and optimisers.** ``Trace``, ``RandomState`` and ``preserved`` leave no trace in a model; ``inner_optimizer``
is the one that owns the state; ``uncovered`` and ``refuse_closure`` check it. ``plain_kernels``,
``refuse_once_differentiable`` and ``twice_or_told`` are for gradients that are differentiated once more.

**Other packages.** ``find_plugin`` by entry point or ``package.module:Class``, ``plugin_names``; ``install_line`` of
what an extra brings.

**Ranks.** ``ranks_of``, ``is_sharded``, ``mean_over_tasks_present_``, ``sum_over_ranks_``.
"""

from mtl_core.agreement import agree, together
from mtl_core.autocasting import full_precision
from mtl_core.beginning import begin
from mtl_core.blas_threads import NUMPY, SCIPY, BlasThreads, blas_pools
from mtl_core.collecting.finite import check_finite_losses
from mtl_core.collecting.flat import flat_size, widest_dtype
from mtl_core.collecting.gramian import gramian_of, weighted_sum
from mtl_core.collecting.graph import Joint, Root, roots_of
from mtl_core.collecting.reentrant import refuse_reentrant
from mtl_core.collection import collect_batch, collect_problem, ranks_of
from mtl_core.combination import combine, combine_per_group
from mtl_core.conflict import read_gramian
from mtl_core.distributed import is_sharded, mean_over_tasks_present_, sum_over_ranks_
from mtl_core.evaluation import evaluate_without_graph, without_graph
from mtl_core.extras import install_line
from mtl_core.functional import placed
from mtl_core.gradient_step import checked_gramian, finish
from mtl_core.guard import guarded, memory_of
from mtl_core.naming import called_tasks
from mtl_core.optimizers import inner_optimizer, refuse_closure, uncovered
from mtl_core.plugins import find_plugin, is_spec, load_spec, plain_name, plugin_names
from mtl_core.preservation import RandomState, Trace, preserved
from mtl_core.problem_view import ProblemView
from mtl_core.protocols import (
    AnyMethod,
    CountsEpochs,
    Draws,
    HasMemory,
    HasUnitWeights,
    LearnsAfterStep,
    Remembers,
    ReportsEvents,
    Resets,
    TakesAbsentTasks,
    TakesLosses,
    TakesSeveralBatches,
    WeighsJacobian,
    check_method,
    is_loss_weighting,
    offers,
)
from mtl_core.report import Keep
from mtl_core.saved_state import SavedState
from mtl_core.second_derivatives import plain_kernels, refuse_once_differentiable, twice_or_told
from mtl_core.stepping import step_from_losses
from mtl_core.weighted import FixedWeights
from mtl_core.wrapping import Wrapper

__all__ = [
    "NUMPY",
    "SCIPY",
    "AnyMethod",
    "BlasThreads",
    "CountsEpochs",
    "Draws",
    "FixedWeights",
    "HasMemory",
    "HasUnitWeights",
    "Joint",
    "Keep",
    "LearnsAfterStep",
    "ProblemView",
    "RandomState",
    "Remembers",
    "ReportsEvents",
    "Resets",
    "Root",
    "SavedState",
    "TakesAbsentTasks",
    "TakesLosses",
    "TakesSeveralBatches",
    "Trace",
    "WeighsJacobian",
    "Wrapper",
    "agree",
    "begin",
    "blas_pools",
    "called_tasks",
    "check_finite_losses",
    "check_method",
    "checked_gramian",
    "collect_batch",
    "collect_problem",
    "combine",
    "combine_per_group",
    "evaluate_without_graph",
    "find_plugin",
    "finish",
    "flat_size",
    "full_precision",
    "gramian_of",
    "guarded",
    "inner_optimizer",
    "install_line",
    "is_loss_weighting",
    "is_sharded",
    "is_spec",
    "load_spec",
    "mean_over_tasks_present_",
    "memory_of",
    "offers",
    "placed",
    "plain_kernels",
    "plain_name",
    "plugin_names",
    "preserved",
    "ranks_of",
    "read_gramian",
    "refuse_closure",
    "refuse_once_differentiable",
    "refuse_reentrant",
    "roots_of",
    "step_from_losses",
    "sum_over_ranks_",
    "together",
    "twice_or_told",
    "uncovered",
    "weighted_sum",
    "widest_dtype",
    "without_graph",
]
