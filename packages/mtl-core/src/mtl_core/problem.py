"""A multi-task problem: a model, its task losses, and which of its parameters all tasks share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtl_core.collecting.graph import Ways
from mtl_core.distributed import is_sharded, reshard
from mtl_core.errors import InvalidInputError, NoLossesError, NoSharedParametersError
from mtl_core.functional import Functional
from mtl_core.listing import Listing, Walk, all_shared, modules_of
from mtl_core.recomputation import without_recomputation
from mtl_core.shared_parameters import Shared, SharedSpec
from mtl_core.task_losses import TaskLosses, read_returned
from mtl_core.user_losses import called
from mtl_core.wrapped_models import refuse_wrapped

__all__ = ["Problem"]


class Problem:
    r"""A model with ``m`` task losses :math:`L_1(\theta, h_1), \dots, L_m(\theta, h_m)`.

    The shared parameters :math:`\theta \in \mathbb{R}^d` are those the tasks compete for; every other trainable
    parameter is a head.

    Args:
        model: the network. Give the bare module, not its ``DistributedDataParallel`` wrapper.
        losses: ``losses(model, batch)`` returns the losses as a tensor ``[m]`` in the order of ``tasks``, or as a
            mapping from task name to scalar, in which a task that is missing or ``None`` is absent from this batch. To
            save work it may return ``(losses, features)``, with the trunk's outputs from which all heads start: then
            each head is differentiated once, and only the trunk once per task; features that the losses get past are
            refused by every method. It must reach the parameters through the ``model`` it is given, not through a name
            of the enclosing scope. A step may evaluate it many times, and
            puts back buffers of the model alone: a criterion that trains or counts is to be a part of ``model``.
        shared: which parameters are shared: a submodule of ``model``, parameters, modules, or name patterns
            (``"trunk"``, ``"encoder.*.weight"``; matched against ``model.named_parameters()``). A module, or a pattern,
            is looked up anew where the model has changed: what comes into a shared module is shared.
        tasks: the tasks' names, in order.

    Attributes:
        graph_checked: whether a step has looked through the graph of the losses, for what no step can follow.
        foreign: trainable parameters that the optimiser of the last step holds and the model does not have.
        ways: by which way each task's graph was last seen to lead to the shared parameters.
        differentiates: whether the losses were seen to differentiate by themselves, so that they need a graph wherever
            they are evaluated.
        under_way: what undoes the step that is being made, if one is.
        within: the call that makes this step.
        told: the parameters of which it was said that no optimiser holds them.

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
        refuse_wrapped(modules_of(model))
        if isinstance(tasks, str):
            raise InvalidInputError(f"`tasks` must be a sequence of names, got the single string {tasks!r}.")
        self.tasks: tuple[str, ...] = tuple(tasks)
        if not self.tasks:
            raise NoLossesError("`tasks` must name at least one task, got none.")
        if len(set(self.tasks)) != len(self.tasks):
            raise InvalidInputError(f"`tasks` must be distinct, got {self.tasks}.")
        self.model = model
        self._loss_fn = losses
        self._functional = Functional(model, losses)
        self._shared = Shared(model, shared)
        self.graph_checked, self.foreign = False, ()
        self.ways: Ways = {}
        self.differentiates = False
        self.under_way: Any = None
        self.within: FrameType | None = None
        self.told: set[tuple[str, ...]] = set()
        self._now: Listing | None = None
        self._depth = 0
        self._hooks: OrderedDict[int, Callable[[Any], object]] = OrderedDict()
        if not self.shared:
            raise NoSharedParametersError(
                f"`shared` must hold at least one trainable parameter, got {len(self._shared.places)} parameter(s), "
                "all frozen. Set requires_grad=True on what the tasks are to share."
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

    def list_now(self) -> None:
        """Look through the model once, instead of at each question; its parameters must then stay the same objects.

        A sharded model is always looked through anew, since a forward pass puts other objects in the places of its
        parameters.

        Raises:
            InvalidInputError: the model has changed since, and what was named as shared is not found in it, or it
                cannot be told whether what came in is to be shared.
        """
        self._now = None
        found = self._look(strictly=True)
        self._now = None if is_sharded(found.shared) else found

    def forget_listing(self) -> None:
        """Look through the model at each question again."""
        self._now = None

    def end_step(self) -> None:
        """Take no step to be under way, and look through the model at each question again."""
        self.under_way = self.within = None
        self._depth = 0
        self.forget_listing()

    def _look(self, *, strictly: bool = False) -> Listing:
        """Look through the model; a change of what it is made of is followed, but not within a step.

        Args:
            strictly: refuse a change that cannot be followed. An adapter that is attached by hand is one, and may be
                looked at; it is no step.
        """
        walk = Walk(self.model)
        # A search within a step may put parts of its own into the model for a while, which nobody named.
        with nullcontext() if strictly else suppress(InvalidInputError):
            if self.under_way is None and self._shared.follow(self.model, walk):
                self._functional.forget()
                self.graph_checked = False
        return Listing(walk, self._shared.places)

    @property
    def listing(self) -> Listing:
        """The model's modules and parameters."""
        return self._look() if self._now is None else self._now

    @property
    def named_shared(self) -> dict[str, nn.Parameter]:
        """The shared parameters that are trainable now, by their name in the model."""
        return self.listing.named_shared

    @property
    def shared(self) -> tuple[nn.Parameter, ...]:
        """The shared parameters that are trainable now, in the model's order."""
        return self.listing.shared

    @property
    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter of the model that is trainable now, shared or of a head, by its name in the model."""
        return self.listing.named_trainable

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Names of ``shared`` in the model."""
        return tuple(self.named_shared)

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Names of the shared parameters that are frozen now."""
        return tuple([name for name, p in self.listing.all_shared.items() if not p.requires_grad])

    @property
    def heads(self) -> tuple[nn.Parameter, ...]:
        """Every other trainable parameter of the model."""
        return self.listing.heads

    @property
    def is_sharded(self) -> bool:
        """Whether the shared parameters are shards of a model that lies on several ranks."""
        # Within a step on a listing they are not, or there would be none.
        return self._now is None and is_sharded(tuple(all_shared(self._shared.places).values()))

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
        depth = self._depth
        try:
            self._depth = depth + 1
            yield self._report
        finally:
            # Not one less: an interrupt may have come before it was one more.
            self._depth = depth

    def _report(self, report: Any) -> None:
        if self._depth == 0:
            for hook in tuple(self._hooks.values()):
                hook(report)

    def losses(self, batch: Any, *, parameters: Mapping[str, Tensor] | None = None) -> TaskLosses:
        """Evaluate the task losses on one batch.

        What the losses do to ``.grad`` of the model's parameters, as by a backward pass of their own, is taken back.

        Args:
            batch: whatever the user's function takes.
            parameters: tensors to use in place of the model's own, by qualified name. The model is not touched, and the
                result is differentiable with respect to them. A parameter tied under several names is replaced under
                all of them.
                They are in their places for the forward pass alone, so that activations must be saved: a model that
                recomputes them in the backward pass is evaluated within ``mtl_core.extension.placed``, backward pass
                included, instead.

        Returns:
            The losses of the tasks that are present, with the graph that leads to them.

        Raises:
            NoLossesError: no task is present.
            NonScalarLossError: a task's loss is not a scalar tensor.
            DuplicateModuleError: ``parameters`` is given and the model registers one submodule under two names.
            NoMatchError: ``parameters`` names what the model does not have.
            InvalidInputError: the user's function returned something else, an unknown task, or the wrong number of
                losses; or ``parameters`` is given, and activations are recomputed (``torch.utils.checkpoint``) or saved
                with hooks, the model is scripted, or a parameter to be replaced is sharded.
        """
        if parameters is None:
            sharded = self.is_sharded
            returned = called(self.named_trainable.values(), self._loss_fn, self.model, batch)
            # The root of a sharded model keeps whole parameters after a forward pass: their gradients would be sought
            # under other objects than those that the step lists.
            if sharded:
                reshard(self.model)
            return read_returned(returned, self.tasks)
        functional, trainable = self._functional, self.named_trainable.values()
        functional.check(parameters)
        return without_recomputation(
            lambda: read_returned(called(trainable, functional.evaluate, parameters, batch), self.tasks)
        )

    def check_functional(self) -> None:
        """Make sure that the model can be evaluated with replaced parameters.

        Raises:
            DuplicateModuleError: one submodule is registered under two names, which ``functional_call`` corrupts.
            InvalidInputError: the model is scripted.
        """
        self._functional.check()
