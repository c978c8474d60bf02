"""IMGrad: numbers by hand, settings, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    CAGrad,
    FairGrad,
    IMGrad,
    NashMTL,
    make,
    plumbline,
)
from mtl_aggregators.solvers import ball_dual, fair_residual
from mtl_core import InvalidParameterError
from mtl_core.extension import gramian_of


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AXES = rows([3.0, 0.0], [0.0, 1.0])


class TestIMGrad:
    @pytest.mark.parametrize("backend", ["host", "device"])
    @pytest.mark.parametrize("cosine", [1.0 / 3.0, -1.0 / 7.0])
    @pytest.mark.parametrize("decades", [2, 4, 5, 6, 7, 8, 9, 10, 12, 14, 24, 40, 60])
    def test_the_less_balance_the_more_the_worst_task_alone(self, decades: int, cosine: float, backend: Any) -> None:
        # The balance is that of the norms, κ = 10^-decades. The short gradient gains least from the mean, so that the
        # dual's weight lies on it alone, and the step is 0.8 ‖g_0‖ along it, for any κ.
        short, sine = 10.0**-decades, (1.0 - cosine**2) ** 0.5
        update = IMGrad(measure="dc", backend=backend)(rows([short, 0.0], [cosine, sine]))
        mean = (0.5 * (short + cosine), 0.5 * sine)
        length = (mean[0] ** 2 + mean[1] ** 2) ** 0.5
        assert update.tolist() == pytest.approx([mean[0] + 0.8 * length, mean[1]], rel=1e-9)

    @pytest.mark.parametrize("measure", ["pm", "lm", "dc"])
    def test_on_cagrad_it_solves_the_weighed_dual(self, measure: Any, random_rows: Callable[..., Any]) -> None:
        for seed in range(5):
            gramian = gramian_of(torch.from_numpy(random_rows(4, seed)))
            method = IMGrad(CAGrad(c=0.5), measure=measure)
            weights = method.weights(gramian)
            balance = method.last_balance
            assert balance is not None
            if balance > 0.0:
                step = ball_dual(gramian.numpy(), linear=1.5 - balance, norm=0.5 * balance).step
                assert weights.tolist() == pytest.approx((0.25 + 0.5 * step).tolist())

    @pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
    def test_on_fair_methods_it_solves_the_weighed_equation(
        self, alpha: float, random_rows: Callable[..., Any]
    ) -> None:
        gramian = gramian_of(torch.from_numpy(random_rows(4, 0)))
        method = IMGrad(FairGrad(alpha=alpha))
        weights = method.weights(gramian).numpy()
        assert method.last_balance is not None
        left = (1.0 - method.last_balance) * gramian.numpy() @ weights
        assert left == pytest.approx(method.last_balance * weights ** (-1.0 / alpha), rel=1e-8)
        nash = IMGrad("nashmtl").weights(gramian)
        assert nash.tolist() == pytest.approx(IMGrad("fairgrad").weights(gramian).tolist())
        assert fair_residual(gramian.numpy(), NashMTL().weights(gramian).numpy(), 1.0) < 1e-9

    def test_measures(self) -> None:
        gramian = gramian_of(AXES)
        found = {}
        for measure in ("pm", "lm", "dc"):
            method = IMGrad(measure=measure)
            method.weights(gramian)
            found[measure] = method.last_balance
        assert found["pm"] == pytest.approx(float(plumbline(AXES)))
        assert found["lm"] == pytest.approx(0.5 / 2.5**0.5)
        assert found["dc"] == pytest.approx(1.0 / 3.0)
        against = IMGrad(measure="lm")
        against.weights(gramian_of(rows([3.0, 0.0], [-1.0, 0.1])))
        assert against.last_balance == 0.0

    def test_stationary_points_are_finite(self) -> None:
        for base in ("cagrad", "nashmtl", "fairgrad"):
            for gramian in (rows([1.0, -1.0], [-1.0, 1.0]), rows([4.0, -2.0], [-2.0, 1.0]), torch.zeros(2, 2)):
                assert bool(torch.isfinite(IMGrad(base).weights(gramian)).all())

    def test_released(self) -> None:
        ours = IMGrad(CAGrad(c=0.8, paper_scale=True))(AXES)
        assert ours.tolist() == pytest.approx((IMGrad()(AXES) * 2 / 1.64).tolist())

    def test_reuse(self) -> None:
        method = IMGrad(update_every=2)
        first = method.weights(torch.eye(2))
        assert torch.equal(method.weights(torch.diag(torch.tensor([9.0, 1.0]))), first)
        assert not torch.equal(method.weights(torch.diag(torch.tensor([9.0, 1.0]))), first)
        assert method.update_every == 2


@pytest.mark.parametrize(
    ("method", "jacobian", "update"),
    [
        # κ = 0.6 and ‖g_0‖ = √2.5: all weight goes to the second task.
        (IMGrad(), AXES, [1.5, 0.5 + 0.8 * 2.5**0.5]),
        (IMGrad("nashmtl"), AXES, [1.5**0.5, 1.5**0.5]),
        (IMGrad("fairgrad"), AXES, [1.5**0.5, 1.5**0.5]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_worked_examples(method: Any, jacobian: Tensor, update: list[float]) -> None:
    assert method(jacobian).tolist() == pytest.approx(update, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("imgrad", {"measure": "xy"}),
        ("imgrad", {"base": "mgda"}),
        ("imgrad", {"update_every": 0}),
    ],
)
def test_bad_hyper_parameters(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{next(iter(parameters))}` must"):
        make(name, **parameters)
