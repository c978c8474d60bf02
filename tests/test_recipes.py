"""What docs/adoption.md says of other libraries and of clipping is so."""

from __future__ import annotations

import contextlib
import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import InvalidInputError

PAGE = (Path(__file__).parents[1] / "docs" / "adoption.md").read_text(encoding="utf-8")


def read(folder: Path, *, until: str) -> dict[str, Any]:
    """What the Python blocks of the page define, up to the end of a section; what they write is in ``folder``."""
    before, heading, rest = PAGE.partition(f"## {until}\n")
    assert heading
    text = before + rest.partition("\n## ")[0]
    namespace: dict[str, Any] = {"__name__": "__page__"}
    with contextlib.chdir(folder):
        for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            exec(compile(code, "docs/adoption.md", "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def own_loop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read(tmp_path_factory.mktemp("page"), until="Your own loop")


@pytest.fixture(scope="module")
def accelerate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read(tmp_path_factory.mktemp("page"), until="Accelerate")


def parameters_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def stepped(own_loop: dict[str, Any], **settings: Any) -> tuple[Tensor, nn.Module]:
    """The parameters after one step from a fixed start, and the model with its gradients."""
    torch.manual_seed(1)
    model = own_loop["Net"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    problem = mtl_core.Problem(model, own_loop["losses_fn"], shared=model.trunk, tasks=("class", "value"))
    batch = next(iter(own_loop["data"]()))
    mtl_core.step(problem, batch, optimizer, own_loop["FairGrad"](alpha=1.0), **settings)
    return parameters_of(model), model


def by_hand(own_loop: dict[str, Any], max_norm: float) -> Tensor:
    """The same by the page's first loop."""
    torch.manual_seed(1)
    model = own_loop["Net"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, z = own_loop["losses_fn"](model, next(iter(own_loop["data"]())))
    heads = [*model.classes.parameters(), *model.value.parameters()]
    gradients = mtl_core.collect(losses, model.trunk.parameters(), features=z, heads=heads)
    gradients.assign(own_loop["FairGrad"](alpha=1.0)(gradients))
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return parameters_of(model)


def test_clip_all_is_clip_grad_norm_over_the_model(own_loop: dict[str, Any]) -> None:
    norm = 0.1
    clipped = by_hand(own_loop, norm)
    assert torch.allclose(stepped(own_loop, max_norm=norm, clip="all")[0], clipped, atol=1e-7)
    assert not torch.allclose(stepped(own_loop, max_norm=norm)[0], clipped, atol=1e-4)


def test_max_norm_by_itself_leaves_the_heads(own_loop: dict[str, Any]) -> None:
    _, free = stepped(own_loop)
    _, clipped = stepped(own_loop, max_norm=0.1)
    trunk = torch.cat([p.grad.flatten() for p in clipped.trunk.parameters()])
    assert float(trunk.norm()) == pytest.approx(0.1, rel=1e-4)
    for one, other in zip(free.value.parameters(), clipped.value.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_callable_clips_what_has_a_gradient(own_loop: dict[str, Any]) -> None:
    _, model = stepped(own_loop, clip=lambda parameters: nn.utils.clip_grad_value_(parameters, clip_value=1e-3))
    assert max(float(p.grad.abs().max()) for p in model.parameters()) == pytest.approx(1e-3)


def seen_dtypes(page: dict[str, Any], losses_fn: Any) -> set[torch.dtype]:
    """The dtypes of the trunk's output in one step of the page's Accelerate recipe."""
    model = page["model"]
    problem = mtl_core.Problem(model, losses_fn, shared=model.trunk, tasks=("class", "value"))
    seen: set[torch.dtype] = set()
    handle = model.trunk.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    try:
        mtl_core.step(problem, next(iter(page["loader"])), page["optimizer"], page["method"])
    finally:
        handle.remove()
    return seen


def test_accelerate_computes_in_bfloat16_by_the_recipe_alone(accelerate: dict[str, Any]) -> None:
    assert seen_dtypes(accelerate, accelerate["mixed_losses"]) == {torch.bfloat16}
    assert seen_dtypes(accelerate, accelerate["losses_fn"]) == {torch.float32}
    assert all(p.dtype == torch.float32 for p in accelerate["model"].parameters())


def test_accelerate_steps_really(accelerate: dict[str, Any]) -> None:
    before = parameters_of(accelerate["model"])
    mtl_core.step(
        accelerate["problem"], next(iter(accelerate["loader"])), accelerate["optimizer"], accelerate["method"]
    )
    assert not torch.equal(parameters_of(accelerate["model"]), before)


def test_accumulate_is_refused_and_what_is_advised_works(accelerate: dict[str, Any]) -> None:
    accelerator, model, optimizer = (accelerate[name] for name in ("accelerator", "model", "optimizer"))
    batches = list(accelerate["loader"])
    optimizer.zero_grad()
    before = parameters_of(model)
    with accelerator.accumulate(model), pytest.raises(InvalidInputError, match=r"MicroBatches.*accumulate=True"):
        mtl_core.step(accelerate["problem"], batches[0], optimizer, accelerate["method"])
    assert torch.equal(parameters_of(model), before)
    assert all(p.grad is None for p in model.parameters())

    accelerator.gradient_state._set_sync_gradients(True)
    mtl_core.step(accelerate["problem"], mtl_core.MicroBatches(batches[:2]), optimizer, accelerate["method"])
    assert not torch.equal(parameters_of(model), before)


def test_accumulated_by_hand_within_accumulate(accelerate: dict[str, Any]) -> None:
    accelerator = accelerate["accelerator"]
    model, optimizer = accelerate["model"], accelerate["optimizer"]
    batches = list(accelerate["loader"])[:2]

    def write(net: nn.Module, batch: Any) -> None:
        losses, z = accelerate["losses_fn"](net, batch)
        heads = [*net.classes.parameters(), *net.value.parameters()]
        gradients = mtl_core.collect(losses, net.trunk.parameters(), features=z, heads=heads)
        gradients.assign(gradients.mean, accumulate=True)

    accelerator.gradient_state._set_sync_gradients(True)
    optimizer.zero_grad()
    accelerator.step = 0
    twin = copy.deepcopy(model)
    for number, batch in enumerate(batches):
        with accelerator.accumulate(model):
            write(model, batch)
            assert accelerator.sync_gradients == (number == 1)
            expected = [p.grad.clone() for p in model.parameters()]
            if number == 0:
                optimizer.step()
                assert torch.equal(parameters_of(model), parameters_of(twin))
                optimizer.zero_grad()
                assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))
    for batch in batches:
        write(twin, batch)
    assert all(torch.equal(p.grad, g) for p, g in zip(twin.parameters(), expected, strict=True))
