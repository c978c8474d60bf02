"""A multi-task problem: a model, its task losses, and which of its parameters all tasks share."""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtl_core import checks
from mtl_core.distributed import is_sharded, reshard
from mtl_core.errors import (
    DuplicateModuleError,
    InvalidInputError,
    NoLossesError,
    NoMatchError,
    NonScalarLossError,
    NoSharedParametersError,
)

__all__ = ["Features", "Problem", "SharedSpec", "TaskLosses"]

Features = Tensor | Sequence[Tensor]
"""Outputs of the shared trunk from which every head starts."""

SharedSpec = nn.Module | str | Iterable[nn.Parameter] | Iterable[str] | Iterable[nn.Module]
"""How the shared parameters may be named: a module, parameters, modules, or name patterns."""


@dataclass(frozen=True)
class TaskLosses:
    """The losses of the tasks that are present in one batch.

    Attributes:
        outputs: a tuple of ``k`` scalar losses, or one tensor ``[k]`` where the user's function computed them jointly.
        tasks: names of the ``k`` tasks that are present.
        index: position of each of them in ``Problem.tasks``.
        n_tasks: number ``m`` of tasks of the problem, absent ones included.
        features: the trunk's outputs, if the user's function returned them.
    """

    outputs: tuple[Tensor, ...] | Tensor
    tasks: tuple[str, ...]
    index: tuple[int, ...]
    n_tasks: int
    features: tuple[Tensor, ...] | None = None

    @property
    def values(self) -> Tensor:
        """The losses of the present tasks, ``[k]``, differentiable."""
        return self.outputs if isinstance(self.outputs, Tensor) else torch.stack(self.outputs)

    @property
    def is_complete(self) -> bool:
        """Whether every task of the problem is present."""
        return len(self.index) == self.n_tasks

    def full(self, fill: float = 0.0) -> Tensor:
        """The losses of all tasks, ``[m]``, with ``fill`` where a task is absent."""
        values = self.values
        if self.is_complete:
            return values
        index = torch.tensor(self.index, device=values.device)
        return values.new_full((self.n_tasks,), fill).index_put((index,), values)


class _LossModule(nn.Module):
    """The model and its losses as one module, so that ``functional_call`` reaches every parameter of the model."""

    def __init__(self, model: nn.Module, losses: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Any) -> Any:
        return self._losses(self.model, batch)


class Problem:
    r"""A model with ``m`` task losses :math:`L_1(\theta, h_1), \dots, L_m(\theta, h_m)`.

    The shared parameters :math:`\theta \in \mathbb{R}^d` are those the tasks compete for; every other trainable
    parameter is a head.

    Args:
        model: the network. Give the bare module, not its ``DistributedDataParallel`` wrapper.
        losses: ``losses(model, batch)`` returns the losses as a tensor ``[m]`` in the order of ``tasks``, or as a
            mapping from task name to scalar, in which a task that is missing or ``None`` is absent from this batch. To
            save work it may return ``(losses, features)``, with the trunk's outputs from which all heads start: then
            each head is differentiated once, and only the trunk once per task. It must reach the parameters through the
            ``model`` it is given, not through a name of the enclosing scope.
        shared: which parameters are shared: a submodule of ``model``, parameters, modules, or name patterns
            (``"trunk"``, ``"encoder.*.weight"``; matched against ``model.named_parameters()``).
        tasks: the tasks' names, in order.

    Attributes:
        graph_checked: whether a step has already seen that every loss depends on the shared parameters.

    Raises:
        NoLossesError: ``tasks`` is empty.
        NoSharedParametersError: no shared parameter is left, or all are frozen.
        NoMatchError: a name pattern matches no parameter.
        InvalidInputError: a task name occurs twice, a shared parameter is not one of the model's, or the model is
            wrapped for data parallelism.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.ModuleDict({"trunk": nn.Linear(3, 2), "a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
        >>> def losses(model, x):
        ...     z = model["trunk"](x)
        ...     return {"a": model["a"](z).square().mean(), "b": (model["b"](z) - 1).square().mean()}
        >>> problem = Problem(model, losses, shared=model["trunk"], tasks=("a", "b"))
        >>> problem.shared_names
        ('trunk.weight', 'trunk.bias')
        >>> problem.losses(torch.ones(4, 3)).tasks
        ('a', 'b')
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Callable[[nn.Module, Any], Any],
        *,
        shared: SharedSpec,
        tasks: Sequence[str],
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise InvalidInputError(
                f"`model` must be the bare module, got {type(model).__name__}: gradients taken per task through the "
                "wrapper are those of one rank alone. Give model.module; task gradients are averaged over a "
                "process group by mtl_core."
            )
        if isinstance(tasks, str):
            raise InvalidInputError(f"`tasks` must be a sequence of names, got the single string {tasks!r}.")
        self.tasks: tuple[str, ...] = tuple(tasks)
        if not self.tasks:
            raise NoLossesError("`tasks` must name at least one task, got none.")
        if len(set(self.tasks)) != len(self.tasks):
            raise InvalidInputError(f"`tasks` must be distinct, got {self.tasks}.")
        self.model = model
        self._loss_fn = losses
        self._loss_module = _LossModule(model, losses)
        # By owner and attribute: sharding, for one, puts other Parameter objects in their places.
        self._places = {name: _place(model, name) for name in _resolve_shared(model, shared)}
        self._duplicate: tuple[str, str] | Literal[False] | None = False  # False: not looked yet
        self.graph_checked = False
        self._depth = 0
        self._hooks: OrderedDict[int, Callable[[Any], object]] = OrderedDict()
        if not self.shared:
            raise NoSharedParametersError(
                f"`shared` must hold at least one trainable parameter, got {len(self._places)} parameter(s), all "
                "frozen. Set requires_grad=True on what the tasks are to share."
            )

    def __repr__(self) -> str:
        return (
            f"Problem({type(self.model).__name__}, tasks={self.tasks}, "
            f"shared={sum(p.numel() for p in self.shared):,} parameters, heads={sum(p.numel() for p in self.heads):,})"
        )

    @property
    def n_tasks(self) -> int:
        """Number ``m`` of tasks."""
        return len(self.tasks)

    def _all_shared(self) -> dict[str, nn.Parameter]:
        return {name: getattr(owner, attribute) for name, (owner, attribute) in self._places.items()}

    @property
    def named_shared(self) -> dict[str, nn.Parameter]:
        """The shared parameters that are trainable now, by their name in the model."""
        return {name: p for name, p in self._all_shared().items() if p.requires_grad}

    @property
    def shared(self) -> tuple[nn.Parameter, ...]:
        """The shared parameters that are trainable now, in the model's order."""
        return tuple(self.named_shared.values())

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Names of ``shared`` in the model."""
        return tuple(self.named_shared)

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Names of the shared parameters that are frozen now."""
        return tuple(name for name, p in self._all_shared().items() if not p.requires_grad)

    @property
    def heads(self) -> tuple[nn.Parameter, ...]:
        """Every other trainable parameter of the model."""
        shared = {id(p) for p in self._all_shared().values()}
        return tuple(p for p in self.model.parameters() if p.requires_grad and id(p) not in shared)

    def register_report_hook(self, hook: Callable[[Any], object]) -> RemovableHandle:
        """Have a function called with the report of every step of this problem, e.g. to log it.

        Args:
            hook: called with the ``StepReport`` after each ``mtl_core.step``, once, whatever the method does inside.

        Returns:
            a handle whose ``remove()`` ends it.

        Example:
            >>> import torch
            >>> from mtl_core import step
            >>> from mtl_core.testing import small_problem
            >>> problem, batch = small_problem(2)
            >>> seen = []
            >>> handle = problem.register_report_hook(lambda report: seen.append(report.tasks))
            >>> optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
            >>> report = step(problem, batch, optimizer, lambda jacobian: jacobian.sum(0))
            >>> handle.remove()
            >>> seen
            [('task0', 'task1')]
        """
        handle = RemovableHandle(self._hooks)
        self._hooks[handle.id] = hook
        return handle

    @contextmanager
    def reporting(self) -> Iterator[Callable[[Any], None]]:
        """Mark a step as under way; yields what gives its report to the hooks, unless it is a step within a step."""
        self._depth += 1
        try:
            yield self._report
        finally:
            self._depth -= 1

    def _report(self, report: Any) -> None:
        if self._depth == 0:
            for hook in tuple(self._hooks.values()):
                hook(report)

    def losses(self, batch: Any, *, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
        """Evaluate the task losses on one batch.

        Args:
            batch: whatever the user's function takes.
            parameters: tensors to use in place of the model's own, by qualified name. The model is not touched, and the
                result is differentiable with respect to them. A parameter tied under several names is replaced under
                all of them.

        Returns:
            The losses of the tasks that are present, with the graph that leads to them.

        Raises:
            NoLossesError: no task is present.
            NonScalarLossError: a task's loss is not a scalar tensor.
            DuplicateModuleError: ``parameters`` is given and the model registers one submodule under two names.
            InvalidInputError: the user's function returned something else, an unknown task, or the wrong number of
                losses.
        """
        if parameters is None:
            sharded = is_sharded(self.shared)
            returned = self._loss_fn(self.model, batch)
            if sharded:
                reshard(self.model)
            return self._parse(returned)
        self.check_functional()
        replaced = {f"model.{name}": value for name, value in parameters.items()}
        return self._parse(torch.func.functional_call(self._loss_module, replaced, (batch,)))

    def check_functional(self) -> None:
        """Make sure that the model can be evaluated with replaced parameters.

        Raises:
            DuplicateModuleError: one submodule is registered under two names, which ``functional_call`` corrupts.
        """
        if self._duplicate is False:
            self._duplicate = _first_duplicate(self.model)
        if isinstance(self._duplicate, tuple):
            first, second = self._duplicate
            raise DuplicateModuleError(
                f"`model` must register each submodule once, got the same module as {first!r} and {second!r}. "
                "Keep one of them, or store the second reference outside the module tree, e.g. in a tuple."
            )

    def _parse(self, returned: Any) -> TaskLosses:
        features: tuple[Tensor, ...] | None = None
        if isinstance(returned, tuple):
            if len(returned) != 2 or (isinstance(returned[0], Tensor) and returned[0].ndim == 0):
                raise InvalidInputError(
                    "`losses` must return a tensor [m], a mapping task -> scalar, or (losses, features), got a "
                    f"tuple of {len(returned)}. "
                    "Stack the scalars with torch.stack, or return a mapping."
                )
            returned, found = returned
            features = (found,) if isinstance(found, Tensor) else tuple(found)
        if isinstance(returned, Mapping):
            return self._parse_mapping(returned, features)
        if not isinstance(returned, Tensor):
            raise InvalidInputError(
                "`losses` must return a tensor [m], a mapping task -> scalar, or (losses, features), got "
                f"{type(returned).__name__}."
            )
        if returned.ndim != 1:
            raise NonScalarLossError(
                f"`losses` must return one number per task, shape ({self.n_tasks},), got shape "
                f"{tuple(returned.shape)}. "
                "Reduce each task's loss over the batch, e.g. with .mean()."
            )
        if returned.shape[0] == 0:
            raise NoLossesError("`losses` must return at least one loss, got an empty tensor.")
        if returned.shape[0] != self.n_tasks:
            raise InvalidInputError(
                f"`losses` must return {self.n_tasks} losses, one for each of {self.tasks}, got {returned.shape[0]}. "
                "To leave a task out of a batch, return a mapping without it."
            )
        return TaskLosses(returned, self.tasks, tuple(range(self.n_tasks)), self.n_tasks, features)

    def _parse_mapping(self, found: Mapping[str, Tensor | None], features: tuple[Tensor, ...] | None) -> TaskLosses:
        unknown = [name for name in found if name not in self.tasks]
        if unknown:
            raise InvalidInputError(f"`losses` must return losses of {self.tasks}, got also {unknown}.")
        index = tuple(i for i, name in enumerate(self.tasks) if found.get(name) is not None)
        if not index:
            raise NoLossesError(f"`losses` must return the loss of at least one of {self.tasks}, got none.")
        present = tuple(self.tasks[i] for i in index)
        outputs = tuple(checks.scalar_loss(name, found[name]) for name in present)
        return TaskLosses(outputs, present, index, self.n_tasks, features)


def _first_duplicate(model: nn.Module) -> tuple[str, str] | None:
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in seen:
            return seen[id(module)], name
        seen[id(module)] = name
    return None


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns a parameter, and the parameter's name in it."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _resolve_shared(model: nn.Module, shared: SharedSpec) -> dict[str, nn.Parameter]:
    """The shared parameters by name, in the model's order, each once."""
    names = {id(p): name for name, p in model.named_parameters()}
    wanted: set[int] = set()
    items: list[Any] = [shared] if isinstance(shared, nn.Module | str | Tensor) else list(shared)
    for item in items:
        if isinstance(item, str):
            matched = [
                id(p)
                for name, p in model.named_parameters(remove_duplicate=False)
                if fnmatch.fnmatchcase(name, item) or name.startswith(f"{item}.")
            ]
            if not matched:
                raise NoMatchError(
                    f"`shared` pattern {item!r} must match a parameter of the model, got none. Names: "
                    f"{', '.join(names.values())}."
                )
            wanted.update(matched)
        elif isinstance(item, nn.Module):
            wanted.update(id(p) for p in item.parameters())
        elif isinstance(item, Tensor):
            wanted.add(id(item))
        else:
            raise InvalidInputError(
                "`shared` must be a module, parameters, modules or name patterns, got an item of type "
                f"{type(item).__name__}."
            )
    strangers = wanted - set(names)
    if strangers:
        raise InvalidInputError(
            f"`shared` must hold parameters of `model`, got {len(strangers)} that are not among its {len(names)}."
        )
    if not wanted:
        raise NoSharedParametersError("`shared` must hold at least one parameter, got none.")
    return {name: p for name, p in model.named_parameters() if id(p) in wanted}
