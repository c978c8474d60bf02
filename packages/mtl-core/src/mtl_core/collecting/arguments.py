"""What ``collect`` is given, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from mtl_core import checks
from mtl_core.errors import InvalidInputError, NoLossesError, NonScalarLossError, NoSharedParametersError

__all__ = ["Losses", "check_one_device", "read_heads", "read_losses", "read_shared"]

Losses = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Task losses: a tensor ``[m]``, a sequence of scalars, or a mapping from task name to scalar."""


def read_losses(losses: Losses, tasks: Sequence[str] | None) -> tuple[tuple[Tensor, ...] | Tensor, tuple[str, ...]]:
    """The losses, one scalar each or one tensor ``[m]``, and their names."""
    outputs: tuple[Tensor, ...] | Tensor
    if isinstance(tasks, str):
        raise InvalidInputError(f"`tasks` must be a list of names, got the text {tasks!r}. Write [{tasks!r}].")
    names = None if tasks is None else tuple(tasks)
    if isinstance(losses, Mapping):
        found = tuple(losses)
        if names is not None and names != found:
            raise InvalidInputError(
                f"`tasks` must be the names that the losses have, {list(found)} in this order, got {list(names)}. "
                "Leave it out: a mapping names its losses."
            )
        names, outputs = found, tuple(losses.values())
    elif isinstance(losses, Tensor):
        if losses.ndim != 1:
            raise NonScalarLossError(
                "`losses` must be a tensor of shape [m], a sequence of scalars or a mapping, got shape "
                f"{tuple(losses.shape)}. "
                "Stack one scalar per task."
            )
        checks.real_losses("`losses`", losses)
        outputs = losses
    else:
        outputs = tuple(losses)
    if len(outputs) == 0:
        raise NoLossesError("`losses` must hold at least one loss, got none.")
    names = tuple(str(i) for i in range(len(outputs))) if names is None else names
    if len(names) != len(outputs):
        raise InvalidInputError(f"`tasks` must name each of the {len(outputs)} losses, got {len(names)} names.")
    if len(set(names)) < len(names):
        raise InvalidInputError(f"`tasks` must differ from each other, got {list(names)}.")
    if not isinstance(outputs, Tensor):
        outputs = tuple(checks.scalar_loss(name, loss) for name, loss in zip(names, outputs, strict=True))
    return outputs, names


def read_shared(shared: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The trainable parameters, each once."""
    if isinstance(shared, Tensor):
        raise InvalidInputError("`shared` must be parameters, got one tensor. Wrap it in a list.")
    found = _tensors("shared", shared)
    trainable = tuple(p for p in found if p.requires_grad)
    if not trainable:
        raise NoSharedParametersError(
            f"`shared` must hold at least one trainable parameter, got {len(found)} parameter(s)"
            f"{', all frozen. Set requires_grad=True on what the tasks are to share' if found else ''}."
        )
    check_one_device(trainable, "Collect each device's parameters by themselves.")
    return trainable


def check_one_device(shared: Sequence[Tensor], way_out: str) -> None:
    """Make sure that the rows of a Jacobian have a place.

    Raises:
        InvalidInputError: the parameters lie on several devices, or on the meta device, where nothing has a value.
    """
    first = shared[0].device if shared else None
    if first is None or (first.type != "meta" and all(p.device == first for p in shared)):
        return
    devices = {p.device for p in shared}
    empty = [tuple(p.shape) for p in shared if p.is_meta]
    if empty:
        raise InvalidInputError(
            f"`shared` must hold values, got {len(empty)} parameter(s) on the meta device, of shapes {empty[:4]}. Move "
            "the model by to_empty(device=...) and load its weights."
        )
    raise InvalidInputError(f"`shared` must lie on one device, got {sorted(map(str, devices))}. {way_out}")


def read_heads(heads: Iterable[Tensor], shared: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The trainable parameters of the heads, each once and none of them shared.

    A parameter that is tied under two names comes twice in a list of modules' parameters; its gradient would be added
    twice.
    """
    if isinstance(heads, Tensor):
        raise InvalidInputError("`heads` must be parameters, got one tensor. Wrap it in a list.")
    found = _tensors("heads", heads)
    own = {id(p) for p in shared}
    both = [tuple(p.shape) for p in found if id(p) in own]
    if both:
        raise InvalidInputError(
            f"`heads` must hold no shared parameter, got {len(both)} that are also in `shared`, of shapes {both[:4]}. "
            "The shared parameters' .grad is left to assign(): give the parameters of the heads alone."
        )
    return tuple(p for p in found if p.requires_grad)


def _tensors(name: str, values: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of a list, each once, by identity."""
    found = list(values)
    strangers = sorted({type(p).__name__ for p in found if not isinstance(p, Tensor)})
    if strangers:
        raise InvalidInputError(
            f"`{name}` must hold parameters, got {', '.join(strangers)}. Give module.parameters(), not the module."
        )
    return tuple({id(p): p for p in found}.values())
