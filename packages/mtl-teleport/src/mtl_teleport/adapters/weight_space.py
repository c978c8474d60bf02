r"""Adapters that live on the weights alone: :math:`W + \Delta W(\varphi)` through functional evaluation.

The model is not touched while the adapter trains, so any layer with a suitable weight can be adapted: convolutions of
every kind, embeddings, attention, recurrent cells, graph layers.
"""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mtl_core import InvalidInputError, NoMatchError, Problem
from mtl_teleport.adapters.padding import padding_rows, without_rows
from mtl_teleport.adapters.protocol import AdapterSession

__all__ = [
    "Displacement",
    "MatrixAdapter",
    "Targets",
    "WeightSpaceAdapter",
    "WeightSpaceSession",
    "trainable_dtype",
    "uniform",
    "zeros",
]

Targets = str | Sequence[str] | None
"""Name patterns of parameters or of their layers (``"trunk.*"``, ``"encoder.0"``); ``None`` is every one supported."""


class Displacement(Protocol):
    r"""The displacement :math:`\Delta W(\varphi)` of one weight."""

    tensors: tuple[Tensor, ...]

    def __call__(self, weight: Tensor) -> Tensor:
        """The displacement, of the weight's shape; exactly zero before training."""
        ...


class WeightSpaceSession(AdapterSession):
    """A session that evaluates the problem at displaced weights and leaves the model alone."""

    has_free_point = True

    def __init__(self, problem: Problem, displacements: dict[str, Displacement]) -> None:
        problem.check_functional()
        super().__init__(problem)
        self._displacements = displacements
        self._padding = padding_rows(problem)
        self.trainable = tuple(tensor for d in displacements.values() for tensor in d.tensors)

    def parameters(self) -> dict[str, Tensor]:
        """``W + ΔW`` for the adapted weights, the parameters themselves for the others."""
        point: dict[str, Tensor] = {}
        for name, parameter in self.shared.items():
            # Detached: gradients by the adapter and by the point are wanted, and none is to reach the model's own
            # parameters.
            weight = parameter.detach()
            if name not in self._displacements:
                point[name] = weight.requires_grad_()
            else:
                with torch.autocast(weight.device.type, enabled=False):  # a displacement may be far below its rounding
                    point[name] = weight + self._displacement(name, weight).to(weight.dtype)
        return point

    def delta(self) -> dict[str, Tensor]:
        """The displacement of each adapted weight."""
        with torch.no_grad():
            return {name: self._displacement(name, self.shared[name]) for name in self._displacements}

    def _displacement(self, name: str, weight: Tensor) -> Tensor:
        # By its rows and columns together an adapter would displace the row of padding, too.
        return without_rows(self._displacements[name](weight), self._padding.get(name))

    def detach(self) -> None:
        """Nothing to take off: the model was never touched."""


class WeightSpaceAdapter(ABC):
    """Base of the adapters on weights; a subclass says which parameters it supports and how it displaces one.

    Args:
        targets: name patterns of parameters or layers, or ``None`` for every supported shared parameter.
    """

    def __init__(self, *, targets: Targets = None) -> None:
        if isinstance(targets, str):
            targets = (targets,)
        if targets is not None and (not targets or not all(isinstance(t, str) for t in targets)):
            raise InvalidInputError(f"`targets` must be name patterns or None, got {targets!r}.")
        self.targets: tuple[str, ...] | None = None if targets is None else tuple(targets)

    @property
    @abstractmethod
    def requirement(self) -> str:
        """What a parameter must be to be adapted, for the error text."""

    @abstractmethod
    def supports(self, parameter: Tensor) -> bool:
        """Whether this parameter can be adapted."""

    @abstractmethod
    def displacement(self, parameter: Tensor, generator: torch.Generator | None) -> Displacement:
        """A fresh displacement of one parameter, exactly zero."""

    def attach(
        self, problem: Problem, *, batch: Any = None, generator: torch.Generator | None = None
    ) -> AdapterSession:
        """Open a session on the matching shared parameters.

        Args:
            problem: the problem whose shared parameters are to be moved.
            batch: not needed: a zero displacement is a no-op whatever the data.
            generator: source of the initial values, on the CPU.

        Returns:
            A session that is an exact no-op until ``trainable`` change.

        Raises:
            NoMatchError: a pattern matches no shared parameter, or no match is supported; lists what is.
            DuplicateModuleError: the model registers one submodule twice.
        """
        chosen = self._choose(problem)
        return WeightSpaceSession(
            problem, {name: self.displacement(parameter, generator) for name, parameter in chosen.items()}
        )

    def _choose(self, problem: Problem) -> dict[str, Tensor]:
        shared: dict[str, Tensor] = dict(problem.named_shared)
        supported = {name: parameter for name, parameter in shared.items() if self.supports(parameter)}
        listed = ", ".join(f"{name} {tuple(p.shape)}" for name, p in supported.items()) or "none"
        if not supported:
            raise NoMatchError(
                f"{type(self).__name__} must find a shared parameter {self.requirement}, got "
                f"{', '.join(f'{name} {tuple(p.shape)}' for name, p in shared.items())}. Use Dense(), which "
                "displaces any parameter."
            )
        if self.targets is None:
            return supported
        chosen: dict[str, Tensor] = {}
        for pattern in self.targets:
            matched = {
                n: p for n, p in supported.items() if fnmatch.fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")
            }
            if not matched:
                raise NoMatchError(
                    f"`targets` pattern {pattern!r} must match a shared parameter {self.requirement}, got none. "
                    f"Supported: {listed}."
                )
            chosen.update(matched)
        # In the model's order and not in that of the patterns: each weight draws from one generator, and the same
        # targets in another order must draw the same.
        return {name: parameter for name, parameter in supported.items() if name in chosen}


class MatrixAdapter(WeightSpaceAdapter):
    """Base of the adapters that read a weight as a matrix: its first dimension by all the others."""

    @property
    def requirement(self) -> str:
        """What a parameter must be to be adapted."""
        return "with at least two dimensions"

    def supports(self, parameter: Tensor) -> bool:
        """Whether the parameter is real, floating and has at least two dimensions."""
        return parameter.ndim >= 2 and parameter.numel() > 0 and parameter.is_floating_point()


def uniform(shape: Sequence[int], bound: float, *, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """A leaf uniform on ``[-bound, bound]``, drawn on the CPU so that every device gets the same values."""
    values = (
        torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device="cpu").mul_(2.0).sub_(1.0).mul_(bound)
    )
    return values.to(device=like.device, dtype=trainable_dtype(like)).requires_grad_()


def zeros(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """A leaf of zeros."""
    return torch.zeros(tuple(shape), device=like.device, dtype=trainable_dtype(like), requires_grad=True)


def trainable_dtype(like: Tensor) -> torch.dtype:
    """The dtype in which an adapter of this weight trains: at least float32."""
    # A step of the adapter is far below the rounding of a half-precision weight, and would add up to nothing.
    return torch.promote_types(like.dtype, torch.float32)
