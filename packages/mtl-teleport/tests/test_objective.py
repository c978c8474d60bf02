from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_core import InvalidParameterError, Problem
from mtl_teleport import Dense
from mtl_teleport.adapters import AdapterSession
from mtl_teleport.drift import drift_scale, references, relative_drift
from mtl_teleport.objective import Objective, balance_weights, conflict
from mtl_teleport.sharpness import ExactSharpness, Point

norms = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))


class TestBalanceWeights:
    def test_softmax_by_hand(self) -> None:
        # Ratios of the sum to each: 3/1 and 3/2.
        a, b = math.exp(3.0), math.exp(1.5)
        expected = torch.tensor([2 * a / (a + b), 2 * b / (a + b)], dtype=torch.float64)
        torch.testing.assert_close(balance_weights(torch.tensor([1.0, 2.0])), expected)

    def test_released_by_hand(self) -> None:
        found = balance_weights(torch.tensor([1.0, 2.0, 1.0]), form="released")
        torch.testing.assert_close(found, torch.tensor([2.25, 1.5, 2.25], dtype=torch.float64))

    @given(values=norms)
    def test_paper_weights_sum_to_the_number_of_tasks(self, values: Tensor) -> None:
        found = balance_weights(values)
        assert torch.isfinite(found).all()
        assert float(found.sum()) == pytest.approx(len(values))

    @given(values=norms, scale=st.floats(1e-9, 1e9))
    @pytest.mark.parametrize("form", ["paper", "released"])
    def test_only_ratios_matter(self, form: str, values: Tensor, scale: float) -> None:
        one = balance_weights(values, form=form)  # type: ignore[arg-type]
        torch.testing.assert_close(balance_weights(values * scale, form=form), one, rtol=1e-6, atol=1e-9)  # type: ignore[arg-type]

    @pytest.mark.parametrize("form", ["paper", "released", "equal"])
    def test_smaller_gradients_never_weigh_less(self, form: str) -> None:
        found = balance_weights(torch.tensor([1e-8, 1e-3, 1.0]), form=form)  # type: ignore[arg-type]
        assert found[0] >= found[1] >= found[2] >= 0

    @pytest.mark.parametrize("form", ["paper", "released", "equal"])
    def test_a_task_without_a_gradient_has_no_say(self, form: str) -> None:
        whole = balance_weights(torch.tensor([1.0, 0.0, 2.0]), form=form)  # type: ignore[arg-type]
        part = balance_weights(torch.tensor([1.0, 2.0]), form=form)  # type: ignore[arg-type]
        torch.testing.assert_close(whole[[0, 2]], part)
        assert whole[1] == 0

    @pytest.mark.parametrize("form", ["paper", "released", "equal"])
    def test_a_single_gradient_keeps_its_weight(self, form: str) -> None:
        assert balance_weights(torch.tensor([0.0, 3.0]), form=form).tolist() == [0.0, 1.0]  # type: ignore[arg-type]

    def test_without_any_gradient_all_are_equal(self) -> None:
        assert balance_weights(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]

    def test_unknown_form(self) -> None:
        with pytest.raises(InvalidParameterError, match="form"):
            balance_weights(torch.ones(2), form="linear")  # type: ignore[arg-type]


class TestDrift:
    def test_by_hand(self) -> None:
        drift = relative_drift(torch.tensor([1.1, 0.02]), torch.tensor([1.0, 0.01]))
        assert float(drift) == pytest.approx((0.1 + 1.0) / 2, rel=1e-5)

    def test_a_loss_through_zero_is_measured_against_the_others(self) -> None:
        assert drift_scale(torch.tensor([0.0, 2.0])).tolist() == pytest.approx([1e-3, 2.0])

    def test_losses_of_zero_are_measured_absolutely(self) -> None:
        assert drift_scale(torch.zeros(2)).tolist() == [1.0, 1.0]

    def test_absent_tasks_are_left_out(self) -> None:
        nan = math.nan
        assert float(relative_drift(torch.tensor([2.0, nan]), torch.tensor([1.0, nan]))) == 1.0


class TestReferences:
    OWN = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]))

    def test_own_losses(self) -> None:
        assert all(a is b for a, b in zip(references(self.OWN), self.OWN, strict=True))

    def test_mean_over_the_loader(self) -> None:
        assert [r.tolist() for r in references(self.OWN, kind="loader")] == [[2.0, 4.0], [2.0, 4.0]]

    def test_unknown_kind(self) -> None:
        with pytest.raises(InvalidParameterError, match="kind"):
            references(self.OWN, kind="epoch")  # type: ignore[arg-type]


def _session() -> AdapterSession:
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0]]))

    def losses(m: nn.Module, x: Tensor) -> Tensor:
        y = m(x)[0, 0]
        return torch.stack([0.5 * y * y, y])

    return Dense().attach(Problem(model, losses, shared=model, tasks=("a", "b")))


X = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)


def test_absolute_units_are_the_papers_objective() -> None:
    session = _session()
    held = session.evaluate(X).values.detach() - torch.tensor([0.5, -1.0], dtype=torch.float64)
    objective = Objective(ExactSharpness(), ONES, drift_weight=2.0, gain_weight=0.5, units="absolute")
    # y = 7; gradient of (y²/2 + y)/2 is (y + 1)/2 · (3, 4): norm 20. L_t = (0.5 + 1)/2.
    assert float(objective(objective.point(session, X), held).total) == pytest.approx(2.0 * 0.75 - 0.5 * 20.0)


def test_relative_units_weigh_against_the_start() -> None:
    session = _session()
    held = session.evaluate(X).values.detach()
    objective = Objective(ExactSharpness(), ONES, drift_weight=3.0, gain_weight=0.1)
    assert float(objective(objective.point(session, X), held).total) == pytest.approx(-0.1)
    with torch.no_grad():
        session.trainable[0].copy_(torch.tensor([[1.0, 0.0]]))
    value = objective(objective.point(session, X), held)
    # y = 10 after 7: losses 50 and 10 after 24.5 and 7, norm 27.5 after 20.
    drift = ((50 - 24.5) / 24.5 + 3 / 7) / 2
    assert float(value.total) == pytest.approx(3.0 * drift - 0.1 * 27.5 / 20)
    assert float(value.growth) == pytest.approx(27.5 / 20)


@pytest.mark.parametrize("settings", [{"drift_weight": -1.0}, {"gain_weight": -1.0}, {"units": "percent"}])
def test_bad_settings(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(settings))):
        Objective(ExactSharpness(), ONES, **{"drift_weight": 1.0, "gain_weight": 1.0, **settings})  # type: ignore[arg-type]


class TestConflict:
    def _session(self) -> tuple[AdapterSession, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        x = torch.randn(6, 3, dtype=torch.float64)
        with torch.no_grad():
            net[2].weight[1] = net[2].weight[0]  # two opposite targets by the same head
        target = torch.tensor([3.0, -3.0, 0.1], dtype=torch.float64)
        problem = Problem(net, lambda m, b: (m(b) - target).square().mean(0), shared="0", tasks=("a", "b", "c"))
        return Dense().attach(problem), x

    def test_it_is_the_mean_of_the_negative_cosines(self) -> None:
        session, x = self._session()
        point = Point.of(session, x, torch.ones(3))
        rows = [torch.autograd.grad(v, point.tensors, retain_graph=True) for v in point.losses.values.unbind()]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        cosines = torch.cosine_similarity(jacobian, jacobian.mean(0, keepdim=True))
        assert float(cosines.min()) < 0
        expected = (-cosines).clamp(min=0).mean()
        torch.testing.assert_close(conflict(point), expected)

    def test_its_gradient_against_finite_differences(self) -> None:
        session, x = self._session()
        tensor = session.trainable[0]

        def value() -> Tensor:
            return conflict(Point.of(session, x, torch.ones(3)))

        point = Point.of(session, x, torch.ones(3))
        gradient = point.by_adapter(conflict(point))[: tensor.numel()].view(tensor.shape)
        assert bool(gradient.any())
        for i, j in ((0, 0), (1, 2), (3, 1)):
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    tensor[i, j] += sign * 1e-5
                ends.append(float(value().detach()))
                with torch.no_grad():
                    tensor[i, j] -= sign * 1e-5
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient[i, j]), rel=1e-6, abs=1e-9)

    def test_without_conflict_it_is_zero(self) -> None:
        net = nn.Linear(2, 1, bias=False).double()
        problem = Problem(net, lambda m, b: m(b).square().mean().expand(2), shared=net, tasks=("a", "b"))
        session = Dense().attach(problem)
        point = Point.of(session, torch.ones(1, 2, dtype=torch.float64), torch.ones(2))
        value = conflict(point)
        assert float(value.detach()) == 0.0
        assert not point.by_adapter(value).any()
