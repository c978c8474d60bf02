"""Evaluating a model at other parameters than its own, for as long as the graph of the evaluation may be walked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mtl_core.errors import NoMatchError

__all__ = ["LossModule", "placed"]


@contextmanager
def placed(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while, tensors in the places of a model's parameters; afterwards the very same ``Parameter`` objects.

    Unlike ``torch.func.functional_call``, which puts the parameters back as soon as the forward pass is done, the
    block may also hold the backward pass. A model that recomputes activations there
    (``torch.utils.checkpoint(..., use_reentrant=False)``) reads its parameters a second time, and would read its own:
    gradients at a displaced point then came out with a cosine of .57 with the right ones, without a word.

    Args:
        model: any module. A parameter that is tied under several names is replaced under all of them.
        tensors: what to place, by qualified name; of the parameters' shapes.

    Raises:
        NoMatchError: a name is none of the model's parameters.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> own = model.weight
        >>> with placed(model, {"weight": torch.full((1, 1), 3.0)}):
        ...     float(model(torch.ones(1, 1)))
        3.0
        >>> model.weight is own
        True
    """
    places: dict[int, list[tuple[dict[str, nn.Parameter | None], str]]] = {}
    names: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module._parameters, attribute))
                names[f"{prefix}.{attribute}" if prefix else attribute] = id(parameter)
    strangers = [name for name in tensors if name not in names]
    if strangers:
        raise NoMatchError(
            f"`tensors` must be named as parameters of the model, got {strangers}. Names: {', '.join(names)}."
        )
    before: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter | None]] = []
    try:
        for name, tensor in tensors.items():
            for owner, attribute in places[names[name]]:
                before.append((owner, attribute, owner[attribute]))
                owner[attribute] = tensor  # type: ignore[assignment]
        yield
    finally:
        # The other way round: a module that is registered twice is placed twice, and its first entry is its own.
        for owner, attribute, parameter in reversed(before):
            owner[attribute] = parameter


class LossModule(nn.Module):
    """The model and its losses as one module, so that ``functional_call`` reaches every parameter of the model."""

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Any) -> Any:
        """What the user's function returns."""
        return self._losses(self.model, batch)
