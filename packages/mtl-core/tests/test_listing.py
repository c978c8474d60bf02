"""One walk through a model finds what torch's own walks find; and every step makes it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, Problem, step
from mtl_core.collecting.heads import HeadGradients, finite_flag
from mtl_core.listing import Listing, Walk, modules_of
from mtl_core.testing import small_problem


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.empty: nn.Module | None = None
        self.register_module("none", None)
        self.register_parameter("nothing", None)
        self.inner = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
        self.again = self.inner["b"]
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.first.weight


class OwnNames(nn.Sequential):
    def named_parameters(self, *arguments: Any, **settings: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in super().named_parameters(*arguments, **settings):
            yield f"own.{name}", parameter


class OwnModules(nn.Sequential):
    def named_modules(self, *arguments: Any, **settings: Any) -> Iterator[tuple[str, nn.Module]]:
        yield from list(super().named_modules(*arguments, **settings))[:1]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "own names": lambda: OwnNames(nn.Linear(2, 2)),
    "own modules within": lambda: nn.Sequential(nn.Linear(2, 2), OwnModules(nn.Linear(2, 2), nn.ReLU()), nn.ReLU()),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_one_walk_finds_what_torch_finds(make: Callable[[], nn.Module]) -> None:
    model = make()
    next(model.parameters()).requires_grad_(False)
    listing = Listing(Walk(model), {})
    assert [(n, id(m)) for n, m in modules_of(model)] == [(n, id(m)) for n, m in model.named_modules()]
    expected = [(n, id(p)) for n, p in model.named_parameters() if p.requires_grad]
    assert [(n, id(p)) for n, p in listing.named_trainable.items()] == expected


class DistributedDataParallel(nn.Sequential):
    """Named as the wrapper that is refused."""


def test_a_model_that_is_wrapped_after_a_step_is_refused_in_the_next() -> None:
    problem, batch = small_problem(2)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))
    problem.model.add_module("late", DistributedDataParallel(nn.Linear(1, 1)))
    with pytest.raises(InvalidInputError, match="late"):
        step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))


def test_what_is_frozen_or_added_between_steps_is_seen() -> None:
    trunk, head = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleDict({"trunk": trunk, "head": head})

    def losses(model: Any, x: Tensor) -> Tensor:
        z = model["head"](model["trunk"](x))
        return (model["late"](z) if "late" in model else z).square().mean(0)

    problem = Problem(model, losses, shared=trunk, tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(3, 2)
    assert step(problem, x, optimizer, lambda jacobian: jacobian.sum(0)).skipped == ()
    trunk.bias.requires_grad_(False)
    model["late"] = nn.Linear(2, 2)
    optimizer.add_param_group({"params": list(model["late"].parameters())})
    frozen, late = trunk.bias.clone(), model["late"].weight.clone()
    assert step(problem, x, optimizer, lambda jacobian: jacobian.sum(0)).skipped == ("trunk.bias",)
    assert torch.equal(trunk.bias, frozen)
    assert not torch.equal(model["late"].weight, late)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [3, 5000])
@pytest.mark.parametrize("where", [0, 4])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float64, torch.bfloat16)])
def test_one_entry_that_is_not_finite_shows(bad: float, size: int, where: int, dtypes: tuple[torch.dtype, ...]) -> None:
    gradients = [torch.ones(size if k == where else 4, dtype=dtypes[k % len(dtypes)]) for k in range(6)]
    assert float(finite_flag(gradients)) == 0.0
    gradients[where][-1] = bad
    assert not torch.isfinite(finite_flag(gradients))


def test_half_precision_that_sums_to_more_than_it_holds_is_finite() -> None:
    gradients = [torch.full((4000,), 60000.0, dtype=torch.float16) for _ in range(5)]
    assert float(finite_flag(gradients)) == 0.0


@pytest.mark.parametrize("present", [(0, 1, 2), (0, 2, 4)])
@pytest.mark.parametrize("even", [True, False])
def test_flags_name_the_task(present: tuple[int, ...], even: bool) -> None:
    parameters = [torch.zeros(2), torch.zeros(3)]
    rows = [(torch.ones(2), torch.ones(3)), (torch.ones(2), torch.ones(3) if even else None), (None, None)]
    if even:
        rows[2] = (torch.ones(2), torch.ones(3))
    rows[1] = (torch.tensor([1.0, float("nan")]), rows[1][1])
    heads = HeadGradients(parameters, rows, present, 5)
    assert [not bool(flag) for flag in torch.isfinite(heads.flags())] == [task == present[1] for task in range(5)]
