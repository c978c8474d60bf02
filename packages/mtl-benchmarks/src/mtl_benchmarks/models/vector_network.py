"""Any of the architectures of the field on plain vectors: what each is made of, in one size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from mtl_benchmarks.models.declaration import check_declaration
from mtl_core.checks import positive_int

__all__ = ["VECTOR_PARTS", "vector_network"]

VECTOR_PARTS = frozenset(
    {"trunk", "expert", "experts", "tower", "stages", "transitions", "channels", "gate_inputs", "kind"}
)
"""What :func:`vector_network` has for constructors that take it, besides ``heads``."""


def vector_network(
    architecture: Callable[..., nn.Module], *, tasks: Iterable[str], inputs: int, width: int
) -> nn.Module:
    """A network of two layers on vectors, with one linear output per task.

    Every architecture gets layers of the same size, under the names of its own arguments: hard sharing one ``trunk``,
    mixtures an ``expert`` of two layers, PLE two levels of one layer each, cross-stitch a ``tower`` of two stages per
    task, MTAN two ``stages``.

    Args:
        architecture: a class of ``mtl_benchmarks.models`` that takes ``heads``, or another such callable; anything
            beyond :data:`VECTOR_PARTS` has to be bound already.
        tasks: names of the outputs.
        inputs: numbers per example.
        width: units of each layer.

    Raises:
        InvalidInputError: what comes out does not declare which parameters are shared.

    Example:
        >>> import functools, torch
        >>> from mtl_benchmarks.models import MMoE
        >>> make = functools.partial(MMoE, n_experts=3)
        >>> model = vector_network(make, tasks=("a", "b"), inputs=5, width=4)
        >>> model(torch.zeros(2, 5))["b"].shape
        torch.Size([2, 1])
    """
    positive_int("inputs", inputs)
    positive_int("width", width)

    def layer(wide: int) -> nn.Module:
        return nn.Sequential(nn.Linear(wide, width), nn.ReLU())

    def layers() -> nn.Module:
        return nn.Sequential(layer(inputs), layer(width))

    def stages() -> list[nn.Module]:
        return [layer(inputs), layer(width)]

    taken = inspect.signature(architecture).parameters
    parts: dict[str, Callable[[], Any]] = {
        "trunk": layers,
        "expert": lambda: layers,
        "experts": lambda: [lambda: layer(inputs), lambda: layer(width)],
        "tower": lambda: stages,
        "stages": stages,
        "transitions": lambda: [nn.Linear(width, width)],
        "channels": lambda: (width, width),
        # PLE has a gate per level, and the second level reads what the first one gives.
        "gate_inputs": lambda: (inputs, width) if "experts" in taken else inputs,
        "kind": lambda: "vectors",
    }
    given = {name: made() for name, made in parts.items() if name in taken}
    model = architecture(heads={task: nn.Linear(width, 1) for task in tasks}, **given)
    check_declaration(model)
    return model
