"""What is looked for in the graph of the losses, once: parameters without a gradient, and ways past the features."""

from __future__ import annotations

from typing import Any

from mtl_core.collecting.cut import cut_of, heads_above
from mtl_core.collecting.graph import reached_by_any
from mtl_core.collecting.reentrant import refuse_reentrant
from mtl_core.errors import InvalidInputError
from mtl_core.problem import Problem
from mtl_core.task_losses import TaskLosses

__all__ = ["check_graph_once", "note_foreign"]


def note_foreign(problem: Problem, optimizer: Any, n_own: int) -> None:
    """Remember which trainable parameters an optimiser holds that are not the model's, for the look at the graph.

    Such are no matter by themselves, as where one optimiser serves two models.

    Args:
        problem: the problem.
        optimizer: the optimiser.
        n_own: how many of the model's trainable parameters it holds.
    """
    foreign: tuple[Any, ...] = ()
    if sum([len(group["params"]) for group in optimizer.param_groups]) > n_own:
        own = {id(p) for p in problem.named_trainable.values()}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        foreign = tuple([p for p in held if id(p) not in own and p.requires_grad])
    if (foreign or problem.foreign) and list(map(id, foreign)) != list(map(id, problem.foreign)):
        # Others than those by which the graph was looked through.
        problem.foreign, problem.graph_checked = foreign, False


def check_graph_once(problem: Problem, losses: TaskLosses) -> None:
    """Look through the graph of the losses, once: such a walk takes as long as a small step.

    Raises:
        InvalidInputError: it has reentrant checkpoints, or leads to parameters that the optimiser is to train and that
            are not the model's; or there are features through which it cannot be cut.
    """
    if problem.graph_checked:
        return
    outputs = losses.outputs
    refuse_reentrant(outputs)
    if losses.features is not None and not problem.is_sharded:
        # A method on losses makes no use of features. It refuses wrong ones all the same, so that a problem that works
        # with one method works with all.
        features = cut_of(losses.features, outputs, problem.shared)
        heads_above(outputs, losses.tasks, features, problem.shared, problem.heads)
    if problem.foreign:
        found = reached_by_any(outputs, problem.foreign)
        shapes = [str(tuple(p.shape)) for p, is_reached in zip(problem.foreign, found, strict=True) if is_reached]
        if shapes:
            raise InvalidInputError(
                "`losses` must depend on no parameter that the optimiser holds and the model does not have, got "
                f"{len(shapes)} of shapes {', '.join(shapes[:4])}{', …' if len(shapes) > 4 else ''}: a step gives them "
                "no gradient, and they would not move. Make their module one of the model's, as in "
                "model.criterion = criterion before the problem is made, or leave them out of the optimiser."
            )
    problem.graph_checked = True
