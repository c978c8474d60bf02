from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtl_core import (
    DuplicateModuleError,
    InvalidInputError,
    NoLossesError,
    NoMatchError,
    NonScalarLossError,
    NoSharedParametersError,
    Problem,
)
from mtl_core.testing import TwoLayers, small_problem


def two(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([y.mean() for y in model(x)[1]])


def test_shared_by_module_parameters_or_pattern_are_the_same() -> None:
    model = TwoLayers()
    forms = [
        model.trunk,
        list(model.trunk.parameters()),
        [model.trunk[0], model.trunk[2]],
        "trunk",
        "trunk.*",
        ["trunk.0", "trunk.2.*"],
    ]
    for form in forms:
        problem = Problem(model, two, shared=form, tasks=("a", "b"))  # type: ignore[arg-type]
        assert problem.shared_names == ("trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias")
        assert [id(p) for p in problem.shared] == [id(p) for p in model.trunk.parameters()]
        assert [id(p) for p in problem.heads] == [id(p) for p in model.heads.parameters()]


def test_freezing_is_seen_at_once() -> None:
    problem, _ = small_problem()
    problem.model.trunk[0].weight.requires_grad_(False)
    problem.model.heads[0].bias.requires_grad_(False)
    assert problem.shared_names == ("trunk.0.bias", "trunk.2.weight", "trunk.2.bias")
    assert len(problem.heads) == 3


def test_missing_tasks() -> None:
    model = TwoLayers(3)

    def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
        outputs = model(x)[1]
        return {"c": outputs[2].mean(), "a": outputs[0].mean(), "b": None}

    found = Problem(model, losses, shared="trunk", tasks=("a", "b", "c")).losses(torch.ones(2, 3, dtype=torch.float64))
    assert found.tasks == ("a", "c")
    assert found.index == (0, 2)
    assert not found.is_complete
    first, second = found.values.tolist()
    assert found.full(-1.0).tolist() == [first, -1.0, second]


def test_replaced_parameters_change_the_losses_and_not_the_model() -> None:
    problem, batch = small_problem()
    before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    moved = {name: (p.detach() + 0.1).requires_grad_() for name, p in problem.named_shared.items()}
    found = problem.losses(batch, parameters=moved).values
    (gradient,) = torch.autograd.grad(found.sum(), [moved["trunk.0.weight"]])
    assert float(gradient.abs().sum()) > 0
    for name, p in problem.model.named_parameters():
        assert torch.equal(p, before[name])
    with torch.no_grad():
        for p in problem.shared:
            p.add_(0.1)
    torch.testing.assert_close(problem.losses(batch).values, found, rtol=1e-12, atol=0)


def test_tied_parameters_are_replaced_together() -> None:
    model = TwoLayers()
    model.trunk[2].bias = model.trunk[0].bias
    problem = Problem(model, two, shared="trunk", tasks=("a", "b"))
    assert problem.shared_names == ("trunk.0.weight", "trunk.0.bias", "trunk.2.weight")
    x = torch.randn(2, 3, dtype=torch.float64)
    moved = {"trunk.0.bias": torch.ones(4, dtype=torch.float64)}
    found = problem.losses(x, parameters=moved).values
    with torch.no_grad():
        model.trunk[0].bias.fill_(1.0)
    torch.testing.assert_close(found, problem.losses(x).values)


class TestBadInput:
    def test_submodule_registered_twice(self) -> None:
        model = TwoLayers()
        model.again = model.trunk
        problem = Problem(model, two, shared="trunk", tasks=("a", "b"))
        batch = torch.ones(2, 3, dtype=torch.float64)
        problem.losses(batch)  # plain evaluation is fine
        with pytest.raises(DuplicateModuleError, match="'trunk' and 'again'"):
            problem.losses(batch, parameters={})

    def test_pattern_without_match(self) -> None:
        with pytest.raises(NoMatchError, match=r"pattern 'encoder' must match.*trunk\.0\.weight"):
            Problem(TwoLayers(), two, shared="encoder", tasks=("a", "b"))

    def test_empty_shared(self) -> None:
        with pytest.raises(NoSharedParametersError, match="at least one parameter, got none"):
            Problem(TwoLayers(), two, shared=[], tasks=("a", "b"))

    def test_frozen_shared(self) -> None:
        model = TwoLayers()
        model.trunk.requires_grad_(False)
        with pytest.raises(NoSharedParametersError, match=r"4 parameter.*all frozen"):
            Problem(model, two, shared="trunk", tasks=("a", "b"))

    def test_foreign_shared(self) -> None:
        with pytest.raises(InvalidInputError, match="4 that are not among its 8"):
            Problem(TwoLayers(), two, shared=TwoLayers().trunk, tasks=("a", "b"))
        with pytest.raises(InvalidInputError, match="an item of type int"):
            Problem(TwoLayers(), two, shared=[3], tasks=("a", "b"))  # type: ignore[list-item]

    def test_tasks(self) -> None:
        with pytest.raises(NoLossesError, match="at least one task"):
            Problem(TwoLayers(), two, shared="trunk", tasks=())
        with pytest.raises(InvalidInputError, match="distinct"):
            Problem(TwoLayers(), two, shared="trunk", tasks=("a", "a"))
        with pytest.raises(InvalidInputError, match="single string 'ab'"):
            Problem(TwoLayers(), two, shared="trunk", tasks="ab")

    def test_data_parallel_wrapper(self) -> None:
        model = nn.DataParallel(TwoLayers())
        with pytest.raises(InvalidInputError, match=r"bare module, got DataParallel.*model\.module"):
            Problem(model, two, shared=model, tasks=("a", "b"))

    @pytest.mark.parametrize(
        ("returned", "error", "message"),
        [
            (torch.ones(()), NonScalarLossError, r"shape \(2,\), got shape \(\)"),
            (torch.ones(2, 2), NonScalarLossError, r"got shape \(2, 2\)"),
            (torch.ones(0), NoLossesError, "empty tensor"),
            (torch.ones(3), InvalidInputError, "must return 2 losses.*got 3"),
            ({}, NoLossesError, "at least one of"),
            ({"a": torch.ones(2)}, NonScalarLossError, r"task 'a' must be a scalar tensor, got shape \(2,\)"),
            ({"a": 1.0}, NonScalarLossError, r"task 'a' must be a scalar tensor, got float.*\.item\(\)"),
            ({"a": torch.ones(()), "z": torch.ones(())}, InvalidInputError, r"got also \['z'\]"),
            ((torch.ones(()), torch.ones(())), InvalidInputError, "Stack the scalars"),
            ([torch.ones(())], InvalidInputError, r"got list\. Stack the scalars with torch\.stack"),
        ],
    )
    def test_what_losses_return(self, returned: object, error: type[Exception], message: str) -> None:
        problem = Problem(TwoLayers(), lambda model, x: returned, shared="trunk", tasks=("a", "b"))
        with pytest.raises(error, match=message):
            problem.losses(None)

    def test_model_that_is_no_module(self) -> None:
        with pytest.raises(InvalidInputError, match=r"torch\.nn\.Module, got int"):
            Problem(3, two, shared="trunk", tasks=("a", "b"))  # type: ignore[arg-type]
