from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidParameterError, Problem
from mtl_teleport import Dense, LoRA
from mtl_teleport.adapters import Adapter, AdapterSession
from mtl_teleport.conditions import Conditions
from mtl_teleport.sharpness import AscentSharpness, ExactSharpness, Point, RandomSharpness, Sharpness
from mtl_teleport.sharpness.exact import HalfSquare

R = torch.tensor([0.5, 1.5], dtype=torch.float64)


def _session(adapter: Adapter) -> tuple[AdapterSession, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    problem = Problem(net, lambda m, b: (m(b) - b[:, :2]).square().mean(0), shared=net[0], tasks=("a", "b"))
    session = adapter.attach(problem, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in session.trainable:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return session, x


def _at(session: AdapterSession, x: Tensor, balance: Tensor = R, *, seed: int = 1) -> Point:
    return Point.of(session, x, balance, generator=torch.Generator().manual_seed(seed))


def _gain(sharpness: Sharpness, session: AdapterSession, x: Tensor, balance: Tensor = R, *, seed: int = 1) -> float:
    return float(sharpness.estimate(_at(session, x, balance, seed=seed)).gain)


def _upward(sharpness: Sharpness, session: AdapterSession, x: Tensor, balance: Tensor = R) -> Tensor:
    """The derivative of the estimate alone."""
    point = _at(session, x, balance)
    nothing = torch.zeros(len(point.losses.index), dtype=torch.float64)
    return sharpness.estimate(point).gradient(nothing, torch.ones((), dtype=torch.float64))


def _parts(session: AdapterSession, vector: Tensor) -> list[Tensor]:
    return [
        p.view(t.shape)
        for p, t in zip(vector.split([t.numel() for t in session.trainable]), session.trainable, strict=True)
    ]


def _numerical_gradient(value: Callable[[], float], tensor: Tensor, step: float) -> Tensor:
    found = torch.zeros_like(tensor)
    with torch.no_grad():
        for index in range(tensor.numel()):
            entry = tensor.view(-1)[index]
            old = float(entry)
            tensor.view(-1)[index] = old + step
            up = value()
            tensor.view(-1)[index] = old - step
            down = value()
            tensor.view(-1)[index] = old
            found.view(-1)[index] = (up - down) / (2 * step)
    return found


@pytest.mark.parametrize("adapter", [Dense(), LoRA(rank=2)])
@pytest.mark.parametrize(
    "sharpness", [RandomSharpness(3, 1e-2), RandomSharpness(3, 1e-2, norm="tensor"), ExactSharpness()]
)
def test_the_gradient_goes_through_the_perturbation(adapter: Adapter, sharpness: Sharpness) -> None:
    """Against central differences. Without the perturbed graph this fails by orders of magnitude."""
    session, x = _session(adapter)

    def value() -> float:
        with torch.enable_grad():
            return _gain(sharpness, session, x)

    gradients = _parts(session, _upward(sharpness, session, x))
    for tensor, gradient in zip(session.trainable, gradients, strict=True):
        torch.testing.assert_close(gradient, _numerical_gradient(value, tensor, 1e-5), rtol=1e-5, atol=1e-8)
    assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("adapter", [Dense(), LoRA(rank=2)])
def test_the_gradient_of_ascent_with_its_direction_held(adapter: Adapter) -> None:
    """The direction is a constant of the estimate, so it is held in the differences too."""
    session, x = _session(adapter)
    radius = 1e-2
    point = session.parameters()
    loss = (R * session.evaluate(x, parameters=point).values).mean()
    direction = session.differentiate(loss, list(point.values()), at=point)
    length = torch.cat([g.flatten() for g in direction]).norm()

    def value() -> float:
        at = session.parameters()
        moved = {n: t + radius * g / length for (n, t), g in zip(at.items(), direction, strict=True)}
        base = (R * session.evaluate(x, parameters=at).values).mean()
        return float(((R * session.evaluate(x, parameters=moved).values).mean() - base).detach()) / radius

    gradients = _parts(session, _upward(AscentSharpness(radius), session, x))
    for tensor, gradient in zip(session.trainable, gradients, strict=True):
        torch.testing.assert_close(gradient, _numerical_gradient(value, tensor, 1e-5), rtol=1e-5, atol=1e-8)


def _quadratic() -> tuple[AdapterSession, Tensor]:
    """L_1 = |x|²/2 and L_2 = x_1 at x = (3, 4)."""
    model = nn.Module()
    model.x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

    def losses(m: nn.Module, _: object) -> Tensor:
        x = m.x
        assert isinstance(x, Tensor)
        return torch.stack([0.5 * x.square().sum(), x[0]])

    return Dense().attach(Problem(model, losses, shared=model, tasks=("a", "b"))), torch.zeros(1)


def test_values_by_hand() -> None:
    session, x = _quadratic()
    only_first = torch.tensor([2.0, 0.0], dtype=torch.float64)
    # L_R = |x|²/2: its gradient has norm 5, and one step of ascent of length δ gains 5δ + δ²/2.
    assert _gain(ExactSharpness(), session, x, only_first) == pytest.approx(5.0)
    assert _gain(AscentSharpness(0.1), session, x, only_first) == pytest.approx(5.05)
    assert 4.9 < _gain(RandomSharpness(200, 0.1), session, x, only_first, seed=0) <= 5.05


def test_a_single_random_probe_is_an_absolute_value() -> None:
    session, x = _quadratic()
    for seed in range(8):
        assert _gain(RandomSharpness(1, 0.1), session, x, seed=seed) >= 0


def test_probes_of_unit_length_per_tensor_or_as_a_whole() -> None:
    class Lines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q = nn.Parameter(torch.zeros(1).double()), nn.Parameter(torch.zeros(1).double())

    model = Lines()
    problem = Problem(model, lambda m, _: torch.stack([m.p[0].square() + m.q[0].square()]), shared=model, tasks=("a",))
    session = Dense().attach(problem)
    one, x = torch.ones(1), torch.zeros(1)
    # |ε|² = δ² as a whole, 2δ² if each of the two tensors has length δ.
    assert _gain(RandomSharpness(1, 0.1), session, x, one) == pytest.approx(0.1)
    assert _gain(RandomSharpness(1, 0.1, norm="tensor"), session, x, one) == pytest.approx(0.2)


@pytest.mark.parametrize("sharpness", [AscentSharpness(), ExactSharpness()])
def test_a_stationary_point_has_no_sharpness_and_a_finite_gradient(sharpness: Sharpness) -> None:
    session, x = _quadratic()
    with torch.no_grad():
        session.trainable[0].copy_(torch.tensor([-3.0, -4.0]))
    only_first = torch.tensor([2.0, 0.0], dtype=torch.float64)
    assert _gain(sharpness, session, x, only_first) == 0.0
    assert torch.isfinite(_upward(sharpness, session, x, only_first)).all()


def test_an_absent_task_is_left_out() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    problem = Problem(model, lambda m, x: {"b": m(x).sum()}, shared=model, tasks=("a", "b"))
    session = Dense().attach(problem)
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert _at(session, x).losses.tasks == ("b",)
    assert _gain(ExactSharpness(), session, x) == pytest.approx(1.5 * 5.0)


def test_the_number_of_passes() -> None:
    session, x = _quadratic()
    _upward(AscentSharpness(), session, x)
    assert (session.forwards, session.backwards) == (2, 3)
    _upward(ExactSharpness(), session, x)
    assert (session.forwards, session.backwards) == (3, 5)
    _upward(RandomSharpness(5), session, x)
    assert (session.forwards, session.backwards) == (10, 7)


@pytest.mark.parametrize(
    "make", [lambda: RandomSharpness(0), lambda: RandomSharpness(radius=0.0), lambda: AscentSharpness(-1.0)]
)
def test_bad_settings(make: Callable[[], Sharpness]) -> None:
    with pytest.raises(InvalidParameterError, match=r"`(probes|radius)`"):
        make()


def test_unknown_norm() -> None:
    with pytest.raises(InvalidParameterError, match="norm"):
        RandomSharpness(norm="layer")  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", [Dense(), LoRA(rank=2), Dense(targets="0.bias")])
@pytest.mark.parametrize("sharpness", [RandomSharpness(3, 1e-2), AscentSharpness(1e-2), ExactSharpness()])
@pytest.mark.parametrize("complete", [True, False])
def test_slopes_are_the_derivatives_of_the_gain(adapter: Adapter, sharpness: Sharpness, complete: bool) -> None:
    """The cheaper ways of a projected search against differentiation of what they stand for."""
    session, x = _session(adapter)
    if not complete:
        whole = session.problem
        session.problem = Problem(
            whole.model, lambda m, b: {"b": whole._loss_fn(m, b)[1]}, shared="0", tasks=("a", "b")
        )
    gain, upward = _gain(sharpness, session, x), _upward(sharpness, session, x)
    losses = _at(session, x).losses
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(value, session.trainable, retain_graph=True)])
            for value in losses.values.unbind()
        ]
    )
    slopes = sharpness.slopes(_at(session, x))
    assert float(slopes.gain) == pytest.approx(gain, rel=1e-12)
    found = slopes.directions()
    torch.testing.assert_close(found[0], upward, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], rows)


@pytest.mark.parametrize("adapter", [Dense(), LoRA(rank=2)])
@pytest.mark.parametrize("sharpness", [RandomSharpness(3, 1e-2), AscentSharpness(1e-2), ExactSharpness()])
def test_one_gradient_of_losses_and_sharpness_together(adapter: Adapter, sharpness: Sharpness) -> None:
    session, x = _session(adapter)
    upward, rows = sharpness.slopes(_at(session, x)).directions()
    by_loss, by_gain = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor(-0.7, dtype=torch.float64)
    found = sharpness.estimate(_at(session, x)).gradient(by_loss, by_gain)
    torch.testing.assert_close(found, by_loss @ rows + by_gain * upward, rtol=1e-9, atol=1e-9)


def test_a_step_of_ascent_takes_one_pass_per_task_and_one_more() -> None:
    session, x = _session(LoRA(rank=2))
    slopes = AscentSharpness().slopes(_at(session, x))
    assert slopes.directions()[1].shape[0] == 2
    assert (session.forwards, session.backwards) == (2, 3)


@pytest.mark.parametrize("sharpness", [RandomSharpness(3, 1e-2), AscentSharpness(1e-2), ExactSharpness()])
@pytest.mark.parametrize("complete", [True, False])
def test_the_gramian_falls_out_where_there_is_room(sharpness: Sharpness, complete: bool) -> None:
    """Of the gradients by the whole point; without room for them all, the slopes are the same and it is missing."""
    session, x = _session(LoRA(rank=2))
    if not complete:
        whole = session.problem
        session.problem = Problem(
            whole.model, lambda m, b: {"b": whole._loss_fn(m, b)[1]}, shared="0", tasks=("a", "b")
        )
    point = session.parameters()
    losses = session.evaluate(x, parameters=point)
    jacobian = torch.zeros(2, sum(t.numel() for t in point.values()), dtype=torch.float64)
    gradients = session.each_task_gradient(losses, list(point.values()), at=point)
    for task, row in zip(losses.index, gradients, strict=True):
        jacobian[task] = torch.cat([g.flatten() for g in row])
    found = []
    for room in (True, False):
        session.conditions = Conditions(holds_all_gradients=room)
        slopes = sharpness.slopes(_at(session, x))
        found.append((slopes.gramian, slopes.gain, *slopes.directions()))
    assert found[0][0] is not None
    torch.testing.assert_close(found[0][0], jacobian @ jacobian.T)
    assert found[1][0] is None
    for first, second in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("n_tasks", [2, 5])
def test_parameters_that_share_a_gradient(n_tasks: int) -> None:
    """Autograd gives both terms of a sum one and the same tensor; nothing may be written into it."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
            self.b = nn.Parameter(torch.tensor([[0.5, -1.0]], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.a + self.b).T

    model = Sum()
    problem = Problem(
        model,
        lambda m, x: torch.stack([(m(x) - k).square().mean() for k in range(n_tasks)]),
        shared=model,
        tasks=tuple(f"{k}" for k in range(n_tasks)),
    )
    x = torch.tensor([[1.0, -1.0], [2.0, 0.5]], dtype=torch.float64)
    balance = torch.ones(n_tasks, dtype=torch.float64)
    session = Dense().attach(problem)
    for sharpness in (AscentSharpness(1e-3), RandomSharpness(2, 1e-3)):
        for room in (True, False):
            session.conditions = Conditions(holds_all_gradients=room)
            upward = _upward(sharpness, session, x, balance)
            slopes = sharpness.slopes(_at(session, x, balance))
            torch.testing.assert_close(slopes.directions()[0], upward, rtol=1e-8, atol=1e-8)


def test_the_radius_of_each_estimate() -> None:
    """The paper's for random perturbations; that of sharpness-aware minimisation for a step of ascent."""
    assert RandomSharpness().radius == 1e-4
    assert AscentSharpness().radius == 0.05


def test_a_scaled_search_sees_the_same() -> None:
    session, x = _session(LoRA(rank=2))
    expected = ExactSharpness().slopes(_at(session, x)).directions()
    session.conditions = Conditions(loss_scale=1024.0)
    for found, one in zip(ExactSharpness().slopes(_at(session, x)).directions(), expected, strict=True):
        torch.testing.assert_close(found, one)


def test_gradients_go_one_by_one_in_the_second_differentiation() -> None:
    x = torch.randn(5, requires_grad=True)
    doubled = x * 2.0
    first, second = doubled.sin(), doubled.cos()  # the last operation is differentiated first
    expected = (2.0 * (first * doubled.cos() - second * doubled.sin())).detach()
    last = weakref.ref(second.untyped_storage())
    square = HalfSquare.apply(torch.ones(()), False, 1.0, first, second)  # type: ignore[no-untyped-call]
    gone: list[bool] = []
    first.register_hook(lambda gradient: gone.append(last() is None))
    del second
    assert last() is not None
    (found,) = torch.autograd.grad(square, x)
    assert gone == [True]
    torch.testing.assert_close(found, expected)
