"""Where gradients are collinear, duplicated or opposite, the order of the tasks and rounding decide nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import IMTLG, ConFIG, Krum, available, make
from mtl_aggregators.bases.three_batches import ThreeBatchMethod
from mtl_core.extension import gramian_of, weighted_sum

INVARIANT = [
    name
    for name in available()
    if make(name).facts.needs != "losses"
    and "permutation" in make(name).facts.laws
    and not getattr(make(name), "takes_losses", False)
]


def families(u: Tensor, v: Tensor, x: Tensor) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {
        "two against two": [u, 3.0 * u, -2.0 * u, -0.7 * u],
        "three against one": [u, 0.3 * u, 2.0 * u, -0.9 * u],
        "two against one": [u, 0.1 * u, -0.7 * u],
        "one way": [u, u / 3.0, 7.0 * u],
        "opposite": [u, -u],
        "duplicated": [u, u, v],
        "duplicated twice": [u, v, u, v],
        "opposite beside another": [u, -u, v],
        "two pairs of opposites": [u, -0.2 * u, v, -v],
        "stationary": [u, v, -u - v],
        "dependent": [u, v, 0.3 * u + 0.2 * v, x],
    }
    return {name: torch.stack(each) for name, each in rows.items()}


def update_of(name: str, rows: Tensor) -> Tensor:
    method: Any = make(name)
    if isinstance(method, ThreeBatchMethod):
        return weighted_sum(rows, method.weigh(gramian_of(rows)))
    update: Tensor = method(rows)
    return update


@pytest.mark.parametrize("name", INVARIANT)
def test_the_order_of_the_tasks_decides_nothing(name: str) -> None:
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(3, 2 + 2 * seed, generator=generator, dtype=torch.float64)
        for family, rows in families(*vectors).items():
            if len(rows) < make(name).facts.min_tasks:
                continue
            size = float(rows.norm(dim=1).max())
            first = update_of(name, rows)
            for order in itertools.permutations(range(len(rows))):
                moved = float((update_of(name, rows[list(order)]) - first).norm())
                assert moved <= 1e-7 * size, f"{family} in the order {order}: {moved / size:.1e}"


def test_config_on_as_many_one_way_as_the_other() -> None:
    for seed in range(20):
        u = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for order in itertools.permutations((1.0, 3.0, -2.0, -0.7)):
            assert ConFIG()(torch.stack([factor * u for factor in order])).tolist() == [0.0] * 5


def test_config_on_more_one_way_than_the_other() -> None:
    u = torch.tensor([0.6, 0.8], dtype=torch.float64)
    # e = u: the projections 1 + 0.3 + 2 − 0.9 add up to the length.
    rows = torch.stack([u, 0.3 * u, 2.0 * u, -0.9 * u])
    assert ConFIG()(rows).tolist() == pytest.approx((2.4 * u).tolist())


def test_imtlg_has_no_normalisation_where_the_coefficients_cancel() -> None:
    cases = 0
    for seed in range(60):
        unit = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        unit /= unit.norm(dim=1, keepdim=True)
        shares = torch.linalg.solve(unit @ unit.T, torch.ones(3, dtype=torch.float64))
        negative = (shares < 0.0).nonzero().flatten().tolist()
        if len(negative) != 1:
            continue
        # A length of the one with a negative share that makes the weights add up to 0.
        (place,) = negative
        norms = torch.ones(3, dtype=torch.float64)
        norms[place] = -shares[place] / (shares.sum() - shares[place])
        rows = unit * norms.unsqueeze(1)
        for order in itertools.permutations(range(3)):
            assert IMTLG()(rows[list(order)]).tolist() == [0.0] * 5
        cases += 1
    assert cases > 5


@pytest.mark.parametrize("n_tasks", [3, 4, 5, 6])
def test_krum_takes_the_first_of_a_tie(n_tasks: int) -> None:
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        corners = torch.linalg.qr(torch.randn(9, n_tasks, generator=generator, dtype=torch.float64))[0].T * 1.7
        # All are equally far from each other.
        rows = corners + torch.randn(9, generator=generator, dtype=torch.float64)
        for selected in (1, 2):
            chosen = Krum(n_selected=selected).weights(gramian_of(rows)).nonzero().flatten().tolist()
            assert chosen == list(range(selected))
