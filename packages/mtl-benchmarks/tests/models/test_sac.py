"""The networks for MT10."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mtl_benchmarks.models import ClonedPolicy, GaussianActor, TwinCritic
from mtl_benchmarks.models.declaration import check_declaration, count
from mtl_benchmarks.worlds import MT10_TASKS
from mtl_core import InvalidInputError, InvalidParameterError, collect_per_task


@pytest.mark.parametrize(("size", "actor", "critics"), [(39, 340_008, 677_602), (12, 329_208, 656_002)])
def test_counts(size: int, actor: int, critics: int) -> None:
    for model, total in ((GaussianActor(size, 4), actor), (TwinCritic(size, 4), critics)):
        check_declaration(model)
        assert model.tasks == MT10_TASKS
        assert count(model.parameters()) == count(model.shared_parameters()) == total


def test_initialisation() -> None:
    torch.manual_seed(0)
    for model in (GaussianActor(), TwinCritic(), ClonedPolicy()):
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                bound = math.sqrt(6 / (layer.in_features + layer.out_features))
                assert not layer.bias.detach().any()
                assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound


def test_log_densities_are_those_of_the_squashed_normal() -> None:
    torch.manual_seed(0)
    actor = GaussianActor(3, 2, hidden=(8,)).double()
    observations, noise = torch.randn(5, 3).double(), 0.3 * torch.randn(5, 2).double()
    action, found = actor.sample(observations, noise)
    mean, log_std = actor(observations)
    transforms = [torch.distributions.TanhTransform(cache_size=1)]
    expected = torch.distributions.TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), transforms)
    torch.testing.assert_close(action, (mean + log_std.exp() * noise).tanh())
    # The released code adds 1e-6 inside the logarithm; these actions are inside (−1, 1) by more than that.
    torch.testing.assert_close(found, expected.log_prob(action).sum(-1), rtol=0, atol=1e-3)
    torch.testing.assert_close(actor.act("reach", observations), mean.tanh())


def test_deviations_stay_within_their_bounds() -> None:
    actor = GaussianActor(3, 2, hidden=(8,), log_std_bounds=(-5.0, 1.0))
    assert torch.equal(actor(torch.zeros(1, 3))[1], torch.full((1, 2), -2.0))  # the middle, where the layer gives 0
    with torch.no_grad():
        actor.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 99.0, -99.0]))
    assert actor(torch.zeros(1, 3))[1].tolist() == [[1.0, -5.0]]
    with pytest.raises(InvalidParameterError, match="`log_std_bounds`"):
        GaussianActor(log_std_bounds=(2.0, -20.0))


def test_a_saturated_action_has_a_finite_density_and_gradient() -> None:
    actor = GaussianActor(3, 2, hidden=(8,))
    with torch.no_grad():
        actor.layers[-1].bias.fill_(50.0)
    action, density = actor.sample(torch.zeros(1, 3), torch.zeros(1, 2))
    assert action.tolist() == [[1.0, 1.0]]
    density.sum().backward()
    assert math.isfinite(density.item())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in actor.parameters())


def test_critics_are_two() -> None:
    torch.manual_seed(0)
    critic = TwinCritic(3, 2, hidden=(8,))
    first, second = critic(torch.randn(4, 3), torch.randn(4, 2))
    assert first.shape == second.shape == (4,)
    assert not torch.allclose(first, second)
    (gradient,) = torch.autograd.grad(first.sum(), [next(critic.second.parameters())], allow_unused=True)
    assert gradient is None


def test_gradients_per_task_by_vmap_equal_those_one_by_one() -> None:
    torch.manual_seed(0)
    critic = TwinCritic(3, 2, hidden=(8,))
    batches = [(torch.randn(6, 3), torch.randn(6, 2), torch.randn(6)) for _ in range(4)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        first, second = model(batch[0], batch[1])
        return (first - batch[2]).square().mean() + (second - batch[2]).square().mean()

    matrix = collect_per_task(critic, loss, batches).matrix
    for row, batch in zip(matrix, batches, strict=True):
        alone = torch.autograd.grad(loss(critic, batch), list(critic.parameters()))
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in alone]))


def test_a_policy_with_one_head_per_task_and_with_one() -> None:
    torch.manual_seed(0)
    x = {"reach": torch.randn(3, 39), "push": torch.randn(2, 39)}
    many = ClonedPolicy(heads="per_task")
    assert count(many.task_parameters("reach")) == 400 * 4 + 4
    outputs = many(x)
    torch.testing.assert_close(outputs["push"], many.heads["push"](many.trunk(x["push"])))
    torch.testing.assert_close(many.act("reach", x["reach"]), outputs["reach"].clamp(-1, 1))
    one = ClonedPolicy(heads="one")
    assert all(not one.task_parameters(task) for task in one.tasks)
    same = torch.randn(3, 39)
    outputs = one({"reach": same, "push": same})
    assert torch.equal(outputs["reach"], outputs["push"])
    assert count(many.parameters()) - count(one.parameters()) == 9 * (400 * 4 + 4)


def test_a_policy_without_layers_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="`hidden`"):
        ClonedPolicy(hidden=())
