"""What an adapter's session must be, asked before anything is evaluated with it: adapters may be written by hand."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtl_core import InvalidInputError
from mtl_teleport.adapters.protocol import AdapterSession

__all__ = ["check_session"]


def check_session(adapter: object, session: Any) -> None:
    """Make sure that an adapter's session is one; what it has attached is taken off where it is not.

    Args:
        adapter: what it is of, for the text.
        session: what ``attach`` returned.

    Raises:
        InvalidInputError: naming the adapter and what is wrong.
    """
    kind = type(adapter).__name__
    if not isinstance(session, AdapterSession):
        raise InvalidInputError(
            f"`adapter.attach` must return an mtl_teleport.adapters.AdapterSession, got {type(session).__name__} from "
            f"{kind}. Derive the session from that class."
        )
    try:
        _check_trainable(kind, session)
        _check_point(kind, session)
    except BaseException:
        session.detach()
        raise


def _check_trainable(kind: str, session: AdapterSession) -> None:
    fit = [isinstance(t, Tensor) and t.is_floating_point() and t.is_leaf and t.requires_grad for t in session.trainable]
    if not fit or not all(fit):
        found = "none" if not fit else f"one that is not among {len(fit)}"
        raise InvalidInputError(
            f"`trainable` of the session must hold floating leaf tensors that require a gradient, got {found} from "
            f"{kind}. They are what a search trains."
        )


def _check_point(kind: str, session: AdapterSession) -> None:
    point = session.parameters()
    wanted = [(name, tuple(parameter.shape)) for name, parameter in session.shared.items()]
    found = [(name, tuple(tensor.shape)) for name, tensor in point.items()]
    if [shape for _, shape in found] != [shape for _, shape in wanted]:
        wrong = next((f"{a} for {b}" for a, b in zip(found, wanted, strict=False) if a[1] != b[1]), "")
        raise InvalidInputError(
            "`parameters()` of the session must give one tensor per shared parameter, of its shape and in the order of "
            f"`shared`, got {len(found)} for {len(wanted)} from {kind}{', ' if wrong else ''}{wrong}."
        )
    flat = [name for name, tensor in point.items() if not tensor.requires_grad]
    if flat:
        raise InvalidInputError(
            "`parameters()` of the session must give tensors that can be differentiated by, got "
            f"{', '.join(flat[:4])} without requires_grad from {kind}."
        )
