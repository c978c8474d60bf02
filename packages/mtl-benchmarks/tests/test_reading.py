from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from torch import Tensor

from mtl_benchmarks.cli import main
from mtl_benchmarks.components.reading import conform, expected, placeholder, read_value, takes_paths
from mtl_benchmarks.components.signatures import REQUIRED, arguments_of, summary_of
from mtl_core import InvalidParameterError


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "-3", -3),
        (float, "3", 3.0),
        (float, "1e-3", 0.001),
        (float, "-.5", -0.5),
        (bool, "True", True),
        (bool, "off", False),
        (str, "none", "none"),
        (str | None, "none", None),
        (Optional[int], "NULL", None),  # noqa: UP045 - as another package may write it
        (Union[int, str], "3", 3),  # noqa: UP007
        (int | str, "x", "x"),
        (Literal["a", "b"] | int, "7", 7),
        (Literal["a", "b"] | int, "b", "b"),
        (list[str], "left", ["left"]),
        (list[str], "[left, 'right']", ["left", "right"]),
        (Sequence[float] | Tensor | None, "1,2", [1.0, 2.0]),
        (Sequence[float] | Tensor | None, "none", None),
        (float | Sequence[float], "2", 2.0),
        (tuple[float, float], "(0.9,0.99)", [0.9, 0.99]),
        (str | Sequence[str] | None, "a.b", "a.b"),
        (Annotated[int, "unit"], "4", 4),
        (Path, "x/y", "x/y"),
        (Any, "0.5", 0.5),
        (Any, "word", "word"),
    ],
)
def test_words_become_values(annotation: Any, text: str, value: Any) -> None:
    found = read_value("--x", annotation, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "rule"),
    [
        (int, "1.0", "a whole number"),
        (int, "١", "a whole number"),
        (float, "1_0", "a number"),
        (float | None, "", "none or a number"),
        (bool, "1", "true or false"),
        (Literal["a", "b"], "A", "one of a, b"),
        (Literal["a"] | int, "x", "a or a whole number"),
        (list[float], "1,x", "a list with commas, each a number"),
        (list[float], "[1", "a list with commas, each a number"),
        (Tensor, "1", "given in Python"),
    ],
)
def test_what_is_none_is_said_in_words(annotation: Any, text: str, rule: str) -> None:
    if text == "١":  # digits of other scripts are digits to Python
        assert read_value("--x", annotation, text) == 1
        return
    with pytest.raises(InvalidParameterError, match=rf"`--x` must be {rule}, got '{text}'".replace("[", r"\[")):
        read_value("--x", annotation, text)


def test_types_in_words() -> None:
    assert expected(float | None) == "none or a number"
    assert placeholder(float | Sequence[float]) == "NUMBER|NUMBER,…"
    assert placeholder(Literal["a", "b"] | bool | None) == "a|b|true|false"
    assert takes_paths(Path | None)
    assert not takes_paths(Path | str)


def test_whole_numbers_are_numbers() -> None:
    assert type(conform(float, 1)) is float
    assert type(conform(float | None, True)) is bool
    assert type(conform(float | Literal[1], 1)) is int
    assert conform(Sequence[float] | None, (1, 2)) == [1.0, 2.0]


class Base:
    """First line with ``code`` and :class:`~mtl_core.Problem`.

    Args:
        size: of the base.
        kind: not overridden
            and on two lines.
    """


class Derived(Base):
    """Another.

    Args:
        size: of this one.
    """

    def __init__(self, size: int, *, kind: Nowhere = None, **more: object) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.size = size


def test_arguments_with_their_help() -> None:
    found = arguments_of(Derived)
    assert list(found) == ["size", "kind"]
    assert (found["size"].annotation, found["size"].default, found["size"].help) == (int, REQUIRED, "of this one.")
    # A name that cannot be resolved hides no other type.
    assert (found["kind"].annotation, found["kind"].help) == (Any, "not overridden and on two lines.")
    assert summary_of(Base) == "First line with code and mtl_core.Problem."


TWICE = {
    "run digits --method cagrad:c=0.4,c=0.2": "`c` must be given once, got 0.4 and 0.2 in 'cagrad:c=0.4,c=0.2'",
    "study digits --methods ls cagrad:c=0.4,c=0.2": "`c` must be given once, got 0.4 and 0.2",
    "study digits --teleports cost:adapter.rank=3,adapter.rank=5": "`adapter.rank` must be given once",
    "run digits:shift=2,shift=3": "`shift` must be given once",
    "run digits --method cagrad:c=0.4 --method.c 0.2": "`--method.c` must be given once, got it behind the name",
    "run digits:shift=2 --benchmark.shift 3": "`--benchmark.shift` must be given once",
    "run digits --teleport cost:adapter=lora --teleport.adapter oft": "`--teleport.adapter` must be given once",
    "run digits --teleport cost:adapter.rank=3 --teleport.rank 5": "`--teleport.rank` must be given once",
    "run digits --teleport cost --teleport.adapter lora:rank=3 --teleport.adapter.rank=5": "must be given once",
    "run digits --teleport cost --teleport.adapter.rank 3 --teleport.rank 5": "which is the same option",
    "run digits --lr 0.1 --optimizer.lr 0.2": "which is the same option",
    "run digits --lr 0.1 --lr=0.2": "`--lr` must be given once, got it twice. Leave one of them out.",
    "study digits --methods ls --methods mgda": "Leave one of them out: --methods with all its values behind it.",
    "compare nowhere --format csv --format text": "`--format` must be given once",
    "sac --seed 1 --seed 2": "`--seed` must be given once",
    "figure cost-3 --seeds 1 --seeds 2": "`--seeds` must be given once",
}


@pytest.mark.parametrize("words", TWICE)
def test_what_is_given_twice_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The last one had been taken, without a word."""
    assert main([*words.split(), *([] if words.startswith(("compare", "sac")) else ["--device", "nowhere"])]) == 2
    assert TWICE[words] in capsys.readouterr().err
