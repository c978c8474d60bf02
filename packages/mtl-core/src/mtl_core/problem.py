"""A multi-task problem: a model, its task losses, and which of its parameters all tasks share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtl_core.distributed import is_sharded, reshard
from mtl_core.errors import (
    DuplicateModuleError,
    InvalidInputError,
    NoLossesError,
    NoSharedParametersError,
)
from mtl_core.shared_parameters import SharedSpec, places_of, resolve_shared
from mtl_core.task_losses import TaskLosses, read_returned
from mtl_core.wrapped_models import refuse_wrapped

__all__ = ["MicroBatches", "Problem", "ProblemView"]


class MicroBatches:
    """Parts of one batch, to be passed one after the other: ``step(problem, MicroBatches(parts), ...)``.

    The step is that of the whole batch, where the parts are of equal size: the Gramian is that of the accumulated
    gradients, not a sum of the parts' Gramians. A loss weighting costs one forward pass without a graph per part, which
    tells the losses of the whole batch, and then one forward and one backward pass per part.

    Args:
        parts: batches as the problem's losses take them.

    Raises:
        InvalidInputError: there is none.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise InvalidInputError("`parts` must hold at least one batch, got none.")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


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
        differentiates: whether the losses were seen to differentiate by themselves, so that they need a graph wherever
            they are evaluated.
        under_way: what undoes the step that is being made, if one is.
        told: the parameters of which it was said that no optimiser holds them.
        looked_through: whether the model was looked through for wrappers since it was given, which a first step does.

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
        if not callable(losses):
            raise InvalidInputError(
                f"`losses` must be a function losses(model, batch), got {type(losses).__name__}. It is called anew in "
                "every step."
            )
        refuse_wrapped(model)
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
        self._places = places_of(model, resolve_shared(model, shared))
        self._duplicate: tuple[str, str] | Literal[False] | None = False  # False: not looked yet
        self.graph_checked = False
        self.differentiates = False
        self.under_way: Any = None
        self.told: set[tuple[str, ...]] = set()
        self.looked_through = False
        self._listed: dict[str, Any] | None = None
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

    @contextmanager
    def listed_once(self) -> Iterator[None]:
        """Find the parameters once for a while, instead of at each question; they must stay the same objects.

        Walking a deep model takes longer than some of what a step does with its parameters. A sharded model is always
        walked, since a forward pass puts other objects in the places of its parameters.
        """
        before, self._listed = self._listed, None if is_sharded(self.shared) else {}
        try:
            yield
        finally:
            self._listed = before

    def _found(self, what: str, find: Callable[[], Any]) -> Any:
        if self._listed is None:
            return find()
        if what not in self._listed:
            self._listed[what] = find()
        return self._listed[what]

    @property
    def named_shared(self) -> dict[str, nn.Parameter]:
        """The shared parameters that are trainable now, by their name in the model."""
        found: dict[str, nn.Parameter] = self._found(
            "named_shared", lambda: {name: p for name, p in self._all_shared().items() if p.requires_grad}
        )
        return found

    @property
    def shared(self) -> tuple[nn.Parameter, ...]:
        """The shared parameters that are trainable now, in the model's order."""
        found: tuple[nn.Parameter, ...] = self._found("shared", lambda: tuple(self.named_shared.values()))
        return found

    @property
    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter of the model that is trainable now, shared or of a head, by its name in the model."""
        found: dict[str, nn.Parameter] = self._found(
            "named_trainable", lambda: {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        )
        return found

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

        def find() -> tuple[nn.Parameter, ...]:
            shared = {id(p) for p in self._all_shared().values()}
            return tuple(p for p in self.named_trainable.values() if id(p) not in shared)

        found: tuple[nn.Parameter, ...] = self._found("heads", find)
        return found

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
                A model that recomputes activations in the backward pass would read its own parameters there: evaluate
                it within ``mtl_core.extension.placed``, backward pass included, instead.

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
            return read_returned(returned, self.tasks)
        self.check_functional()
        replaced = {f"model.{name}": value for name, value in parameters.items()}
        return read_returned(torch.func.functional_call(self._loss_module, replaced, (batch,)), self.tasks)

    def check_functional(self) -> None:
        """Make sure that the model can be evaluated with replaced parameters.

        Raises:
            DuplicateModuleError: one submodule is registered under two names, which ``functional_call`` corrupts.
        """
        if self._duplicate is False:
            self._duplicate = _first_duplicate(self.model)
            scripted = [name for name, m in self.model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
            if scripted:
                self._duplicate = False
                raise InvalidInputError(
                    f"`model` must not be scripted to be evaluated at other parameters, got a ScriptModule at "
                    f"{scripted[0]!r}. Give the module that was scripted; what needs no replaced parameters works with "
                    "it."
                )
        if isinstance(self._duplicate, tuple):
            first, second = self._duplicate
            raise DuplicateModuleError(
                f"`model` must register each submodule once, got the same module as {first!r} and {second!r}. "
                "Keep one of them, or store the second reference outside the module tree, e.g. in a tuple."
            )


class ProblemView(Problem):
    """A problem whose losses are made into others: their logarithms, or some of them only.

    Everything else is the problem's own, what it remembers included.

    Args:
        problem: what is looked at.
        transform: from its losses to those of the view.
    """

    __slots__ = ("_transform", "_under")

    def __init__(self, problem: Problem, transform: Callable[[TaskLosses], TaskLosses]) -> None:
        self.__dict__ = problem.__dict__
        self._under = problem
        self._transform = transform

    def losses(self, batch: Any, *, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
        """The losses of the view."""
        return self._transform(self._under.losses(batch, parameters=parameters))


def _first_duplicate(model: nn.Module) -> tuple[str, str] | None:
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in seen:
            return seen[id(module)], name
        seen[id(module)] = name
    return None
