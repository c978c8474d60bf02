"""Everything that the numbers of a run of soft actor-critic depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_method, resolve_method
from mtl_benchmarks.sac.protocol import SACProtocol
from mtl_benchmarks.worlds import LONGEST, METAWORLD, MT10_TASKS
from mtl_core import InvalidParameterError, UnknownNameError
from mtl_core.checks import positive_int
from mtl_core.checks import seed as checked_seed

__all__ = ["SACConfig"]


@dataclass(frozen=True)
class SACConfig:
    """A resolved run. Make one with :meth:`resolve`, which checks every name and value.

    Attributes:
        method: the weighting method, with all its options.
        protocol: how the agent is trained.
        tasks: the tasks that are trained.
        seed: of the initialisation, the goals, the noise, what is drawn from the replay, and the method.
        device: where networks are computed; the simulators run on the CPU.
        threads: torch's CPU threads; part of the configuration because sums depend on it.
        world: the simulator, as ``package.module:Class``.
    """

    method: Choice
    protocol: SACProtocol
    tasks: tuple[str, ...]
    seed: int
    device: str
    threads: int
    world: str

    @classmethod
    def resolve(
        cls,
        method: str | Choice = "ls",
        *,
        protocol: SACProtocol = SACProtocol(),
        tasks: Sequence[str] | None = None,
        seed: int = 0,
        device: str = "cpu",
        threads: int = 1,
        world: str = METAWORLD,
    ) -> SACConfig:
        """A configuration from names and whatever differs from the defaults.

        Args:
            method: name, or name with options.
            protocol: the papers' but for what is given.
            tasks: subset of MT10's; None: all.
            seed: a whole number of 32 bits.
            device: as torch names it.
            threads: torch's CPU threads.
            world: the simulator, as ``package.module:Class``.

        Raises:
            UnknownNameError: a method, task or option that does not exist; lists those that do.
            InvalidParameterError: a value out of range, or a device that is not there.
        """
        wanted = MT10_TASKS if tasks is None else tuple(tasks)
        for task in wanted:
            if task not in MT10_TASKS:
                raise UnknownNameError("task of MT10", task, MT10_TASKS)
        if not wanted:
            raise InvalidParameterError(f"`tasks` must name at least one of {MT10_TASKS}, got none.")
        if protocol.capacity < len(wanted):
            raise InvalidParameterError(
                f"`capacity` must have room for a transition of each of the {len(wanted)} tasks, got "
                f"{protocol.capacity}."
            )
        if world == METAWORLD and protocol.episode > LONGEST:
            raise InvalidParameterError(
                f"`episode` must be at most {LONGEST}, as many steps as the simulator allows, got {protocol.episode}."
            )
        checked_seed("seed", seed)
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            raise InvalidParameterError(
                f"`device` must be a device of torch that is there, got {device!r}. Use 'cpu'."
            ) from None
        resolved = resolve_method(Choice(method) if isinstance(method, str) else method)
        make_method(resolved, seed=seed)  # its constructor knows which values are allowed
        ordered = tuple(task for task in MT10_TASKS if task in wanted)
        return cls(resolved, protocol, ordered, seed, device, positive_int("threads", threads), world)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return {
            **vars(self),
            "method": self.method.as_dict(),
            "protocol": self.protocol.as_dict(),
            "tasks": list(self.tasks),
        }

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return f"sac-{self.method.name.replace(':', '.')}-seed{self.seed}"
