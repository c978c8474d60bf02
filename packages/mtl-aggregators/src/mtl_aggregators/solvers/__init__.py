"""Small exact solvers for the problems behind the weighting methods, in float64 on the host.

Each takes a Gramian ``[m, m]`` and returns a ``Solution`` that says how it went. All of them work on rows scaled to
unit length, so that neither the size of the gradients nor the ratio of their norms matters, and compare only relative
quantities. A zero row is a task without a say: it gets no weight and does not influence the others.
"""

from mtl_aggregators.solvers.ball_dual import BallSolution, ball_dual
from mtl_aggregators.solvers.dual_cone import project, project_rows
from mtl_aggregators.solvers.equal_projection import equal_projection
from mtl_aggregators.solvers.fair_point import fair_point, fair_residual
from mtl_aggregators.solvers.least_distance import least_distance
from mtl_aggregators.solvers.min_norm import min_norm, min_norm_residual
from mtl_aggregators.solvers.rows import UnitRows, factor, unit_rows
from mtl_aggregators.solvers.simplex import project_simplex
from mtl_aggregators.solvers.solution import Solution

__all__ = [
    "BallSolution",
    "Solution",
    "UnitRows",
    "ball_dual",
    "equal_projection",
    "factor",
    "fair_point",
    "fair_residual",
    "least_distance",
    "min_norm",
    "min_norm_residual",
    "project",
    "project_rows",
    "project_simplex",
    "unit_rows",
]
