import math

import pytest
import torch
from torch import Tensor

from mtl_aggregators import make
from mtl_benchmarks.benchmarks.toy import STARTS, Point, Toy, objectives, optimum
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_core import InvalidParameterError, step

LOWER = 5e-6


def by_the_formula(x1: float, x2: float, scale: float = 1.0) -> tuple[float, float]:
    """The definition, term by term."""
    h1 = math.log(max(abs(0.5 * (-x1 - 7) - math.tanh(-x2)), LOWER)) + 6
    h2 = math.log(max(abs(0.5 * (-x1 + 3) + math.tanh(-x2) + 2), LOWER)) + 6
    c1, c2 = max(math.tanh(0.5 * x2), 0), max(math.tanh(-0.5 * x2), 0)
    q1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    q2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return scale * (h1 * c1 + q1 * c2), h2 * c1 + q2 * c2


def point(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ((-8.5, 7.5), (6.552363, 7.900798)),
        ((-8.5, -5.0), (4.059918, -19.421502)),
        ((9.0, 9.0), (7.943949, 6.691495)),
        ((0.0, 0.0), (0.0, 0.0)),
        ((-7.5, -0.5), (0.388808, -4.754484)),
        ((9.0, -1.0), (-8.831059, 2.814293)),
        ((0.0, -8.3552), (-15.091638, -15.091638)),
        ((7.0, -8.3552), (-19.989334, -0.398551)),
    ],
)
def test_check_values(x: tuple[float, float], expected: tuple[float, float]) -> None:
    assert objectives(point(*x)).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_agrees_with_the_definition_everywhere(scale: float) -> None:
    axis = torch.linspace(-11, 11, 45, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    found = objectives(grid, scale=scale)
    for i in range(0, 45, 4):
        for k in range(45):
            expected = by_the_formula(float(grid[i, k, 0]), float(grid[i, k, 1]), scale)
            assert found[i, k].tolist() == pytest.approx(expected, abs=1e-10)


def test_a_bound_that_is_met_passes_its_gradient() -> None:
    # At x2 = 0 both shares are exactly at their bound: dL1/dx2 = h1/2 - q1/2, dL2/dx2 = h2/2 - q2/2.
    x = point(0.0, 0.0).requires_grad_()
    losses = objectives(x)
    gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0].tolist() for loss in losses]
    h = math.log(3.5) + 6
    q = (49 + 0.1 * 64) / 10 - 20
    assert gradients[0] == pytest.approx([0.0, (h - q) / 2])
    assert gradients[1] == pytest.approx([0.0, (h - q) / 2])


def test_gradients_by_finite_differences() -> None:
    for x in STARTS:
        if x != (0.0, 0.0):
            assert torch.autograd.gradcheck(objectives, point(*x).requires_grad_())


def test_optimum() -> None:
    assert optimum() == pytest.approx((0.0, -8.355110), abs=1e-6)
    assert optimum(scale=0.1) == pytest.approx((-5.72727, -8.40940), abs=1e-5)
    assert objectives(point(*optimum())).mean().item() == pytest.approx(-15.091638, abs=1e-6)


def test_cases_and_starts() -> None:
    assert len(Toy().cases()) == len(STARTS) == 6
    assert [case.case_options()["start"] for case in Toy(start="nash").cases()] == [0, 2, 3, 4, 5]
    model = Toy(start=2).build()
    assert isinstance(model, Point)
    assert model.x.tolist() == [9.0, 9.0]


@pytest.mark.parametrize("start", ["paper", 6, -1, True])
def test_refuses_an_unknown_start(start: object) -> None:
    with pytest.raises(InvalidParameterError, match="`start` must be one of 'all', 'cagrad', 'nash' or 0 to 5"):
        Toy(start=start)  # type: ignore[arg-type]


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InvalidParameterError, match="must be a number to build one point"):
        Toy().build()
    toy = Toy(start=0)
    with pytest.raises(InvalidParameterError, match="tasks"):
        toy.problem(toy.build(), tasks=("first",))
    with pytest.raises(InvalidParameterError, match="device"):
        toy.batches(batch_size=1, seed=0, device="cuda")


@pytest.mark.parametrize(("name", "parameters"), [("ls", {}), ("cagrad", {"c": 0.5}), ("mgda", {})])
def test_methods_go_down_from_the_easy_start(name: str, parameters: dict[str, float]) -> None:
    toy = Toy(start=1)
    model = toy.build()
    problem = toy.problem(model, tasks=toy.tasks)
    optimizer, method = OptimizerChoice("adam", {"lr": 0.05}).build(problem), make(name, **parameters)
    before = toy.evaluate(model, device="cpu")["test"]["distance"]
    for _ in range(300):
        step(problem, None, optimizer, method)
    after = toy.evaluate(model, device="cpu")["test"]
    assert after["x2"] == pytest.approx(-8.4, abs=0.3)
    assert after["distance"] < before
