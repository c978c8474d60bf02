import pytest
import torch

from mtl_benchmarks.components.options import Choice, Part, construct, option_defaults, resolve
from mtl_benchmarks.components.registry import Registry
from mtl_benchmarks.components.signatures import REQUIRED
from mtl_core import InvalidParameterError, UnknownNameError


class Piece:
    def __init__(self, *, size: int = 3) -> None:
        self.size = size


class Other:
    def __init__(self) -> None:
        self.size = 0


class Thing:
    def __init__(
        self,
        method: object = None,
        *,
        factor: float = 1.5,
        lengths: tuple[float, ...] = (1.0, 2.0),
        needed: int,
        part: Piece | Other | None = None,
        thing: object = object(),
        generator: torch.Generator | None = None,
    ) -> None:
        self.method, self.factor, self.lengths, self.needed = method, factor, lengths, needed
        self.part, self.thing, self.generator = part, thing, generator


PARTS = {"part": Part(Registry("part", "mtl.no_such_parts", {"part": Piece, "other": Other}))}


def test_defaults() -> None:
    found = option_defaults(Thing, PARTS)
    assert found == {
        "factor": 1.5,
        "lengths": [1.0, 2.0],
        "needed": REQUIRED,
        "part": Choice("part", {"size": 3}),
    }


def test_resolve_and_construct() -> None:
    choice = resolve("thing", Choice("thing", {"needed": 1, "part": Choice("part", {"size": 7})}), Thing, PARTS)
    assert choice.options["lengths"] == [1.0, 2.0]
    assert Choice.from_dict(choice.as_dict()) == choice
    thing = construct(Thing, choice.options, PARTS, method="m", seed=4, unknown="left out")
    assert (thing.method, thing.factor, thing.needed, thing.part.size) == ("m", 1.5, 1, 7)
    assert thing.generator.initial_seed() == 4
    assert isinstance(
        construct(
            Thing, resolve("thing", Choice("thing", {"needed": 1, "part": "other"}), Thing, PARTS).options, PARTS
        ).part,
        Other,
    )


def test_refusals() -> None:
    with pytest.raises(InvalidParameterError, match="`needed` must be given"):
        resolve("thing", Choice("thing"), Thing, PARTS)
    with pytest.raises(UnknownNameError, match="Did you mean 'factor'"):
        resolve("thing", Choice("thing", {"needed": 1, "facto": 1}), Thing, PARTS)
    with pytest.raises(UnknownNameError, match="other, part"):
        resolve("thing", Choice("thing", {"needed": 1, "part": "nothing"}), Thing, PARTS)
    with pytest.raises(InvalidParameterError, match="`part` must be one of"):
        resolve("thing", Choice("thing", {"needed": 1, "part": 3}), Thing, PARTS)


def test_a_whole_number_is_the_number_it_is_written_as() -> None:
    for written in (2, 2.0):
        found = resolve("thing", Choice("thing", {"needed": 1, "factor": written}), Thing, PARTS).options
        assert (found["factor"], type(found["factor"]), type(found["needed"])) == (2.0, float, int)
