"""Trying a step of an optimiser, and leaving no trace of it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch import Tensor, optim

__all__ = ["TrialOptimizer"]


class TrialOptimizer:
    """An optimiser's step that is taken back when the ``with`` block ends.

    Within the block, ``step`` moves the parameters by what the optimiser would do next, through its own code and with
    copies of its state. The optimiser itself, its state (entries that it has yet to create included), its hooks and
    its learning rate schedule see nothing of it. Afterwards the parameters hold the very storage they held before.

    Parameters are moved some at a time, each with a copy of its state that is then dropped and its gradient freed, so
    that no more than one copy of the parameters and a part of the state is held.

    Args:
        optimizer: any ``torch.optim`` optimiser that does not need a closure.

    Attributes:
        moved: whether ``step`` has been called.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._held: list[tuple[Tensor, Tensor]] = []
        self.moved = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's own groups, which a gradient scaler looks through."""
        return self._optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Move the parameters."""
        self.moved = True
        groups = self._optimizer.param_groups
        total = sum(p.numel() for group in groups for p in group["params"])
        for group in groups:
            for part in _parts(group["params"], limit=max(1, total // _PARTS)):
                self._step_some(group, part)

    def _step_some(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        # A dictionary that makes entries, as torch's own: optimisers make a parameter's state in its first step.
        state: defaultdict[Any, Any] = defaultdict(dict)
        for p in parameters:
            if p in self._optimizer.state:
                state[p] = {name: _copied(value) for name, value in self._optimizer.state[p].items()}
            # By exchanging the storage: the Parameter objects, which model, hooks and optimiser refer to, stay, and
            # taking the step back copies nothing.
            self._held.append((p, p.data))
            p.data = p.data.clone()
        # Settings too are copied, since some optimisers write to them (step counts, adapted learning rates).
        rest = {name: _copied(value) for name, value in group.items() if name != "params"}
        shadow = _shadow(self._optimizer, {**rest, "params": parameters}, state)
        type(self._optimizer).step(shadow)  # past an attribute that a schedule or a profiler may have put in its place
        for p in parameters:
            p.grad = None

    def __enter__(self) -> TrialOptimizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for p, data in self._held:
            p.data = data
        self._held.clear()


_PARTS = 8
"""Into how many parts of about equal size the parameters are cut."""


def _parts(parameters: list[Tensor], *, limit: int) -> Iterator[list[Tensor]]:
    """Lists of parameters with a gradient, of at most ``limit`` entries unless one alone has more."""
    part: list[Tensor] = []
    size = 0
    for p in parameters:
        if p.grad is None:
            continue
        if part and size + p.numel() > limit:
            yield part
            part, size = [], 0
        part.append(p)
        size += p.numel()
    if part:
        yield part


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _shadow(optimizer: optim.Optimizer, group: dict[str, Any], state: defaultdict[Any, Any]) -> optim.Optimizer:
    """An optimiser of the same class and settings over some parameters, without hooks."""
    own = {
        name: value
        for name, value in vars(optimizer).items()
        if name not in ("step", "state", "param_groups", "defaults") and not name.endswith("_hooks")
    }
    # Past the constructor, whose signature is not known; __setstate__ fills in what newer versions of the class expect.
    twin: optim.Optimizer = object.__new__(type(optimizer))
    twin.__setstate__({**own, "defaults": optimizer.defaults, "state": state, "param_groups": [group]})
    return twin
