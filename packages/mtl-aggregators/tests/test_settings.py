"""Every keyword of every method is looked at where it is given, not where it is used."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch

from mtl_aggregators import make
from mtl_aggregators.registry import own_methods
from mtl_core import InvalidInputError, TaskSampling, UnknownNameError

KEYWORDS = [
    (name, keyword, parameter.default)
    for name, method in own_methods().items()
    for keyword, parameter in inspect.signature(method).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
]


@pytest.mark.parametrize(("name", "keyword", "default"), KEYWORDS)
def test_what_is_no_setting_at_all(name: str, keyword: str, default: Any) -> None:
    with pytest.raises((InvalidInputError, UnknownNameError), match="got"):
        make(name, **{keyword: object()})


@pytest.mark.parametrize("value", ["no", 1, float("nan"), None, torch.tensor([True, False])], ids=str)
@pytest.mark.parametrize(("name", "keyword"), [(n, k) for n, k, default in KEYWORDS if isinstance(default, bool)])
def test_what_would_only_count_as_true(name: str, keyword: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"`{keyword}` must be True or False, got"):
        make(name, **{keyword: value})


@pytest.mark.parametrize("value", ["ab", 3, (), (1, 2), ("a", "a"), torch.zeros(2)], ids=str)
@pytest.mark.parametrize("name", [n for n, k, _ in KEYWORDS if k == "tasks"])
def test_what_is_no_list_of_names(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="`tasks` must be distinct names"):
        make(name, tasks=value)


@pytest.mark.parametrize("value", [0, "cpu", torch.Generator], ids=str)
@pytest.mark.parametrize("name", [*(n for n, k, _ in KEYWORDS if k == "generator"), "sampling"])
def test_what_is_no_generator(name: str, value: Any) -> None:
    factory = partial(TaskSampling, make("ls"), n_tasks=1) if name == "sampling" else partial(make, name)
    with pytest.raises(InvalidInputError, match=r"`generator` must be a torch\.Generator"):
        factory(generator=value)
