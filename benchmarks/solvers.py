"""Accuracy and speed of the weighting methods' solvers, side by side with TorchJD where it is installed.

Run it by ``nox -s bench -- solvers``, or ``python benchmarks/solvers.py [--cases N] [--repeats N] [--seed N]``.
Everything is on one CPU thread, and float64 unless ``--dtype`` says otherwise. Each gets the same Jacobian and Gramian
(TorchJD's Nash-MTL takes the Jacobian, and starts where its last call on it ended), in alternating blocks of up to ten
calls after one that warms up, so that a busy machine slows all alike. What takes longer than ``SLOW`` seconds is called
once. The column "formula" is what LibMTL and the papers' code do, as ``formulas/libmtl.py`` writes it down.

TorchJD's UPGrad and DualProj need qpsolvers and quadprog, and its Nash-MTL ecos, of which the latter two are under the
GPL; no requirement of this repository names them. Where they are installed their rows are shown, otherwise what to
install.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
import torch
from formulas.libmtl import FORMULAS
from torch import Tensor

from mtl_aggregators import (
    CRMOGM,
    DBMTL,
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradVac,
    GramianMethod,
    IMGrad,
    Krum,
    MoCo,
    NashMTL,
    PCGrad,
    TrimmedMean,
    UPGrad,
)
from mtl_aggregators.imgrad import balance_of
from mtl_aggregators.solvers import fair_residual, min_norm_residual, project_rows
from mtl_core import SolverError

SIZES = (2, 3, 11, 40, 100)
FAMILIES = (
    "generic",
    "norms 1e6 apart",
    "cond(G) 1e12",
    "duplicated row",
    "zero row",
    "opposite rows",
    "rank-deficient",
)
TARGETS = {
    "MGDA": 1e-10,
    "CAGrad": 1e-8,
    "NashMTL": 1e-8,
    "FairGrad": 1e-8,
    "UPGrad": 1e-8,
    "DualProj": 1e-8,
    "IMGrad": 1e-8,
}
C, ALPHA = 0.4, 2.0
IMGRAD_C = 0.8
BLOCK = 10
SLOW = 1.0
INSTALL = {
    "NashMTL": "pip install ecos",
    "UPGrad": "pip install qpsolvers quadprog",
    "DualProj": "pip install qpsolvers quadprog",
}
"""What TorchJD needs besides itself."""


def jacobian(family: str, n_tasks: int, rng: np.random.Generator) -> np.ndarray:
    """Task gradients of a family, ``[m, m + 5]``."""
    size = n_tasks + 5
    rows = rng.normal(size=(n_tasks, size))
    if family == "cond(G) 1e12":
        left, _ = np.linalg.qr(rng.normal(size=(n_tasks, n_tasks)))
        right, _ = np.linalg.qr(rng.normal(size=(size, n_tasks)))
        rows = left @ np.diag(np.logspace(0, -6, n_tasks)) @ right.T
    if family == "rank-deficient":
        rank = max(1, n_tasks // 2)
        rows = rng.normal(size=(n_tasks, rank)) @ rng.normal(size=(rank, size))
    if family == "norms 1e6 apart":
        rows *= np.logspace(-3, 3, n_tasks)[rng.permutation(n_tasks), None]
    if family == "duplicated row":
        rows[-1] = rows[0]
    if family == "opposite rows":
        rows[-1] = -0.7 * rows[0]
    if family == "zero row":
        rows[-1] = 0.0
    scaled: np.ndarray = rows * 10.0 ** rng.uniform(-8, 8)
    return scaled


def combination_residual(gramian: np.ndarray, weights: np.ndarray, dual: np.ndarray | None, c: float) -> float:
    """CAGrad: the primal–dual gap of the update and the violation of its ball, relative.

    The update ``d = g_0 + x`` must satisfy ``‖x‖ ≤ c‖g_0‖`` and attain ``min_i ⟨g_i, d⟩ = ⟨g_w, g_0⟩ + c‖g_0‖‖g_w‖``
    with dual weights ``w``. The gap is that of Frank–Wolfe wherever ``g_w ≠ 0``. Without ``dual``, ``w`` is read off
    ``x``.
    """
    m = len(gramian)
    norms = np.sqrt(gramian.diagonal())
    active = norms > 0.0
    scale = norms.max()
    gramian, norms = gramian / scale**2, norms / scale
    mean = np.full(m, 1.0 / m)
    length = np.sqrt(max(0.0, mean @ gramian @ mean))
    step = weights - mean
    reach = np.sqrt(max(0.0, step @ gramian @ step))
    if length == 0.0:
        return 0.0
    if dual is None:
        positive = np.maximum(step, 0.0)
        if not positive.any():
            return 1.0
        dual = positive / positive.sum()
    value = dual @ gramian @ mean + c * length * np.sqrt(max(0.0, dual @ gramian @ dual))
    attained = (gramian @ weights)[active].min()
    size = length * (1.0 + c)
    return float(max(value - attained, reach - c * length, 0.0) / size)


def cone_residual(gramian: np.ndarray, rows: np.ndarray) -> float:
    """UPGrad: infeasibility and complementarity of the projections of the unit gradients, relative."""
    norms = np.sqrt(gramian.diagonal())
    active = norms > 0.0
    if not active.any():
        return 0.0
    norms = norms[active]
    cosines = gramian[np.ix_(active, active)] / norms / norms[:, None]
    unit = rows[np.ix_(active, active)] * norms / norms[:, None]
    slack = unit @ cosines
    added = unit - np.eye(len(norms))
    complementarity = np.abs((added * slack).sum(axis=1)) / (1.0 + added.sum(axis=1))
    return float(max(0.0, -slack.min(), complementarity.max()))


def residual(name: str, gramian: np.ndarray, weights: np.ndarray, dual: np.ndarray | None = None) -> float:
    """The measure of ``docs``' accuracy table for a method's weights, independent of what its solver says."""
    if name == "MGDA":
        return min_norm_residual(gramian, weights)
    if name == "CAGrad":
        return combination_residual(gramian, weights, dual, C)
    if name == "NashMTL":
        return fair_residual(gramian, weights, 1.0)
    if name == "FairGrad":
        return fair_residual(gramian, weights, ALPHA)
    if name == "IMGrad":
        return float("nan") if dual is None else dual_gap(gramian, dual, balance_of(gramian, "pm"))
    if name == "DualProj":
        return mean_residual(gramian, weights)
    return cone_residual(gramian, project_rows(gramian).value)


def dual_gap(gramian: np.ndarray, dual: np.ndarray, balance: float) -> float:
    """IMGrad: the Frank–Wolfe gap of (1.5 − κ)⟨g_w, g_0⟩ + κc‖g_0‖‖g_w‖, relative; where g_w = 0 there is none."""
    active = gramian.diagonal() > 0.0
    gramian = gramian / gramian.diagonal().max()
    m = len(gramian)
    image, mean = gramian @ dual, gramian.sum(axis=1) / m
    length, reach = np.sqrt(max(0.0, mean.sum() / m)), np.sqrt(max(0.0, dual @ image))
    if reach <= 1e-7 or length == 0.0:
        return 0.0
    slope = (1.5 - balance) * mean + balance * IMGRAD_C * length * image / reach
    size = length * np.sqrt(gramian.diagonal()[active].max()) * (1.5 + IMGRAD_C)
    return float((dual @ slope - slope[active].min()) / size)


def mean_residual(gramian: np.ndarray, weights: np.ndarray) -> float:
    """DualProj: infeasibility over unit gradients and complementarity of the mean's projection, relative."""
    norms = np.sqrt(gramian.diagonal())
    active = norms > 0.0
    norms = norms[active] / norms.max()
    slack = (gramian[np.ix_(active, active)] / gramian.diagonal().max()) @ weights[active] / norms
    added = (weights[active] - 1.0 / len(gramian)) * norms
    size = float(norms.sum()) / len(gramian)
    return float(max(0.0, -slack.min() / size, abs(added @ slack) / size / (size + added.sum())))


def methods() -> dict[str, GramianMethod]:
    """The methods that rest on a solver."""
    return {
        "MGDA": MGDA(),
        "CAGrad": CAGrad(c=C),
        "NashMTL": NashMTL(),
        "FairGrad": FairGrad(alpha=ALPHA),
        "UPGrad": UPGrad(),
        "DualProj": DualProj(),
        "IMGrad": IMGrad(CAGrad(c=IMGRAD_C)),
    }


def accuracy(cases: int, seed: int) -> None:
    """Print residuals over random structured Gramians."""
    print(f"Residuals over {cases} random Gramians per family, m in {SIZES}, global scale 1e-8 to 1e8")
    print(
        "(median / worst; for NashMTL and FairGrad over the cases that have a solution, "
        "[n] = regularised, for there is none; FAILED = SolverError)"
    )
    names = list(methods())
    print(f"{'':18s}" + "".join(f"{name + f' ≤ {TARGETS[name]:.0e}':>26s}" for name in names))
    above: dict[str, list[float]] = {"NashMTL": [], "FairGrad": []}
    for family in FAMILIES:
        rng = np.random.default_rng(seed)
        found: dict[str, list[float]] = {name: [] for name in names}
        regularised = dict.fromkeys(names, 0)
        failed = dict.fromkeys(names, 0)
        for _ in range(cases):
            rows = jacobian(family, int(rng.choice(SIZES, p=(0.25, 0.25, 0.3, 0.15, 0.05))), rng)
            gramian = rows @ rows.T
            gramian = 0.5 * (gramian + gramian.T)
            for name, method in methods().items():
                try:
                    weights = method.weights(torch.from_numpy(gramian)).numpy()
                except SolverError:
                    failed[name] += 1
                    continue
                if method.last_solution is not None and method.last_solution.regularised:
                    regularised[name] += 1
                    continue
                dual = method.last_solution.value if method.last_solution is not None else None
                found[name].append(residual(name, gramian, weights, dual))
                if name in above and found[name][-1] > TARGETS[name]:
                    above[name].append(backward_error(gramian, weights, 1.0 if name == "NashMTL" else ALPHA))
        cells = []
        for name in names:
            values = np.array(found[name] or [np.nan])
            cell = f"{np.median(values):.0e} / {values.max():.0e}"
            cell += f" [{regularised[name]}]" if regularised[name] else ""
            cell += f" {failed[name]} FAILED" if failed[name] else ""
            cells.append(f"{cell:>26s}")
        print(f"{family:18s}" + "".join(cells))
    for name, errors in above.items():
        if errors:
            print(
                f"{name}: {len(errors)} above the target, so close to a stationary point that rounding w moves the "
                "residual as far;\n  worst backward error max_i |(Gw)_i − w_i^(−1/α)| / Σ_j |G_ij| w_j = "
                f"{max(errors):.0e}"
            )


def backward_error(gramian: np.ndarray, weights: np.ndarray, alpha: float) -> float:
    """Nash-MTL, FairGrad: ``max_i |(Gw)_i − w_i^(−1/α)| / Σ_j |G_ij| w_j``, the gap in units of the sum's terms."""
    active = gramian.diagonal() > 0.0
    gap = np.abs(gramian @ weights - weights ** (-1.0 / alpha), where=active, out=np.zeros(len(weights)))
    return float((gap[active] / (np.abs(gramian) @ weights)[active]).max())


def reference(name: str, n_tasks: int) -> Callable[[Tensor, Tensor], Tensor] | str:
    """TorchJD's weights from Jacobian and Gramian, or why there are none."""
    if importlib.util.find_spec("torchjd") is None:
        return "needs pip install torchjd==0.18"
    from torchjd import aggregation

    def on_gramian(weighting: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda _, gramian: weighting(gramian)

    weightings: dict[str, Callable[[], Any]] = {
        "MGDA": aggregation.MGDAWeighting,
        "CAGrad": lambda: aggregation.CAGradWeighting(c=C),
        "FairGrad": lambda: aggregation.FairGradWeighting(alpha=ALPHA),
        "UPGrad": aggregation.UPGradWeighting,
        "PCGrad": aggregation.PCGradWeighting,
        "DualProj": aggregation.DualProjWeighting,
    }
    if name not in weightings and name != "NashMTL":
        return "not in TorchJD"
    try:
        if name != "NashMTL":
            return on_gramian(weightings[name]())
        nash: Any = aggregation.NashMTL(n_tasks=n_tasks, max_norm=0.0).weighting  # without clipping the update
        return lambda rows, _: nash(rows)
    except ImportError:
        return f"needs {INSTALL.get(name, 'more')}"


def alternate(calls: list[Callable[[], object]], repeats: int, budget: float) -> list[float]:
    """Median microseconds of several calls, made in turn in blocks that begin warm, within a budget of seconds."""
    times: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(times[0]) < repeats:
        for call, record in zip(calls, times, strict=True):
            block = time.perf_counter()
            call()
            for _ in range(BLOCK):
                start = time.perf_counter()
                call()
                record.append(time.perf_counter() - start)
                if time.perf_counter() - block > 0.2:
                    break
        if time.perf_counter() - begin > budget:
            break
    return [1e6 * float(np.median(record)) for record in times]


def first_call(call: Callable[[Tensor, Tensor], Tensor], rows: Tensor, gramian: Tensor) -> tuple[Tensor | str, float]:
    """What another implementation gives, or its error, and the seconds that it took."""
    begin = time.perf_counter()
    try:
        found: Tensor | str = call(rows, gramian)
    except Exception as error:  # noqa: BLE001  # whatever another library raises is its result here
        found = f"{type(error).__name__}: {str(error)[:40]}"
    return found, time.perf_counter() - begin


def side_by_side(
    mine: Callable[[], object],
    others: list[Callable[[Tensor, Tensor], Tensor] | str],
    rows: Tensor,
    gramian: Tensor,
    repeats: int,
    budget: float,
) -> tuple[list[float], list[Tensor | str]]:
    """Median microseconds of ours and the others, NaN for those that are not there; and what the others give."""
    results: list[Tensor | str] = []
    single: list[float] = []
    calls, places = [mine], [0]
    for place, other in enumerate(others, start=1):
        result, seconds = (other, math.nan) if isinstance(other, str) else first_call(other, rows, gramian)
        results.append(result)
        single.append(1e6 * seconds if isinstance(result, Tensor) else math.nan)
        if not isinstance(other, str) and isinstance(result, Tensor) and seconds < SLOW:
            calls.append(lambda f=other: f(rows, gramian))  # type: ignore[misc]
            places.append(place)
    times = [math.nan, *single]
    for place, value in zip(places, alternate(calls, repeats, budget), strict=True):
        times[place] = value
    return times, results


def cell(ours: float, theirs: float) -> str:
    """A time and how many times ours it is."""
    return f"{'—':>12s}{'':10s}" if math.isnan(theirs) else f"{theirs:12.0f}{theirs / ours:9.1f}×"


HEAD = f"{'':12s}{'m':>5s}{'here':>10s}{'TorchJD':>12s}{'ratio':>10s}{'formula':>12s}{'ratio':>10s}"


def speed(repeats: int, seed: int) -> None:
    """Print median times, ratios and residuals of the methods that solve a problem."""
    present = importlib.util.find_spec("torchjd") is not None
    version = importlib.metadata.version("torchjd") if present else "absent"
    print(f"\nMedian time of one weights() call in µs, norms 1e2 apart; TorchJD {version}")
    print(f"{HEAD}{'residual here':>16s}{'TorchJD':>10s}{'formula':>10s}")
    for name, method in [*methods().items(), ("PCGrad", PCGrad())]:
        for n_tasks in SIZES:
            rng = np.random.default_rng(seed)
            rows = rng.normal(size=(n_tasks, n_tasks + 5)) * np.logspace(-1, 1, n_tasks)[:, None]
            jacobian_, gramian = torch.from_numpy(rows), torch.from_numpy(rows @ rows.T)
            others = [reference(name, n_tasks), FORMULAS.get(name, "")]
            times, found = side_by_side(
                lambda m=method, g=gramian: m.weights(g),
                others,
                jacobian_,
                gramian,
                repeats,
                budget=4.0,  # type: ignore[misc]
            )
            line = f"{name:12s}{n_tasks:5d}{times[0]:10.0f}" + cell(times[0], times[1]) + cell(times[0], times[2])
            if name != "PCGrad":
                weights = method.weights(gramian)
                inner = getattr(method, "base", method).last_solution
                line += f"{quality(name, gramian, weights, None if inner is None else inner.value):16.0e}"
                for other in found:
                    known = isinstance(other, Tensor)
                    dual = other.double().numpy() if known and name == "IMGrad" else None
                    line += f"{quality(name, gramian, other, dual):10.0e}" if known else f"{'—':>10s}"
            notes = [f"TorchJD: {found[0]}"] if isinstance(found[0], str) else []
            notes += [f"formula: {found[1]}"] if isinstance(found[1], str) and found[1] else []
            notes += ["slow ones called once"] if max(times[1:], default=0.0) >= 1e6 * SLOW else []
            print("  ".join([line, *notes]), flush=True)
    print("(UPGrad, DualProj: instead of a residual, the least cosine of a task's gradient with the update)")


def quality(name: str, gramian: Tensor, weights: Tensor, dual: np.ndarray | None = None) -> float:
    """The residual of weights; for the projections the least cosine of a task's gradient with the update."""
    if name not in ("UPGrad", "DualProj"):
        return residual(name, gramian.numpy(), weights.double().numpy(), dual)
    weights = weights.to(gramian)
    length = math.sqrt(float(weights @ gramian @ weights))
    return float(((gramian @ weights) / gramian.diagonal().sqrt()).min()) / length


def other_methods() -> dict[str, Any]:
    """The methods without a problem to solve: weightings of the Gramian, then those on the gradients themselves."""
    return {
        "GradVac": GradVac(),
        "IMTLG": IMTLG(),
        "ConFIG": ConFIG(),
        "AlignedMTL": AlignedMTL(),
        "Krum": Krum(n_selected=2),
        "PCD": PCD(),
        "CRMOGM": CRMOGM(),
        "GradDrop": GradDrop(),
        "TrimmedMean": TrimmedMean(),
        "ExcessMTL": ExcessMTL(),
        "DBMTL": DBMTL(log_losses=False),
        "MoCo": MoCo(),
    }


def other_reference(name: str) -> Callable[[Tensor, Tensor], Tensor] | str:
    """TorchJD's aggregator of that name, or why there is none."""
    if importlib.util.find_spec("torchjd") is None:
        return "needs pip install torchjd==0.18"
    from torchjd import aggregation

    made: dict[str, Callable[[], Any]] = {
        "GradVac": aggregation.GradVac,
        "IMTLG": aggregation.IMTLG,
        "ConFIG": aggregation.ConFIG,
        "AlignedMTL": aggregation.AlignedMTL,
        "Krum": lambda: aggregation.Krum(n_byzantine=0, n_selected=2),
        "PCD": aggregation.PCD,
        "GradDrop": aggregation.GradDrop,
        "TrimmedMean": lambda: aggregation.TrimmedMean(trim_number=1),
        "ExcessMTL": aggregation.ExcessMTL,
    }
    if name not in made:
        return ""
    aggregator = made[name]()
    return lambda rows, _: aggregator(rows)


def updating(name: str) -> Callable[[Tensor, Tensor], Tensor] | str:
    """The plain formula of that name from Jacobian to update, or that there is none."""
    formula = FORMULAS.get(name)
    if formula is None:
        return ""

    def update(rows: Tensor, _: Tensor) -> Tensor:
        found = formula(rows, rows @ rows.T)
        return found if len(found) == rows.shape[1] else found @ rows

    return update


def others(repeats: int, seed: int, columns: int | None, dtype: torch.dtype, names: Sequence[str]) -> None:
    """Print times of the named methods, which solve no problem, from a Jacobian ``[m, columns]`` to the update."""
    shape = f"[m, {columns or 'm + 5'}], {str(dtype).removeprefix('torch.')},"
    print(f"\nMedian time of one update from a Jacobian {shape} in µs (methods without a problem to solve)")
    print(HEAD)
    for name in names:
        for n_tasks in SIZES:
            method = other_methods()[name]
            if n_tasks < method.facts.min_tasks:
                continue
            rng = np.random.default_rng(seed)
            drawn = rng.normal(size=(n_tasks, columns or n_tasks + 5)) * np.logspace(-1, 1, n_tasks)[:, None]
            rows = torch.from_numpy(drawn).to(dtype)
            times, found = side_by_side(
                lambda m=method, j=rows: m(j),
                [other_reference(name), updating(name)],
                rows,
                rows,
                repeats,
                budget=2.0,  # type: ignore[misc]
            )
            line = f"{name:12s}{n_tasks:5d}{times[0]:10.0f}" + cell(times[0], times[1]) + cell(times[0], times[2])
            notes = [f"TorchJD: {found[0]}"] if isinstance(found[0], str) and found[0] else []
            print("  ".join([line, *notes]), flush=True)


def on_device(repeats: int, seed: int) -> None:
    """Print times of the device backend, on an accelerator if there is one."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    note = torch.cuda.get_device_name() if place == "cuda" else "CPU tensors: there is no accelerator here"
    print(f"\nMedian time of one weights() call of backend='device' in µs ({note})")
    print(f"{'':10s}" + "".join(f"{f'm = {m}':>10s}" for m in (2, 3, 11, 40)))
    made: dict[str, Callable[..., GramianMethod]] = {
        "MGDA": MGDA,
        "CAGrad": CAGrad,
        "NashMTL": NashMTL,
        "FairGrad": FairGrad,
        "UPGrad": UPGrad,
        "DualProj": DualProj,
        "IMGrad": IMGrad,
    }
    for name, factory in made.items():
        cells = []
        for n_tasks in (2, 3, 11, 40):
            rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(n_tasks, n_tasks + 5))).to(place)
            method, gramian = factory(backend="device"), rows @ rows.T

            def call(method: GramianMethod = method, gramian: Tensor = gramian) -> None:
                method.weights(gramian)
                if place == "cuda":
                    torch.cuda.synchronize()

            cells.append(f"{alternate([call], min(repeats, 30), budget=1.0)[0]:10.0f}")
        print(f"{name:10s}" + "".join(cells))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="random Gramians per family")
    parser.add_argument("--repeats", type=int, default=200, help="timed calls per method and size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, help="columns of the Jacobians of the table 'others', instead of m + 5")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="of the same Jacobians")
    parser.add_argument("--methods", nargs="+", choices=tuple(other_methods()), help="rows of the same table")
    parser.add_argument("--only", choices=("accuracy", "speed", "others", "device"), help="one table instead of all")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tables: dict[str, Callable[[], None]] = {
        "accuracy": lambda: accuracy(options.cases, options.seed),
        "speed": lambda: speed(options.repeats, options.seed),
        "others": lambda: others(
            options.repeats,
            options.seed,
            options.columns,
            getattr(torch, options.dtype),
            options.methods or tuple(other_methods()),
        ),
        "device": lambda: on_device(options.repeats, options.seed),
    }
    for name in tables if options.only is None else (options.only,):
        tables[name]()


if __name__ == "__main__":
    main()
