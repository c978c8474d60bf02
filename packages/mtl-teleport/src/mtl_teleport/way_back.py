"""The way back from a move: what was there before it, and what of it is still there later."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtl_teleport.adapters.protocol import write_
from mtl_teleport.inner_product import inner_product

__all__ = ["SHARED_MEMORY", "WayBack"]

SHARED_MEMORY = "what was written did not stay: shared parameters share memory with one another, or with a buffer"
"""Why a move is taken back that was judged at another point than the one at which the parameters came to be."""

_ENTRIES = 2**16  # of each parameter, on which what is kept is measured: a copy of a whole move is as large as a model


class WayBack:
    r"""Writes new values into parameters and can put the old ones back, to the bit.

    An optimiser that keeps a copy of the weights of its own, such as master weights in single precision or a slow
    average, would write it over the new values at its next step. So whatever in the optimiser's state is such a copy is
    moved along: a tensor of a parameter's shape that, rounded to the parameter's dtype, equals the parameter before the
    move. It gets the same displacement, in its own precision. A parameter of nothing but zeros is left out, since a
    copy of it cannot be told from a fresh average.

    Args:
        shared: the parameters that may be moved, by name.
        optimizer: the optimiser that will update them, not a wrapper of it, if there is one.
    """

    def __init__(self, shared: Mapping[str, Tensor], optimizer: Optimizer | None) -> None:
        self._shared = shared
        self.optimizer = optimizer
        self._previous: dict[str, Tensor] = {}
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._moved: dict[str, Tensor] = {}
        self._square = 0.0

    @torch.no_grad()
    def write(self, values: dict[str, Tensor]) -> None:
        """Write new values by name; ``values`` is used up.

        Args:
            values: what to write.
        """
        for name in list(values):
            value = values.pop(name)
            parameter = self._shared[name]
            before = parameter.detach().clone()
            # Remembered before it is written, so that an error in between puts it back as well.
            self._previous[name] = before
            for copy in self._copies_of(parameter):
                self._copies.append((copy, copy.clone()))
                # Not the difference in the parameter's dtype, which need not be a number of it.
                wide = torch.promote_types(copy.dtype, value.dtype)
                copy.add_((value.to(wide) - before.to(wide)).to(copy.dtype))
            start, end = _sample(before), _sample(value)
            # One parameter at a time, and its value let go of: a second copy of all of them is never there.
            write_(self._shared, {name: value})
            # A tensor of its own, since a slice would keep the whole displacement alive.
            part = end.to(torch.float64) - start.to(torch.float64)
            self._square += float(inner_product(part))
            self._moved[name] = part

    def restore(self) -> None:
        """Put everything back that was written; nothing if nothing was, or if it is back already."""
        # The last first: of parameters that share memory, what was there before the second holds the first one's move.
        write_(self._shared, dict(reversed(self._previous.items())))
        with torch.no_grad():
            for copy, before in self._copies:
                copy.copy_(before)
        self._previous, self._copies, self._moved = {}, [], {}

    @property
    def stands(self) -> bool:
        """Whether the parameters are where they were moved to, or nothing was moved."""
        kept = self.kept()
        return kept is None or abs(kept - 1.0) < 1e-6

    def kept(self) -> float | None:
        r"""How much of the move is in the parameters now.

        .. math:: \frac{\langle\theta_{now} - \theta_{before}, \Delta\theta\rangle}{\|\Delta\theta\|^2}

        1 where the parameters are where they were moved to, or were updated across the move; 0 where it is undone. It
        is measured on up to 65,536 entries of each parameter, evenly spread.

        Returns:
            the number; ``None`` if nothing was moved, or was put back.
        """
        if not self._moved or self._square <= 0.0:
            return None
        # By differences: as one of two inner products with the parameters a short move would be lost in rounding.
        found = sum(
            float(inner_product(_sample(self._shared[name]), part, less=_sample(self._previous[name])))
            for name, part in self._moved.items()
        )
        return found / self._square

    def _copies_of(self, parameter: Tensor) -> list[Tensor]:
        """The optimiser's own copies of a parameter."""
        if self.optimizer is None or not bool(parameter.any()):
            return []
        state = self.optimizer.state.get(parameter, {})
        return [
            entry
            for entry in state.values()
            if isinstance(entry, Tensor)
            and entry.shape == parameter.shape
            and entry.is_floating_point()
            and entry.layout == parameter.layout  # the momentum of an embedding's sparse gradients is sparse
            and entry.device == parameter.device
            and torch.equal(entry.to(parameter.dtype), parameter.detach())
        ]


def _sample(tensor: Tensor) -> Tensor:
    """Up to ``_ENTRIES`` entries of a tensor, evenly spread."""
    entries = tensor.detach().reshape(-1)
    return entries[:: -(-len(entries) // _ENTRIES)] if len(entries) > _ENTRIES else entries
