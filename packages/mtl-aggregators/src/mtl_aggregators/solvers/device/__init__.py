"""The same problems as in ``mtl_aggregators.solvers``, for Gramians that stay on their device.

Written in batched torch: every function takes ``[..., m, m]`` and returns ``[..., m]`` in float64, runs a fixed number
of iterations, never waits for the device and never branches on a value, so that ``torch.compile`` and CUDA graphs take
it whole. Instead of a report there is a tensor: results are as good as those on the host where float64 lets them, and
a NaN in gives NaN out.
"""

from mtl_aggregators.solvers.device.ball_dual import ball_dual, worst_off
from mtl_aggregators.solvers.device.dual_cone import project, project_rows
from mtl_aggregators.solvers.device.fair_point import fair_point
from mtl_aggregators.solvers.device.min_norm import min_norm
from mtl_aggregators.solvers.device.rows import solves_on_device

__all__ = ["ball_dual", "fair_point", "min_norm", "project", "project_rows", "solves_on_device", "worst_off"]
