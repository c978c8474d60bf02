"""The graph under task losses: where backward passes start, and which leaves they reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtl_core.errors import DetachedLossError

__all__ = [
    "Joint",
    "Leaf",
    "Outputs",
    "Root",
    "Ways",
    "batches_well",
    "check_attached",
    "edge_of",
    "edges_of",
    "is_compiled",
    "made_by",
    "nodes_of",
    "reached_by_any",
    "refuse_detached",
    "roots_of",
    "start_edge",
    "start_of",
]

Outputs = tuple[Tensor, ...] | Tensor
"""Task losses: one scalar each, or one tensor ``[k]`` that was computed jointly."""


class Joint:
    """Entry ``i`` of ``losses`` ``[m]`` that were computed as one tensor."""

    def __init__(self, losses: Tensor, i: int) -> None:
        self.losses = losses
        self.i = i


Root = Tensor | GradientEdge | Joint | None
"""What one task's backward pass starts from; ``None`` where the loss has no graph at all."""


def roots_of(outputs: Outputs) -> list[Root]:
    """One root per task.

    A stack is taken apart. Going through it would run every task's head in every task's pass, with a gradient of zero
    for the other tasks: time lost, gradients of zero where there should be none, and NaN where zero meets an infinite
    derivative in another task's head.
    """
    if not isinstance(outputs, Tensor):
        return [loss if loss.requires_grad else None for loss in outputs]
    if not outputs.requires_grad:
        return [None] * len(outputs)
    stack = outputs.grad_fn
    if stack is not None and stack.name().startswith("StackBackward"):
        # Edges in place of the scalars, which nothing may hold any more: a caller may have stacked and dropped them.
        # An input without a graph has no node: the loss of a detached task.
        return [None if node is None else GradientEdge(node, nr) for node, nr in stack.next_functions]
    return [Joint(outputs, i) for i in range(len(outputs))]


def refuse_detached(detached: Sequence[str], what: str) -> None:
    """Raise ``DetachedLossError`` if there are tasks to name."""
    if detached:
        raise DetachedLossError(
            f"the losses of tasks {list(detached)} must depend on the {what}, got none that do. "
            "Look for .detach(), torch.no_grad() or .item() on the way, and for another model than the one that the "
            "losses are given; or leave these tasks out.",
            tasks=detached,
        )


Ways = dict[str, tuple[int, ...]]
"""By task, which way its graph was seen to lead to a shared parameter: at each node, which of the next ones."""


def check_attached(outputs: Outputs, names: Sequence[str], shared: Sequence[Tensor], ways: Ways | None = None) -> None:
    """Make sure that each loss depends on the shared parameters, by its graph and without differentiating.

    Args:
        outputs: the losses.
        names: their tasks.
        shared: the shared parameters.
        ways: what earlier calls have found, which is tried first, and kept up to date.

    Raises:
        DetachedLossError: naming the tasks whose loss does not.
    """
    targets = {id(tensor) for tensor in shared}
    ways = {} if ways is None else ways
    detached: list[str] = []
    for name, root in zip(names, roots_of(outputs), strict=True):
        start = None if root is None else start_of(root)
        if start is None or not (name in ways and _leads(start, ways[name], targets)):
            way = None if start is None else _way(start, targets)
            if way is None:
                detached.append(name)
            else:
                ways[name] = way
    refuse_detached(detached, "shared parameters")


def reached_by_any(outputs: Outputs, targets: Sequence[Tensor]) -> list[bool]:
    """Which of the targets some loss depends on, by the graph."""
    # All losses share one set of visited nodes: the question is about any of them, and the trunk is walked once.
    stack = [start_of(root) for root in roots_of(outputs) if root is not None]
    seen = set(stack)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return [node in seen for node in nodes_of(targets)]


def edge_of(tensor: Tensor) -> tuple[Node, int]:
    """The node that made a tensor, and which of its outputs the tensor is: those of a split are told apart by it."""
    (found,) = edges_of((tensor,))
    return found


def start_edge(root: Tensor | GradientEdge | Joint) -> tuple[Node, int]:
    """The node that a backward pass begins with, and at which of its outputs."""
    if isinstance(root, GradientEdge):
        return root.node, root.output_nr
    return edge_of(root.losses if isinstance(root, Joint) else root)


def edges_of(tensors: Iterable[Tensor]) -> list[tuple[Node, int]]:
    """As ``edge_of``, for many; leaves have a node of their own, which only a view shows.

    ``get_gradient_edge`` switches gradients on and off for every leaf: for a small model that took as long as a
    backward pass.
    """
    listed = tuple(tensors)
    made: list[Any] = [tensor.grad_fn for tensor in listed]
    if None in made:
        # Where gradients are switched off a view has no node.
        with torch.enable_grad():
            views: list[Any] = [t.view_as(t) if node is None else None for t, node in zip(listed, made, strict=True)]
            made = [node or view.grad_fn.next_functions[0][0] for node, view in zip(made, views, strict=True)]
    return [(node, tensor.output_nr) for node, tensor in zip(made, listed, strict=True)]


def nodes_of(tensors: Iterable[Tensor]) -> list[Node]:
    """The node at which the gradient by each tensor arrives."""
    return [node for node, _ in edges_of(tensors)]


def start_of(root: Tensor | GradientEdge | Joint) -> Node:
    """The node that a backward pass begins with."""
    if isinstance(root, GradientEdge):
        return root.node
    losses = root.losses if isinstance(root, Joint) else root
    made = losses.grad_fn
    return edge_of(losses)[0] if made is None else made


Leaf: Any = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
"""The class of the nodes at which the gradients of leaves arrive; each has its leaf as ``variable``."""


def _is_leaf(node: Any, targets: set[int]) -> bool:
    return node.__class__ is Leaf and id(node.variable) in targets


def _leads(start: Node, way: Sequence[int], targets: set[int]) -> bool:
    """Whether this way still ends at a target: a few look-ups, where a search would take as long as small layers do."""
    node: Node | None = start
    for k in way:
        below = () if node is None else node.next_functions
        if k >= len(below):
            return False
        node = below[k][0]
    return _is_leaf(node, targets)


def _way(start: Node, targets: set[int]) -> tuple[int, ...] | None:
    """The shortest way from a node to some target, a leaf given by its ``id``."""
    above: dict[Node, tuple[Node, int] | None] = {start: None}
    queue = [start]
    # The queue grows while it is gone through: what is nearest comes first.
    for node in queue:
        if _is_leaf(node, targets):
            way: list[int] = []
            step = above[node]
            while step is not None:
                way.append(step[1])
                step = above[step[0]]
            return tuple(way[::-1])
        for k, (child, _) in enumerate(node.next_functions):
            if child is not None and child not in above:
                above[child] = (node, k)
                queue.append(child)
    return None


def is_compiled(outputs: Outputs) -> bool:
    """Whether some part of the graph was made by ``torch.compile``, whose backward passes cannot be batched."""
    return made_by(outputs, "CompiledFunction")


def made_by(outputs: Outputs, function: str) -> bool:
    """Whether some node of the graph has a name that begins with this one."""
    stack = [start_of(root) for root in roots_of(outputs) if root is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name().startswith(function):
            return True
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return False


_BATCHED = frozenset(
    f"{name}Backward{overload}"
    for overload in "01"
    for name in (
        "Add",
        "Addmm",
        "AvgPool2D",
        "Convolution",
        "Elu",
        "Gelu",
        "LeakyRelu",
        "MaxPool2DWithIndices",
        "Mean",
        "Mm",
        "Mul",
        "NativeLayerNorm",
        "Relu",
        "Sigmoid",
        "Silu",
        "Softplus",
        "Sub",
        "T",
        "Tanh",
        "View",
    )
) | {"torch::autograd::AccumulateGrad"}
"""Operations whose backward passes `vmap` takes many at a time, without a loop of its own."""


def batches_well(starts: Sequence[Tensor], most: int) -> bool:
    """Whether the graph below ``starts`` knows only operations that batch, and gradients of ``most`` entries in all."""
    entries = 0
    stack = nodes_of(starts)
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() not in _BATCHED:
            return False
        # The size of what enters each operation's backward pass, which batching multiplies by the number of tasks.
        # Torch has no public name for it.
        entries += sum(math.prod(place.shape) for place in node._input_metadata)
        if entries > most:
            return False
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return True
