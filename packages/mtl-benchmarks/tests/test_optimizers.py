import json
from typing import Any

import pytest
import torch
from torch import nn, optim

from mtl_benchmarks.components.signatures import arguments_of
from mtl_benchmarks.protocol.optimizers import OptimizerChoice, optimizer_names
from mtl_core import InvalidParameterError, NoMatchError, Problem, UnknownNameError


def problem() -> Problem:
    model = nn.ModuleDict({"trunk": nn.Linear(3, 2), "a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    return Problem(model, lambda m, x: m["a"](m["trunk"](x)).sum(), shared=model["trunk"], tasks=("a",))


def names_of(found: optim.Optimizer, of: Problem) -> list[list[str]]:
    names = {id(p): name for name, p in of.model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in found.param_groups]


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimiser_by_its_name(name: str) -> None:
    choice = OptimizerChoice(name, {"lr": 0.5}).resolved()
    assert OptimizerChoice.from_dict(choice.as_dict()) == choice
    if name == "muon":  # takes matrices only
        return
    of = problem()
    found = choice.build(of)
    assert type(found).__name__.lower() == name
    assert found.param_groups[0]["lr"] == 0.5
    assert names_of(found, of) == [["trunk.weight", "trunk.bias", "a.weight", "a.bias", "b.weight", "b.bias"]]


def test_groups_take_what_matches_first() -> None:
    of = problem()
    choice = OptimizerChoice("sgd", {"lr": 0.5}, {"a": {"lr": 0.1}, "*.bias": {"weight_decay": 0.0}})
    found = choice.build(of)
    assert names_of(found, of) == [
        ["trunk.weight", "b.weight"],
        ["a.weight", "a.bias"],
        ["trunk.bias", "b.bias"],
    ]
    assert [group["lr"] for group in found.param_groups] == [0.5, 0.1, 0.5]
    assert OptimizerChoice("sgd", {}, {"*": {"lr": 0.1}}).build(of).param_groups[0]["lr"] == 0.1
    with pytest.raises(NoMatchError, match="'c' must match"):
        OptimizerChoice("sgd", {}, {"c": {}}).build(of)


def test_values_reach_the_optimiser() -> None:
    found = OptimizerChoice("adam", {"betas": (0.5, 0.9), "weight_decay": 0.25}).build(problem())
    assert found.param_groups[0]["betas"] == (0.5, 0.9)
    assert found.param_groups[0]["weight_decay"] == 0.25
    assert OptimizerChoice("adam", {"betas": (0.5, 0.9)}) == OptimizerChoice("adam", {"betas": [0.5, 0.9]})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("adamm",), UnknownNameError, "adam, adamax, adamw"),
        (("lbfgs",), UnknownNameError, "Valid: adadelta"),
        (("adam", {"momentum": 0.9}), UnknownNameError, "betas"),
        (("adam", {"params": []}), UnknownNameError, "lr"),
        (("adam", {"lr": -1.0}), InvalidParameterError, "`lr` must not be negative"),
        (("adam", {"lr": -1.0, "eps": 1e-8}), InvalidParameterError, "Invalid learning rate"),
        (("adam", {"betas": [2.0, 0.9]}), InvalidParameterError, "beta"),
        (("adam", {"lr": torch.zeros(())}), InvalidParameterError, "plain data"),
        (("adam", {"eps": 1e-8}, {"trunk": {"lr": -1.0}}), InvalidParameterError, "groups"),
        (("adam", {}, {"trunk": {"rate": 1.0}}), UnknownNameError, "lr"),
        (("adam", [("lr", 1.0)]), InvalidParameterError, "`options` must be a mapping"),
    ],
)
def test_refuses(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        OptimizerChoice(*arguments)


def as_floats(value: Any) -> Any:
    return [as_floats(each) for each in value] if isinstance(value, list) else value if value is None else float(value)


@pytest.mark.parametrize("name", optimizer_names())
def test_a_number_is_one_option_however_it_was_written(name: str) -> None:
    resolved = OptimizerChoice(name).resolved()
    numbers = {
        option: value
        for option, value in resolved.options.items()
        if "float" in str(arguments_of(resolved.cls)[option].annotation) and value is not None
    }
    assert "lr" in numbers
    for option, value in numbers.items():
        # Given or left out, whole or not: one choice, and one file.
        given = OptimizerChoice(name, {option: as_floats(value)}).resolved()
        assert json.dumps(given.as_dict()) == json.dumps(resolved.as_dict())
        if isinstance(value, list):
            continue
        with pytest.raises(InvalidParameterError, match=f"`{option}` must be .*number"):
            OptimizerChoice(name, {option: str(float(value))})
        with pytest.raises(InvalidParameterError, match=f"`{option}` must be .*number"):
            OptimizerChoice(name, {option: bool(value)})
        with pytest.raises(InvalidParameterError, match=f"`{option}` must be .*number"):
            OptimizerChoice(name, {}, {"*": {option: "1"}})
    one, other = (OptimizerChoice(name, {"lr": lr}, {"*": {"lr": lr}}).as_dict() for lr in (1, 1.0))
    assert json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize("name", optimizer_names())
def test_what_is_usual_of_the_implementation_is_no_other_choice(name: str) -> None:
    plain = OptimizerChoice(name).resolved()
    cls: Any = plain.cls
    usual = {
        option: each.default
        for option, each in arguments_of(cls).items()
        if option not in plain.options and option != "params"
    }
    assert ("maximize" in usual) == (name != "muon")  # which has no such options
    assert OptimizerChoice(name, usual).resolved() == plain
    if usual:
        assert OptimizerChoice(name, {"maximize": True}).resolved() != plain
