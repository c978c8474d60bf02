"""The configuration of a run: everything that its numbers depend on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import (
    make_benchmark,
    make_method,
    resolve_benchmark,
    resolve_method,
    resolve_teleport,
)
from mtl_benchmarks.configuration.selection import Selection
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.plain_data import entry, read_fields
from mtl_benchmarks.protocol.training import Precision, Training
from mtl_benchmarks.ranks import current_ranks
from mtl_core import InvalidParameterError, UnknownNameError
from mtl_core.checks import names, one_of, positive_int
from mtl_core.checks import seed as checked_seed

__all__ = ["RunConfig"]

_MOST_THREADS = 4096
"""More than any machine has; torch does not refuse a number that is too large for it, but ends somewhere inside."""


@dataclass(frozen=True)
class RunConfig:
    """A resolved run. Make one with :meth:`resolve`, which fills in defaults and checks every name and value.

    Attributes:
        benchmark: the problem, with all its options.
        method: the weighting method, with all its options.
        teleport: what moves the parameters when gradients conflict, or None.
        tasks: the tasks that are trained; one of them alone is a single-task run.
        seed: of the initialisation, the order of the data, the method and the teleports.
        training: the protocol, with every option of the optimiser.
        heads: which gradient the heads follow, see ``mtl_core.step``.
        device: where to compute.
        threads: torch's CPU threads; part of the configuration because sums depend on it.
        ranks: processes that train together, for the same reason.
        baseline_model: the network of the single-task runs that Δm is against; None: the run's own with one task. Part
            of the configuration because Δm depends on it, though the training does not; files name it where it is set.
    """

    benchmark: Choice
    method: Choice
    teleport: Choice | None
    tasks: tuple[str, ...]
    seed: int
    training: Training
    heads: Literal["unit", "weighted"]
    device: str
    threads: int
    ranks: int = 1
    baseline_model: Choice | None = None

    def __post_init__(self) -> None:
        """Make sure of what is plain in it.

        Raises:
            InvalidParameterError: a value out of range or of another type.
        """
        object.__setattr__(self, "tasks", names("tasks", () if self.tasks is None else self.tasks))
        checked_seed("seed", self.seed)
        one_of("heads", self.heads, ("unit", "weighted"))
        if not isinstance(self.device, str):
            raise InvalidParameterError(f"`device` must be a device of torch such as 'cpu', got {self.device!r}.")
        if positive_int("threads", self.threads) > _MOST_THREADS:
            raise InvalidParameterError(f"`threads` must be at most {_MOST_THREADS}, got {self.threads}.")
        positive_int("ranks", self.ranks)

    @classmethod
    def resolve(
        cls,
        benchmark: str | Choice,
        method: str | Choice = "ls",
        teleport: str | Choice | None = None,
        *,
        tasks: Sequence[str] | None = None,
        seed: int = 0,
        training: Training | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        optimizer: str | OptimizerChoice | None = None,
        precision: Precision | None = None,
        max_norm: float | None = None,
        heads: Literal["unit", "weighted"] = "unit",
        device: str = "cpu",
        threads: int = 1,
        ranks: int | None = None,
        baseline_model: str | Choice | None = None,
    ) -> RunConfig:
        """A configuration from names and whatever options differ from the defaults.

        Args:
            benchmark: name, or name with options.
            method: name, or name with options.
            teleport: name, or name with options; None or ``"none"``: no teleports.
            tasks: subset of the benchmark's tasks, in its order; None: all.
            seed: a whole number of 32 bits, which is what generators tell apart.
            training: the protocol; None: the benchmark's.
            epochs: in place of the protocol's length.
            steps: likewise, in updates.
            batch_size: in place of the protocol's.
            lr: in place of the protocol's, for all parameters that no group of it gives their own.
            optimizer: in place of the protocol's; a name keeps the learning rate.
            precision: in place of the protocol's.
            max_norm: clip the gradient of the shared parameters to this norm, whatever the protocol clips.
            heads: see ``mtl_core.step``.
            device: as torch names it.
            threads: torch's CPU threads, of each process.
            ranks: processes that train together; None: those of torch's default process group, or one.
            baseline_model: network of the single-task runs, for benchmarks that let theirs be chosen; None: the run's.

        Raises:
            UnknownNameError: a benchmark, method, teleport, task or option that does not exist; lists those that do.
            InvalidParameterError: a value out of range, or a device that is not there.

        Example:
            >>> config = RunConfig.resolve("toy", Choice("cagrad", {"c": 0.5}), seed=1)
            >>> config.method.options["c"], config.training.epochs, config.label
            (0.5, 50, 'cagrad')
        """
        chosen = resolve_benchmark(_choice(benchmark))
        problem = make_benchmark(chosen)
        wanted = names("tasks", tasks) or problem.tasks
        for task in wanted:
            if task not in problem.tasks:
                raise UnknownNameError(f"task of benchmark {chosen.name!r}", task, problem.tasks)
        protocol = (problem.training if training is None else training).altered(
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            optimizer=optimizer,
            precision=precision,
            max_norm=max_norm,
        )
        move = None if teleport is None else _choice(teleport)
        config = cls(
            benchmark=chosen,
            method=resolve_method(_choice(method)),
            teleport=None if move is None or move.name == "none" else resolve_teleport(move, chosen),
            tasks=tuple(task for task in problem.tasks if task in wanted),
            seed=seed,
            training=protocol,
            heads=heads,
            device=_checked_device(device),
            threads=threads,
            ranks=current_ranks().size if ranks is None else ranks,
        )
        if baseline_model is not None:
            config = replace(config, baseline_model=config._other_model(_choice(baseline_model)))
        config.check()
        return config

    def check(self) -> None:
        """Make sure of what is known only by making the parts: values, metrics that are watched, a clipping function.

        Raises:
            UnknownNameError: a metric that does not exist.
            InvalidParameterError: a value out of range.
        """
        # The constructors know which values are allowed.
        make_method(self.method, self.teleport, seed=self.seed)
        Selection(make_benchmark(self.benchmark), self.tasks, self.training)
        if self.training.clip is not None:
            self.training.clip.for_step()
        if self.training.precision == "tf32" and torch.device(self.device).type != "cuda":
            raise InvalidParameterError(
                f"`precision` must be 'float32', 'bf16' or 'fp16' on the device {self.device!r}, got 'tf32', which is "
                "a way of CUDA devices."
            )
        if self.training.sharding == "fsdp" and self.ranks == 1:
            raise InvalidParameterError(
                "`sharding` must be 'none' in a single process, got 'fsdp'. Start several by torchrun."
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        data = dict(vars(self))
        data["benchmark"], data["method"] = self.benchmark.as_dict(), self.method.as_dict()
        data["teleport"] = None if self.teleport is None else self.teleport.as_dict()
        data["tasks"] = list(self.tasks)
        data["training"] = self.training.as_dict()
        del data["baseline_model"]
        if self.baseline_model is not None:  # other files, and names of directories, stay as they were
            data["baseline_model"] = self.baseline_model.as_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """What :meth:`as_dict` gave.

        Raises:
            InvalidParameterError: an entry is missing, of another type or out of range.
            UnknownNameError: it has an entry that is not known.
        """
        values = read_fields(cls, data)
        for name in ("benchmark", "method", "teleport", "baseline_model"):
            if values.get(name) is not None or name in ("benchmark", "method"):
                values[name] = Choice.from_dict(values[name], name=name)
        with entry("training"):
            values["training"] = Training.from_dict(values["training"])
        return cls(**values)

    @property
    def label(self) -> str:
        """Method and teleport, as tables call them."""
        if self.is_single_task:
            return f"single {self.tasks[0]}"
        return self.method.name if self.teleport is None else f"{self.method.name} + {self.teleport.name}"

    @property
    def is_single_task(self) -> bool:
        """Whether one task is trained alone."""
        return len(self.tasks) == 1

    @property
    def name(self) -> str:
        """Name of the run's directory: readable, and different for every configuration."""
        case = [f"{key}{value}" for key, value in make_benchmark(self.benchmark).case_options().items()]
        label = self.label.replace("+", "").replace(":", ".")
        words = [self.benchmark.file_name, *case, *label.split(), f"seed{self.seed}"]
        return "-".join(words) + "-" + self.digest(with_seed=True)

    def digest(self, *, with_seed: bool) -> str:
        """Eight hexadecimal digits that differ between configurations."""
        data = self.as_dict() if with_seed else self.as_group()
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]

    def as_group(self) -> dict[str, Any]:
        """As :meth:`as_dict`, without what differs between the seeds of one comparison.

        That is the seed, and what controls list because each seed has its own: lengths, steps, agreements.
        """
        data = {**self.as_dict(), "seed": None}
        for name in ("length", "steps", "sigmas"):
            if self.teleport is not None and isinstance(self.teleport.options.get(name), list):
                data["teleport"]["options"][name] = "listed"
        return data

    def single_task(self, task: str) -> RunConfig:
        """The same training of one task alone: equal weight on one loss, no teleport, the network of baselines."""
        alone = replace(self, method=resolve_method(Choice("ls")), teleport=None, tasks=(task,), baseline_model=None)
        return alone if self.baseline_model is None else replace(alone, benchmark=self._with_model(self.baseline_model))

    def _with_model(self, model: Choice) -> Choice:
        return resolve_benchmark(Choice(self.benchmark.name, {**self.benchmark.options, "model": model}))

    def _other_model(self, model: Choice) -> Choice | None:
        """The network of single-task runs with all its options; None where they are the run's own or it is one."""
        if "model" not in self.benchmark.options:
            raise InvalidParameterError(
                f"`baseline_model` must belong to a benchmark that lets its network be chosen, got {model.name!r} for "
                f"{self.benchmark.name!r}, which has one network."
            )
        changed = self._with_model(model)
        make_benchmark(changed)  # the constructors know which values are allowed
        found: Choice = changed.options["model"]
        return None if self.is_single_task or changed == self.benchmark else found


def _choice(given: str | Choice) -> Choice:
    return Choice(given) if isinstance(given, str) else given


def _checked_device(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InvalidParameterError(
            f"`device` must be a device of torch such as 'cpu' or 'cuda', got {device!r}."
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidParameterError(f"`device` must be available, got {device!r} without a CUDA device. Use 'cpu'.")
    return device
