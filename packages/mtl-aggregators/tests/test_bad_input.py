"""Whatever is put into a method, the error is one of this family's and names the cause; scales are no cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mtl_core
from mtl_aggregators import DBMTL, FAMO, MGDA, GradNorm, MoCo, available, make
from mtl_aggregators.solvers import project_simplex
from mtl_core import InvalidInputError, InvalidJacobianError, InvalidParameterError, NonFiniteLossError
from mtl_core.testing import small_problem

NAN, INF = float("nan"), float("inf")
BY_NEED: dict[str, list[str]] = {}
for _name in available():
    BY_NEED.setdefault(make(_name).facts.needs, []).append(_name)
CALLED_ON_LOSSES = [name for name in BY_NEED["losses"] if callable(make(name)) and name != "marigold"]
WEIGHTINGS = [name for name in available() if callable(getattr(make(name), "weights", None))]

VECTORS: dict[str, Any] = {
    "two dimensions": torch.ones(2, 2),
    "no dimension": torch.tensor(1.0),
    "empty": torch.ones(0),
    "whole numbers": torch.ones(2, dtype=torch.long),
    "complex": torch.ones(2, dtype=torch.complex64),
    "a list": [1.0, 2.0],
    "nothing": None,
}
MATRICES: dict[str, Any] = {
    "not finite": torch.tensor([[1.0, NAN], [1.0, 1.0]]),
    "infinite": torch.tensor([[1.0, INF], [1.0, 1.0]]),
    "one dimension": torch.ones(2),
    "three dimensions": torch.ones(2, 2, 2),
    "empty": torch.ones(0, 0),
    "whole numbers": torch.ones(2, 2, dtype=torch.long),
    "complex": torch.ones(2, 2, dtype=torch.complex64),
    "a list": [[1.0, 0.0], [0.0, 1.0]],
    "nothing": None,
}


def begun(name: str) -> Any:
    method = make(name)
    if callable(getattr(method, "start_epoch", None)):
        method.start_epoch(0)
    return method


def beside(method: Any, n_tasks: int) -> dict[str, Tensor]:
    needed = getattr(method, "takes_losses", False) or isinstance(method, DBMTL)
    return {"losses": torch.ones(n_tasks)} if needed else {}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", CALLED_ON_LOSSES)
def test_a_loss_that_is_not_finite_is_named(name: str, value: float) -> None:
    with pytest.raises(NonFiniteLossError, match=f"`losses` must be finite, got task 1: {value}") as caught:
        begun(name)(torch.tensor([1.0, value, 2.0], requires_grad=True))
    assert caught.value.tasks == ("task 1",)


def test_by_the_task_s_own_name() -> None:
    with pytest.raises(NonFiniteLossError, match="depth: nan"):
        FAMO(tasks=("seg", "depth"))(torch.tensor([1.0, NAN]))
    # A loss that is absent may be anything.
    assert float(FAMO()(torch.tensor([1.0, NAN]), present=torch.tensor([True, False]))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", BY_NEED["losses"])
def test_in_a_step_too(name: str) -> None:
    problem, batch = small_problem(2)

    def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
        a = model(x)[1][0].square().mean()
        return {"a": a, "b": a * NAN}

    bad = mtl_core.Problem(problem.model, losses, shared="trunk", tasks=("a", "b"))
    with pytest.raises(NonFiniteLossError, match="finite"):
        mtl_core.step(bad, batch, torch.optim.SGD(problem.model.parameters(), lr=0.1), begun(name))


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("name", CALLED_ON_LOSSES)
def test_losses_of_the_wrong_kind(name: str, kind: str) -> None:
    with pytest.raises(InvalidInputError, match="`losses` must"):
        begun(name)(VECTORS[kind])


@pytest.mark.parametrize("name", CALLED_ON_LOSSES)
def test_a_mask_of_the_wrong_kind(name: str) -> None:
    for mask in (torch.ones(3, dtype=torch.bool), torch.ones(2), [True, True]):
        with pytest.raises(InvalidInputError, match="`present` must be a boolean tensor"):
            begun(name)(torch.ones(2), present=mask)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("name", BY_NEED["gramian"] + BY_NEED["jacobian"])
def test_jacobians_of_the_wrong_kind(name: str, kind: str) -> None:
    method = begun(name)
    with pytest.raises(InvalidJacobianError):
        method(MATRICES[kind], **({} if name in WEIGHTINGS else beside(method, 2)))


@pytest.mark.parametrize("kind", [*MATRICES, "not square"])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gramians_of_the_wrong_kind(name: str, kind: str) -> None:
    method = begun(name)
    with pytest.raises(InvalidJacobianError):
        method.weights({**MATRICES, "not square": torch.ones(2, 3)}[kind], **beside(method, 2))


@pytest.mark.parametrize("kind", [*MATRICES, "not square"])
@pytest.mark.parametrize("name", BY_NEED["batches"])
def test_cross_products_of_the_wrong_kind(name: str, kind: str) -> None:
    with pytest.raises(InvalidJacobianError, match="`cross` must"):
        make(name).weigh({**MATRICES, "not square": torch.ones(2, 3)}[kind])


@pytest.mark.parametrize("name", BY_NEED["batches"])
def test_another_number_of_tasks(name: str) -> None:
    method = make(name)
    method.weigh(torch.eye(2))
    with pytest.raises(InvalidInputError, match="same number of tasks"):
        method.weigh(torch.eye(3))


WITH_LOSSES: dict[str, Any] = {
    "MGDA loss": lambda losses: MGDA(normalization="loss").weights(torch.eye(2), losses=losses),
    "MGDA loss+": lambda losses: MGDA(normalization="loss+").weights(torch.eye(2), losses=losses),
    "GradNorm": lambda losses: GradNorm().weights(torch.eye(2), losses=losses),
    "CRMOGM": lambda losses: make("crmogm", weighting=MGDA(normalization="loss")).weights(torch.eye(2), losses=losses),
    "DBMTL": lambda losses: DBMTL()(torch.eye(2), losses=losses),
    "MoCo": lambda losses: MoCo(variant="libmtl")(torch.eye(2), losses=losses),
}


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_losses_beside_gradients(name: str) -> None:
    for value in VECTORS.values():
        with pytest.raises(InvalidInputError, match=r"`losses`"):
            WITH_LOSSES[name](value)
    with pytest.raises(InvalidInputError, match="one loss per row, 2, got 3"):
        WITH_LOSSES[name](torch.ones(3))
    with pytest.raises(InvalidInputError, match="must be positive"):
        WITH_LOSSES[name](-torch.ones(2))
    for value in (NAN, INF):
        with pytest.raises(NonFiniteLossError, match=f"task 1: {value}"):
            WITH_LOSSES[name](torch.tensor([1.0, value]))


def test_an_absent_task_s_loss_may_be_nan() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    losses = torch.tensor([1.0, NAN])
    assert MGDA(normalization="loss").weights(rows @ rows.T, losses=losses).tolist() == [1.0, 0.0]
    assert bool(torch.isfinite(DBMTL()(rows, losses=losses)).all())


@pytest.mark.parametrize("name", ["dwa", "famo", "imtl", "imtll", "uw"])
def test_losses_after_a_step(name: str) -> None:
    with pytest.raises(NonFiniteLossError, match="task 1: inf"):
        begun(name).after_step(torch.tensor([1.0, INF]), lambda: torch.ones(2))
    with pytest.raises(InvalidInputError, match="shape"):
        begun(name).after_step(torch.ones(2, 2), lambda: torch.ones(2, 2))


def test_the_simplex_gives_nan_for_nan() -> None:
    assert bool(project_simplex(torch.tensor([NAN, 1.0])).isnan().all())


GRAMIAN = torch.tensor([[2.0, 0.3, -0.4], [0.3, 1.0, 0.5], [-0.4, 0.5, 3.0]], dtype=torch.float64)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("power", [-300, -200, -40, 40, 200, 300])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_any_scale_of_the_gramian(name: str, power: int) -> None:
    method, other = make(name), make(name)
    extra = beside(method, 3)
    degree = method.facts.homogeneity
    plain, scaled = other.weights(GRAMIAN, **extra), method.weights(GRAMIAN * 10.0**power, **extra)
    assert degree is not None
    assert torch.allclose(scaled, plain * 10.0 ** (power / 2 * (degree - 1.0)), rtol=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_ends_of_the_range(name: str) -> None:
    for gramian in (
        torch.eye(2) * 1e-40,
        torch.eye(3, dtype=torch.float64) * 1e-320,
        torch.full((3, 3), 1e306, dtype=torch.float64) + torch.eye(3, dtype=torch.float64) * 1e306,
        torch.diag(torch.tensor([1e-300, 1.0, 1e300], dtype=torch.float64)),
    ):
        method = make(name)
        assert bool(torch.isfinite(method.weights(gramian, **beside(method, len(gramian)))).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [n for n in BY_NEED["gramian"] if not getattr(make(n), "takes_losses", False)])
def test_any_scale_of_the_jacobian(name: str, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 0.5, 0.0], [-0.25, 1.0, 0.5], [0.5, 0.0, 1.0]], dtype=torch.float64)
    degree = make(name).facts.homogeneity
    plain = make(name)(rows)
    # The smallest are below the normal range, where weights of 2^140 are beyond that of the dtype.
    for power in (-140 if dtype == torch.float32 else -128, -100, 100, 120):
        narrow = (rows * 2.0**power).to(dtype)
        expected = plain * 2.0 ** (power * degree)
        found = make(name)(narrow).double()
        assert torch.allclose(found, expected, rtol=1e-2, atol=2.0**-131 if power < -100 else 0.0)


@pytest.mark.parametrize(
    ("name", "setting", "rule"),
    [
        ("imgrad", {"max_balance": 1.0}, r"must lie in \[0, 1\), got 1.0"),
        ("crmogm", {"alpha": 1}, r"must lie in \[0, 1\), got 1"),
        ("dbmtl", {"beta": 1.0}, r"must lie in \[0, 1\), got 1.0"),
        ("pcd", {"beta": 1.0}, r"must lie in \[0, 1\), got 1.0"),
        ("sdmgrad", {"momentum": -0.1}, r"must lie in \[0, 1\), got -0.1"),
        ("moco", {"beta": 0.0}, r"must lie in \(0, 1\], got 0.0"),
        ("gradvac", {"beta": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ("crmogm", {"alpha": "much"}, "must be a number, got 'much'"),
        ("dbmtl", {"beta": NAN}, "must be finite, got nan"),
        ("pcd", {"tau": "x"}, "must be a number or one per task, got 'x'"),
        ("graddrop", {"leak": "x"}, "must be a number or one per task, got 'x'"),
        ("uw", {"start": INF}, "must be a finite number or one per task"),
        ("imtll", {"start": "x"}, "must be a number or one per task, got 'x'"),
    ],
)
def test_settings_say_the_rule_that_they_break(name: str, setting: dict[str, Any], rule: str) -> None:
    (argument,) = setting
    with pytest.raises(InvalidParameterError, match=f"`{argument}` {rule}"):
        make(name, **setting)


def test_ends_that_belong_to_the_interval() -> None:
    assert make("imgrad", max_balance=0.0).max_balance == 0.0
    assert make("imgrad", max_balance=1.0 - 1e-15).max_balance < 1.0
    assert make("moco", beta=1.0).beta == 1.0


def negated(values: Tensor) -> Tensor:
    """The same numbers with their negation put off, as torch has it of the imaginary part of a conjugate."""
    found = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert found.is_neg()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in available() if name != "marigold"])
def test_a_negation_that_is_put_off_changes_nothing(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(3, 4, generator=generator, dtype=dtype)
    losses = torch.rand(3, generator=generator, dtype=dtype) + 0.5

    def results(given: Any) -> list[Tensor]:
        method = begun(name)
        if name in CALLED_ON_LOSSES:
            found = [method(given(losses))]
            if hasattr(method, "after_step"):
                method.after_step(given(losses), lambda: given(0.9 * losses))
                found.append(method(given(losses)))
            return found
        if name in ("sdmgrad", "modo"):
            return [method.weigh(given(jacobian @ jacobian.T))]
        found = []
        if name in WEIGHTINGS:
            beside = {"losses": given(losses)} if method.takes_losses else {}
            found.append(method.weights(given(jacobian @ jacobian.T), **beside))
        if name == "gradnorm":
            return found
        method = begun(name)
        beside = {"losses": given(losses)} if isinstance(method, (DBMTL, MoCo)) else {}
        return [*found, method(given(jacobian), **beside)]

    for found, wanted in zip(results(negated), results(lambda values: values), strict=True):
        assert torch.equal(found, wanted)
