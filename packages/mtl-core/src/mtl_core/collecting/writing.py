"""How a gradient is put into ``.grad``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_core.collecting.flat import flat_size

__all__ = ["as_grad", "in_own_memory", "own", "put", "write_vector"]


def as_grad(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in the form in which ``loss.backward()`` would leave it: the parameter's dtype, shape and strides.

    Fused optimisers walk parameter, gradient and state by one pointer each, so that a contiguous gradient of a
    channels-last weight is read in the wrong order: weights were off by a tenth after five steps. A gradient that
    autograd has expanded (that of a sum) has entries that share memory, which clipping in place would scale twice.

    Args:
        parameter: the parameter.
        gradient: of its number of entries, or sparse; copied only where its form differs.
    """
    if gradient.layout != torch.strided:
        return gradient if gradient.dtype == parameter.dtype else gradient.to(parameter.dtype)
    if gradient.is_complex():
        gradient = gradient.resolve_conj()
    shaped = gradient.view(parameter.shape) if gradient.shape != parameter.shape else gradient
    # The common case first, since _strides takes Python's time for every parameter in every step.
    wanted = parameter.stride() if parameter.is_contiguous() else _strides(parameter)
    if shaped.stride() == wanted and shaped.dtype == parameter.dtype:
        return shaped
    found = torch.empty_strided(parameter.shape, wanted, dtype=parameter.dtype, device=parameter.device)
    return found.copy_(shaped)


def _strides(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's own strides where its entries fill their memory without gaps, else those of rows."""
    # Innermost dimension first. Where the strides are the running product of the lengths, the entries lie without gaps
    # and without overlap, as those of a channels-last weight; a slice of a larger tensor fails this.
    order = sorted(range(parameter.dim()), key=parameter.stride)
    size = 1
    for dimension in order:
        length = parameter.shape[dimension]
        if length != 1 and parameter.stride(dimension) != size:
            # On the meta device nothing is allocated.
            return torch.empty(parameter.shape, device="meta").stride()
        size *= length
    return parameter.stride()


def in_own_memory(gradients: Sequence[Tensor | None], *, held: int = 0) -> list[Tensor | None]:
    """Gradients that autograd has handed out, each in memory that nothing else refers to.

    What is written to ``.grad`` is scaled in place, by clipping and by loss scalers. Autograd hands out one tensor for
    two inputs that enter a sum, which would be scaled twice, and a ``backward`` of the user's may hand out a tensor
    that the user keeps. ``loss.backward()`` copies those as well.

    Args:
        gradients: those that are held by this sequence alone stay as they are, and are not copied.
        held: how many other places of ours refer to each.
    """
    seen: set[int] = set()
    found: list[Tensor | None] = []
    for gradient, references in zip(gradients, _references(gradients), strict=True):
        if gradient is None or not gradient.numel():
            found.append(gradient)
            continue
        # By its memory too: where one of the two inputs enters by a view, they are two tensors.
        place = (gradient._values() if gradient.layout == torch.sparse_coo else gradient).data_ptr()
        found.append(gradient.clone() if references > _ALONE + held or place in seen else gradient)
        seen.add(place)
    return found


def _references(tensors: Sequence[Tensor | None]) -> list[int]:
    """How many places of the interpreter refer to each, those of this walk included."""
    return [sys.getrefcount(tensor) for tensor in tensors]


# Counted, since interpreters differ in which references they count; a higher count costs a copy and nothing else.
_ALONE = _references([torch.empty(1)])[0]


def own(vector: Tensor) -> Tensor:
    """A result of code that is not ours, in memory that nothing else refers to: a method may return what it keeps.

    Args:
        vector: held by one name of the caller's.
    """
    memory = vector.untyped_storage()
    # Asking for the storage refers to it once more. Memory that torch cannot resize is somebody else's, as numpy's.
    is_elsewhere = torch._C._storage_Use_Count(memory._cdata) > 2 or not memory.resizable()
    return vector.clone() if is_elsewhere or sys.getrefcount(vector) > _ONE_NAME else vector


def _named_once() -> int:
    vector = torch.empty(1)
    return _count(vector)


def _count(vector: Tensor) -> int:
    return sys.getrefcount(vector)


_ONE_NAME = _named_once()


def put(parameter: Tensor, gradient: Tensor, *, accumulate: bool) -> None:
    """Write one gradient, or add it to what is there."""
    found = as_grad(parameter, gradient)
    # A new tensor, never an addition in place: what undoes a step holds the old one by reference.
    parameter.grad = found if parameter.grad is None or not accumulate else parameter.grad + found


def write_vector(parameters: Sequence[Tensor], vector: Tensor, *, skip: frozenset[int], accumulate: bool) -> None:
    """Write an update ``[d]``: each ``.grad`` is a view of it where the parameter's dtype and strides allow.

    Args:
        parameters: in the order of the columns.
        vector: the update.
        skip: positions of the parameters that no task touches. They keep ``.grad = None``, as after
            ``loss.backward()``: a gradient of zero would let weight decay and momentum move them.
        accumulate: add to what is there.
    """
    if all(p.is_contiguous() and p.dtype is vector.dtype for p in parameters):
        # The common case, by one call of torch's for all pieces: as many slices and views took twice as long.
        parts: Sequence[Tensor] = torch._utils._unflatten_dense_tensors(vector, parameters)
    else:
        parts = vector.split([*map(flat_size, parameters)])
    for k, (parameter, part) in enumerate(zip(parameters, parts, strict=True)):
        if k in skip:
            if not accumulate:
                parameter.grad = None
            continue
        put(
            parameter,
            torch.view_as_complex(part.view(-1, 2)) if parameter.is_complex() else part,
            accumulate=accumulate,
        )
