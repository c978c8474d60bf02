"""The recipe for torch-geometric in docs/recipes.md, on batches of its loader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mtl_core

pytest.importorskip("torch_geometric", reason="torch-geometric is not installed: mtl-benchmarks[graph]")
PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the package stands alone")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """What the page defines: its first block, and the recipe up to its loop."""
    text = PAGE.read_text(encoding="utf-8")
    first = re.search(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
    marked = re.search(r"<!-- recipe: torch-geometric -->\n```py\n(.*?)^```$", text, flags=re.M | re.S)
    assert first is not None
    assert marked is not None
    page: dict[str, Any] = {"__name__": "__page__"}
    exec(first[1], page)
    before, loop, after = marked[1].partition("for _ in range(5):\n")
    exec(before, page)
    page["loop"] = loop + after
    return page


def losses_now(page: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        rows = [torch.stack(list(page["losses_of"](page["graphs"], data)[0].values())) for data in page["loader"]]
    return torch.stack(rows).mean(0)


def test_gradients_through_the_features_are_those_of_the_whole_graph(recipe: dict[str, Any]) -> None:
    data = next(iter(recipe["loader"]))
    losses, z = recipe["losses_of"](recipe["graphs"], data)
    shared = list(recipe["graphs"].layers.parameters())
    through = mtl_core.collect(losses, shared, features=z, retain_graph=True)
    whole = mtl_core.collect(losses, shared)

    assert z.shape == (data.num_nodes, 32)
    torch.testing.assert_close(through.matrix, whole.matrix)


def test_both_tasks_learn(recipe: dict[str, Any]) -> None:
    before = losses_now(recipe)
    exec(recipe["loop"], recipe)

    assert recipe["report"].tasks == ("node", "graph")
    assert bool((losses_now(recipe) < before).all())
