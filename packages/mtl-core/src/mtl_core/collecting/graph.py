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
    "Outputs",
    "Root",
    "batches_well",
    "check_attached",
    "edge_of",
    "edges_of",
    "is_compiled",
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
    """Entry ``i`` of losses that were computed as one tensor."""

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
            "Look for .detach(), torch.no_grad() or .item() on the way, or leave these tasks out.",
            tasks=detached,
        )


def check_attached(outputs: Outputs, names: Sequence[str], shared: Sequence[Tensor]) -> None:
    """Make sure that each loss depends on the shared parameters, by its graph and without differentiating.

    Raises:
        DetachedLossError: naming the tasks whose loss does not.
    """
    reached = _reach(roots_of(outputs), shared)
    refuse_detached([name for name, ok in zip(names, reached, strict=True) if not ok], "shared parameters")


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
    found: list[tuple[Node, int]] = []
    # Where gradients are switched off a view has no node.
    with torch.enable_grad():
        for tensor in tensors:
            made: Any = tensor.grad_fn
            if made is None:
                view: Any = tensor.view_as(tensor)
                made = view.grad_fn.next_functions[0][0]
            found.append((made, tensor.output_nr))
    return found


def nodes_of(tensors: Iterable[Tensor]) -> list[Node]:
    """The node at which the gradient by each tensor arrives."""
    return [node for node, _ in edges_of(tensors)]


def start_of(root: Tensor | GradientEdge | Joint) -> Node:
    """The node that a backward pass begins with."""
    return start_edge(root)[0]


def _reach(roots: Sequence[Root], targets: Sequence[Tensor]) -> list[bool]:
    """Whether the graph of each root leads to some target."""
    # Kept from root to root, so that the shared trunk is walked once, not once a task. The stack is explicit because a
    # recursion would meet Python's limit in deep models.
    known: dict[Node, bool] = dict.fromkeys(nodes_of(targets), True)
    reached = []
    for root in roots:
        if root is None:
            reached.append(False)
            continue
        start = start_of(root)
        stack = [(start, False)]
        while stack:
            node, expanded = stack.pop()
            children = [child for child, _ in node.next_functions if child is not None]
            if expanded:
                known[node] = any(known[child] for child in children)
            elif node not in known:
                stack.append((node, True))
                stack.extend((child, False) for child in children if child not in known)
        reached.append(known[start])
    return reached


def is_compiled(outputs: Outputs) -> bool:
    """Whether some part of the graph was made by ``torch.compile``, whose backward passes cannot be batched."""
    seen: set[Node] = set()
    stack = [start_of(root) for root in roots_of(outputs) if root is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node.name().startswith("CompiledFunction"):
            return True
        seen.add(node)
        stack.extend(child for child, _ in node.next_functions if child is not None)
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
