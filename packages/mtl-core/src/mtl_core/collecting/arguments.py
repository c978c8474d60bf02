"""What ``collect`` is given, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from mtl_core import checks
from mtl_core.errors import InvalidInputError, NoLossesError, NonScalarLossError, NoSharedParametersError

__all__ = ["Losses", "read_features", "read_losses", "read_shared"]

Losses = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Task losses: a tensor ``[m]``, a sequence of scalars, or a mapping from task name to scalar."""


def read_losses(losses: Losses, tasks: Sequence[str] | None) -> tuple[tuple[Tensor, ...] | Tensor, tuple[str, ...]]:
    """The losses, one scalar each or one tensor ``[m]``, and their names."""
    outputs: tuple[Tensor, ...] | Tensor
    names = None if tasks is None else tuple(tasks)
    if isinstance(losses, Mapping):
        names, outputs = tuple(losses), tuple(losses.values())
    elif isinstance(losses, Tensor):
        if losses.ndim != 1:
            raise NonScalarLossError(
                "`losses` must be a tensor of shape [m], a sequence of scalars or a mapping, got shape "
                f"{tuple(losses.shape)}. "
                "Stack one scalar per task."
            )
        outputs = losses
    else:
        outputs = tuple(losses)
    if len(outputs) == 0:
        raise NoLossesError("`losses` must hold at least one loss, got none.")
    names = tuple(str(i) for i in range(len(outputs))) if names is None else names
    if len(names) != len(outputs):
        raise InvalidInputError(f"`tasks` must name each of the {len(outputs)} losses, got {len(names)} names.")
    if not isinstance(outputs, Tensor):
        outputs = tuple(checks.scalar_loss(name, loss) for name, loss in zip(names, outputs, strict=True))
    return outputs, names


def read_shared(shared: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The trainable parameters, each once."""
    if isinstance(shared, Tensor):
        raise InvalidInputError("`shared` must be parameters, got one tensor. Wrap it in a list.")
    found = list(shared)
    trainable = tuple({id(p): p for p in found if p.requires_grad}.values())
    if not trainable:
        raise NoSharedParametersError(
            f"`shared` must hold at least one trainable parameter, got {len(found)} parameter(s)"
            f"{', all frozen. Set requires_grad=True on what the tasks are to share' if found else ''}."
        )
    devices = {p.device for p in trainable}
    if len(devices) > 1:
        raise InvalidInputError(
            f"`shared` must lie on one device, got {sorted(map(str, devices))}. Collect each device's parameters by "
            "themselves."
        )
    return trainable


def read_features(features: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The trunk's outputs, with their graph."""
    found = (features,) if isinstance(features, Tensor) else tuple(features)
    loose = [i for i, z in enumerate(found) if not z.requires_grad]
    if not found or loose:
        raise InvalidInputError(
            "`features` must be outputs of the trunk with their graph, got "
            f"{f'detached tensors at {loose}' if loose else 'none'}. "
            "Do not detach them before computing the losses."
        )
    return found
