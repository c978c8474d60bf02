"""Features that one operation makes together: each is told from its siblings, and none is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import InvalidInputError, collect

MODES: list[dict[str, Any]] = [{}, {"chunk_size": 2}, {"keep": "gramian"}]


def compiled(z: Tensor) -> tuple[Tensor, Tensor]:
    both: Callable[[Tensor], Any] = torch.compile(lambda z: (z[:2].tanh(), z[2:].square()), backend="aot_eager")
    first, second = both(z)
    return first, second


SPLITS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "chunk": lambda z: z.chunk(2),  # type: ignore[dict-item,return-value]
    "unbind": lambda z: z.view(2, 2).unbind(0),  # type: ignore[dict-item,return-value]
    "qr": lambda z: torch.linalg.qr(z.view(2, 2)),
    "compiled": compiled,
}


def split(name: str) -> tuple[nn.Parameter, Tensor, Tensor, list[Tensor], Tensor]:
    """A trunk of four parameters, its two outputs, two losses that need both, and the right Gramian."""
    theta = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64))
    first, second = SPLITS[name](theta**2)
    losses = [first.sum() + second.sum(), first.square().sum() * second.square().sum()]
    rows = torch.stack([torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses])
    return theta, first, second, losses, rows @ rows.T


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_both_of_them_are_all(name: str, mode: dict[str, Any]) -> None:
    theta, first, second, losses, gramian = split(name)
    torch.testing.assert_close(collect(losses, [theta], features=[first, second], **mode).gramian, gramian)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_one_of_them_is_a_part_only(name: str, mode: dict[str, Any], which: int) -> None:
    theta, first, second, losses, _ = split(name)
    with pytest.raises(InvalidInputError, match=r"got another way for tasks \['0', '1'\]"):
        collect(losses, [theta], features=(first, second)[which], **mode)


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_is_computed_from_one_is_not_from_the_other(name: str, mode: dict[str, Any]) -> None:
    theta, first, second, _, _ = split(name)
    high = second * 3
    losses = [first.sum() + high.sum(), first.square().sum() * high.square().sum()]
    rows = torch.stack([torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses])
    torch.testing.assert_close(collect(losses, [theta], features=[first, high], **mode).gramian, rows @ rows.T)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_loss_may_itself_be_a_feature(mode: dict[str, Any]) -> None:
    theta = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    low, high = (theta**2).unbind(0)
    found = collect([low, high * low], [theta], features=[low, high], **mode)
    rows = torch.tensor([[2.0, 0.0], [8.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(found.gramian, rows @ rows.T)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("several", [False, True])
def test_features_and_losses_of_one_compiled_graph(several: bool, mode: dict[str, Any]) -> None:
    theta = nn.Parameter(torch.tensor([1.0, 2.0]))

    def whole(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = theta.square()
        return z, z.sum(), z.prod()

    z, *losses = torch.compile(whole, backend="aot_eager")(theta)
    with pytest.raises(InvalidInputError, match=r"leave one compiled graph together.*Compile the trunk alone"):
        collect(losses, [theta], features=[z, z + 0] if several else z, **mode)
