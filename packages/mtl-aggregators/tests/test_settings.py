"""Every keyword of every method is looked at where it is given, not where it is used."""

from __future__ import annotations

import contextlib
import inspect
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mtl_aggregators import IMGrad, NashMTL, make
from mtl_aggregators.registry import own_methods
from mtl_core import InvalidInputError, TaskSampling, UnknownNameError

KEYWORDS = [
    (name, keyword, parameter.default)
    for name, method in own_methods().items()
    for keyword, parameter in inspect.signature(method).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
]
VECTORS = [
    (name, keyword)
    for name, keyword, _ in KEYWORDS
    if keyword in ("preference", "weights", "leak", "bound", "start", "reference", "tau")
]
"""Settings with one number per task."""


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


NUMBERS: dict[str, Any] = {
    "beyond float64": 10**400,
    "sparse": torch.ones(3).to_sparse() * -1.0,
    "complex": torch.ones(3, dtype=torch.complex64),
    "complex array": np.ones(3, dtype=np.complex128),
    "meta": torch.ones(3, device="meta"),
    "array of names": np.array(["a", "b"]),
    "array": np.full(2, 0.123),
    "array without dimensions": np.array("a"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(("name", "keyword"), [(n, k) for n, k, _ in KEYWORDS])
def test_what_is_a_setting_in_a_form_of_its_own(name: str, keyword: str, value: str) -> None:
    # A method or one error, never what the form's library says of it.
    with contextlib.suppress(InvalidInputError):
        make(name, **{keyword: NUMBERS[value]})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "keyword"), VECTORS)
def test_what_has_an_imaginary_part_is_no_weight(name: str, keyword: str) -> None:
    with pytest.raises(InvalidInputError, match=f"`{keyword}` must be"):
        make(name, **{keyword: torch.ones(3, dtype=torch.complex64)})


@pytest.mark.parametrize(("name", "keyword"), [found for found in VECTORS if found[1] in ("preference", "weights")])
def test_weights_whose_sum_overflows(name: str, keyword: str) -> None:
    with pytest.raises(InvalidInputError, match="as must their sum"):
        make(name, **{keyword: [1e308, 1e308]})


@pytest.mark.parametrize(("name", "keyword"), VECTORS)
def test_weights_in_any_form(name: str, keyword: str) -> None:
    def held(given: Any) -> list[Any]:
        return [
            part.tolist() for part in vars(make(name, **{keyword: given})).values() if isinstance(part, torch.Tensor)
        ]

    for given in ([1, 1, 1], torch.ones(3, dtype=torch.bfloat16), torch.ones(3).to_sparse(), np.ones(3, int)):
        assert held(given) == held([1.0, 1.0, 1.0])


def test_a_base_that_keeps_weights_is_no_base() -> None:
    with pytest.raises(InvalidInputError, match="`base` must compute its weights in every step"):
        IMGrad(NashMTL(update_weights_every=4))
