"""What keeps something from step to step and cannot be asked for it, so that no checkpoint has it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtl_benchmarks.benchmark import Benchmark
from mtl_benchmarks.engine.step_batches import and_wrapped
from mtl_benchmarks.engine.trainer import Trainer
from mtl_core.extension import Draws, Remembers, Wrapper, offers

__all__ = ["Unsaved"]

_HASHED = 2**20
"""Numbers up to which a tensor is compared by content; a larger one by its place and how often it was written to."""
_LOOKS = 2
"""Looks at what changes, once it is known how it was before; each reads everything."""
_REPORTED = "last_solution"
"""Of a method of this repository, how its last weights were found: for who asks, and never read by the next step."""
_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


class Unsaved:
    """Looks for attributes that change from step to step and are part of no checkpoint.

    Looked at are the method, what wraps it, and its trigger, from the first step on, and a benchmark of one's own, from
    the first checkpoint on: by then what is read or made once is there. What has a state of its own is taken at its
    word: ``state_dict``, or in a module or wrapper ``get_extra_state`` or ``own_state``. What cannot be pickled is not
    looked at, nor are the model and the optimiser, wherever they are held.

    Args:
        trainer: as it was made.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._first: Mapping[str, str] | None = None
        self._own: Mapping[str, str] | None = None
        self._left = _LOOKS

    def after_step(self) -> None:
        """Note how the method is after the first step."""
        if self._first is None:
            self._first = self._digests(and_wrapped(self._trainer.method))

    def found(self) -> list[str]:
        """Names of what has changed since, as ``Class.attribute``, where a checkpoint is written."""
        if self._left == 0:
            return []
        benchmark = self._digests(iter([self._trainer.benchmark]))
        changed = _changed(self._own, benchmark)
        if self._first is not None:
            self._left -= 1
            changed += _changed(self._first, self._digests(and_wrapped(self._trainer.method)))
        self._own = self._own or benchmark
        return changed

    def _digests(self, objects: Iterator[Any]) -> dict[str, str]:
        trainer = self._trainer
        known = [trainer.optimizer, *trainer.model.modules(), *trainer.model.parameters(), *trainer.model.buffers()]
        saved = frozenset(map(id, known))
        return {
            f"{type(each).__name__}.{name}": digest
            for each in objects
            for name, value in _kept(each)
            if (digest := _digest(value, saved)) is not None
        }


def _changed(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    return [] if before is None else [name for name, digest in now.items() if before.get(name) != digest]


def _kept(owner: Any) -> Iterator[tuple[str, Any]]:
    """Attributes that are in no state."""
    held = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    if isinstance(owner, Wrapper):
        held.pop("method", None)  # looked at by itself
        if "trigger" in held:  # no teleport's state has it
            yield "trigger", held.pop("trigger")
    if _speaks_for_itself(owner):
        return
    if isinstance(owner, nn.Module):
        yield from ((name, owner._buffers[name]) for name in owner._non_persistent_buffers_set)
        held = {name: value for name, value in held.items() if name not in _OF_MODULES}
    elif offers(owner, Draws):
        held.pop("generator", None)  # saved for it
    yield from ((name, value) for name, value in held.items() if name != _REPORTED)


def _speaks_for_itself(owner: Any) -> bool:
    kind = type(owner)
    if isinstance(owner, Benchmark) and kind.__module__.startswith("mtl_benchmarks."):
        return True  # they keep whole data sets, which would take long to look through
    if isinstance(owner, Wrapper):
        return kind.own_state is not Wrapper.own_state or kind.get_extra_state is not Wrapper.get_extra_state
    if isinstance(owner, nn.Module):
        return kind.get_extra_state is not nn.Module.get_extra_state or kind.state_dict is not nn.Module.state_dict
    return offers(owner, Remembers)


def _digest(value: Any, saved: frozenset[int]) -> str | None:
    whole = _Hash()
    try:
        _Pickler(whole, saved).dump(value)
    except Exception:  # noqa: BLE001 - an object of others may raise anything when it is pickled
        return None
    return whole.found.hexdigest()


class _Hash:
    """A file that is never kept."""

    def __init__(self) -> None:
        self.found = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.found.update(data)
        return len(data)


class _Pickler(pickle.Pickler):
    """Writes what of an object can change, which is never read again."""

    def __init__(self, file: _Hash, saved: frozenset[int]) -> None:
        super().__init__(file)
        self._saved = saved

    def persistent_id(self, value: Any) -> Any:
        """What stands for an object."""
        if id(value) in self._saved:
            return "saved"
        if isinstance(value, torch.Generator):
            return bytes(value.get_state().numpy())
        if isinstance(value, Tensor):
            if value.numel() > _HASHED:
                return (id(value), value._version)
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return (str(value.dtype), tuple(value.shape), hashlib.sha256(content).digest())
        return None
