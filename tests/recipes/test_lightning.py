"""The recipe for Lightning in docs/recipes.md, inside a real trainer: what it counts, writes, logs and clips."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtl_core
from mtl_aggregators import FairGrad

lightning = pytest.importorskip("lightning", reason="lightning is not installed: nox -s recipes")
PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The page's first block, and the block after the mark."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
    marked = re.search(r"<!-- recipe: lightning -->\n```py\n(.*?)^```$", PAGE, flags=re.M | re.S)
    assert marked is not None
    namespace: dict[str, Any] = {"__name__": "__page__", "lightning": lightning}
    exec(blocks[0], namespace)
    exec(marked[1], namespace)
    return namespace


def loader(n: int = 64) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    rows = TensorDataset(
        torch.randn(n, 8, generator=generator),
        torch.randint(5, (n,), generator=generator),
        torch.randn(n, 1, generator=generator),
    )
    return DataLoader(rows, batch_size=8)


def trainer(folder: Path, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    return lightning.Trainer(default_root_dir=folder, **{**quiet, **settings})


def module(recipe: dict[str, Any], losses_fn: Any = None) -> Any:
    torch.manual_seed(0)
    return recipe["Multi"](recipe["Net"](), losses_fn or recipe["losses_fn"])


def test_max_steps_acts_and_the_steps_are_those_of_a_plain_loop(recipe: dict[str, Any], tmp_path: Path) -> None:
    multi = module(recipe)
    own = trainer(tmp_path, max_steps=5, enable_checkpointing=False)
    own.fit(multi, loader())

    torch.manual_seed(0)
    net = recipe["Net"]()
    problem = mtl_core.Problem(net, recipe["losses_fn"], shared=net.trunk, tasks=("class", "value"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _, batch in zip(range(5), loader(), strict=False):
        mtl_core.step(problem, batch, optimizer, FairGrad(), max_norm=1.0, clip="all")

    assert own.global_step == 5
    for mine, plain in zip(multi.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, plain)


def test_checkpoints_by_step_and_resuming(recipe: dict[str, Any], tmp_path: Path) -> None:
    every = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    trainer(tmp_path, max_steps=6, callbacks=[every]).fit(module(recipe), loader())
    written = sorted(path.name for path in tmp_path.glob("*.ckpt"))

    assert [re.search(r"step=(\d+)", name)[1] for name in written] == ["2", "4", "6"]  # type: ignore[index]
    again = trainer(tmp_path, max_steps=8, enable_checkpointing=False)
    again.fit(module(recipe), loader(), ckpt_path=tmp_path / written[1])
    assert again.global_step == 8


def test_losses_are_logged(recipe: dict[str, Any], tmp_path: Path) -> None:
    own = trainer(tmp_path, max_steps=3, enable_checkpointing=False)
    own.fit(module(recipe), loader())

    assert {"class", "value"} <= set(own.callback_metrics)


def test_the_network_is_registered_once(recipe: dict[str, Any], tmp_path: Path) -> None:
    multi = module(recipe)
    trainer(tmp_path, max_steps=1, enable_checkpointing=False).fit(multi, loader())

    assert all(name.startswith("net.") for name in multi.state_dict())


def test_bfloat16_by_autocast_around_the_losses(recipe: dict[str, Any], tmp_path: Path) -> None:
    seen = set()

    def mixed(model: nn.Module, batch: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, z = recipe["losses_fn"](model, batch)
        seen.add(z.dtype)
        return losses, z

    own = trainer(tmp_path, max_steps=2, enable_checkpointing=False)
    own.fit(module(recipe, mixed), loader())

    assert seen == {torch.bfloat16}
    assert own.global_step == 2


def test_lightnings_own_mixed_precision(recipe: dict[str, Any], tmp_path: Path) -> None:
    seen = set()

    def watched(model: nn.Module, batch: Any) -> Any:
        losses, z = recipe["losses_fn"](model, batch)
        seen.add(z.dtype)
        return losses, z

    own = trainer(tmp_path, max_steps=2, enable_checkpointing=False, precision="bf16-mixed")
    own.fit(module(recipe, watched), loader())

    assert seen == {torch.bfloat16}
    assert own.global_step == 2
