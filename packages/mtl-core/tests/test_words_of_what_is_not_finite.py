"""What is not finite is said in the same words on every route, and the words are written once."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import MicroBatches, NonFiniteGradientError, NonFiniteLossError, Problem, collect, step


class Halves:
    def weights(self, gramian: Tensor) -> Tensor:
        return torch.full((len(gramian),), 0.5, dtype=torch.float64)


class Total:
    needs = "losses"
    takes_present = False

    def __call__(self, losses: Tensor) -> Tensor:
        return losses.sum()


METHODS: dict[str, Callable[[], Any]] = {
    "gramian": Halves,
    "losses": Total,
    "jacobian": lambda: lambda jacobian: jacobian.sum(0),
}


def said(method: str, fault: str, broken: str, *, in_parts: bool) -> str:
    torch.manual_seed(0)
    model: Any = nn.ModuleDict({"trunk": nn.Linear(3, 4), **{name: nn.Linear(4, 1) for name in "abc"}}).double()

    def losses(model: Any, x: Tensor) -> dict[str, Tensor]:
        z = model["trunk"](x)
        found = {name: model[name](z).square().mean() for name in "abc"}
        for name in broken:
            found[name] = found[name] + (0.0 * found[name]).sqrt() if fault == "gradient" else found[name] / 0.0
        return found

    problem = Problem(model, losses, shared="trunk", tasks=("a", "b", "c"))
    x = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises((NonFiniteGradientError, NonFiniteLossError)) as refused:
        step(
            problem,
            MicroBatches(x.chunk(2)) if in_parts else x,
            torch.optim.SGD(model.parameters(), lr=0.1),
            METHODS[method](),
        )
    assert refused.value.tasks == tuple(broken)
    return str(refused.value)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("broken", ["b", "ac", "abc"])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_the_same_words_on_every_route(fault: str, broken: str, in_parts: bool) -> None:
    assert len({said(method, fault, broken, in_parts=in_parts) for method in METHODS}) == 1


def test_of_gradients_by_themselves() -> None:
    theta = torch.ones(2, dtype=torch.float64, requires_grad=True)
    gradients = collect([theta.sum(), (0.0 * theta).sqrt().sum()], [theta], tasks=("a", "b"))
    with pytest.raises(NonFiniteGradientError) as refused:
        _ = gradients.host_gramian
    assert str(refused.value) == said("losses", "gradient", "b", in_parts=False)


def test_the_words_are_written_once() -> None:
    """Two modules had the same sentences, of which one could be changed without the other."""
    root = Path(mtl_core.__file__).parent
    places: dict[str, set[str]] = defaultdict(set)
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise | ast.Return):
                texts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
                for text in texts:
                    for sentence in text.split(". "):
                        if any(word in sentence for word in ("finite", "NaN", "sqrt", "learning rate")):
                            places[sentence.strip()].add(path.name)
    twice = {text: names for text, names in places.items() if len(text) > 40 and len(names) > 1}
    assert len(places) > 5
    assert not twice
