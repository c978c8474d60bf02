"""Matrices that no gradients have as their inner products are refused; all that have some are taken."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl_aggregators import available, make
from mtl_aggregators.bases.gramian_method import GramianMethod
from mtl_aggregators.bases.jacobian_method import JacobianMethod, LossAwareMethod
from mtl_core import InvalidJacobianError, checks, dominated_conflict, mean_cosines

WEIGHTINGS = sorted(name for name in available() if isinstance(make(name), GramianMethod))
OF_JACOBIANS = [
    name for name in available() if isinstance(make(name), GramianMethod | JacobianMethod | LossAwareMethod)
]
IMPOSSIBLE = {
    "an entry beyond both norms": [[1.0, 2.0], [2.0, 1.0]],
    "a negative square": [[-1.0, 0.0], [0.0, 1.0]],
    "an entry beside a zero row": [[0.0, 1.0], [1.0, 1.0]],
}


def padded(rows: list[list[float]], m: int) -> torch.Tensor:
    matrix = torch.eye(m, dtype=torch.float64)
    matrix[-2:, -2:] = torch.tensor(rows)
    return matrix


@pytest.mark.parametrize("m", [2, 11, 20])
@pytest.mark.parametrize("kind", IMPOSSIBLE)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_they_are_refused(name: str, kind: str, m: int) -> None:
    method = make(name)
    options = {"losses": torch.ones(m)} if method.takes_losses else {}
    with pytest.raises(InvalidJacobianError, match=r"must (hold inner products, none larger|have squared norms)"):
        method.weights(padded(IMPOSSIBLE[kind], m), **options)


@pytest.mark.parametrize("kind", IMPOSSIBLE)
@pytest.mark.parametrize("metric", [dominated_conflict, mean_cosines])
def test_metrics_refuse_them(metric: object, kind: str) -> None:
    with pytest.raises(InvalidJacobianError, match="`gramian` must"):
        metric(gramian=padded(IMPOSSIBLE[kind], 3))  # type: ignore[operator]


@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 20),
    d=st.integers(1, 5),
    spread=st.integers(0, 12),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_those_of_gradients_are_taken_at_any_scale(seed: int, m: int, d: int, spread: int, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, d, generator=drawn, dtype=torch.float64)
    scales = 10.0 ** (spread * torch.randn(m, 1, generator=drawn, dtype=torch.float64))
    jacobian = (rows * scales).clamp(-1e15, 1e15).to(dtype)
    gramian = jacobian @ jacobian.T
    checks.gramian(gramian)
    assert checks.is_possible(gramian.double().numpy(), dtype)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
@pytest.mark.parametrize("name", OF_JACOBIANS)
def test_what_holds_no_dense_numbers_is_refused_by_name(name: str, kind: str) -> None:
    matrix = torch.eye(2).to_sparse() if kind == "sparse" else torch.eye(2, device="meta")
    method = make(name)
    with pytest.raises(InvalidJacobianError, match="must be dense and hold numbers"):
        method(matrix, losses=torch.ones(2)) if isinstance(method, LossAwareMethod) else method(matrix)
    if name in WEIGHTINGS:
        with pytest.raises(InvalidJacobianError, match="must be dense and hold numbers"):
            method.weights(matrix, **({"losses": torch.ones(2)} if method.takes_losses else {}))
