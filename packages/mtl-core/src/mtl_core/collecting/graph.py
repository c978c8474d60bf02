"""The graph under task losses: where backward passes start, and which leaves they reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from mtl_core.errors import DetachedLossError, InvalidInputError

__all__ = [
    "Joint",
    "Outputs",
    "Root",
    "batches_well",
    "check_attached",
    "cut_of",
    "heads_above",
    "is_compiled",
    "reached_by_any",
    "refuse_detached",
    "roots_of",
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
    stack = [_start_of(root) for root in roots_of(outputs) if root is not None]
    seen = set(stack)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return [node in seen for node in _nodes(targets)]


def _node(tensor: Tensor) -> Node:
    return get_gradient_edge(tensor).node


def _edge(tensor: Tensor) -> tuple[Node, int]:
    """The node that made a tensor, and which of its outputs the tensor is: those of a split are told apart by it."""
    (found,) = _edges((tensor,))
    return found


def _start_edge(root: Tensor | GradientEdge | Joint) -> tuple[Node, int]:
    if isinstance(root, GradientEdge):
        return root.node, root.output_nr
    return _edge(root.losses if isinstance(root, Joint) else root)


def _edges(tensors: Iterable[Tensor]) -> list[tuple[Node, int]]:
    """As ``_edge``, for many; leaves have a node of their own, which only a view shows.

    ``get_gradient_edge`` switches gradients on and off for every leaf: for a small model that took as long as a
    backward pass.
    """
    found: list[tuple[Node, int]] = []
    with torch.enable_grad():
        for tensor in tensors:
            made: Any = tensor.grad_fn
            if made is None:
                view: Any = tensor.view_as(tensor)
                made = view.grad_fn.next_functions[0][0]
            found.append((made, tensor.output_nr))
    return found


def _nodes(tensors: Iterable[Tensor]) -> list[Node]:
    """The node at which the gradient by each tensor arrives."""
    return [node for node, _ in _edges(tensors)]


def _start_of(root: Tensor | GradientEdge | Joint) -> Node:
    if isinstance(root, GradientEdge):
        return root.node
    return _node(root.losses if isinstance(root, Joint) else root)


def _reach(roots: Sequence[Root], targets: Sequence[Tensor]) -> list[bool]:
    """Whether the graph of each root leads to some target."""
    # Kept from root to root, so that the shared trunk is walked once, not once a task. The stack is explicit because a
    # recursion would meet Python's limit in deep models.
    known: dict[Node, bool] = dict.fromkeys(_nodes(targets), True)
    reached = []
    for root in roots:
        if root is None:
            reached.append(False)
            continue
        start = _start_of(root)
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
    stack = [_start_of(root) for root in roots_of(outputs) if root is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node.name().startswith("CompiledFunction"):
            return True
        seen.add(node)
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return False


def heads_above(
    outputs: Outputs,
    names: Sequence[str],
    features: Sequence[Tensor],
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
) -> list[list[int]]:
    """Which of the heads' parameters each loss depends on, between it and the features.

    Raises:
        InvalidInputError: naming the tasks whose loss reaches the shared parameters past the features.
    """
    # A feature may itself be a shared parameter: then it is an end of the heads and no way past the features.
    numbers = [k for k, h in enumerate(heads) if h.requires_grad]
    edges = _edges([*features, *shared, *[heads[k] for k in numbers]])
    below = len(features) + len(shared)
    ends = set(edges[: len(features)])
    trunk = set(edges[len(features) : below]) - ends
    places = dict(zip(edges[below:], numbers, strict=True))
    found: list[list[int]] = []
    past: list[str] = []
    for name, root in zip(names, roots_of(outputs), strict=True):
        # Ends count as seen, so that the walk stops at them and leaves the trunk alone.
        seen = set(ends)
        stack = [] if root is None else [edge for edge in (_start_edge(root),) if edge not in seen]
        seen.update(stack)
        own: list[int] = []
        while stack:
            edge = stack.pop()
            if edge in trunk:
                past.append(name)
                break
            if edge in places:
                own.append(places[edge])
            for child, output in edge[0].next_functions:
                if child is not None and (child, output) not in seen:
                    seen.add((child, output))
                    stack.append((child, output))
        found.append(own)
    if past:
        raise InvalidInputError(
            "`features` must be the only way from the shared parameters to the losses, got another way for tasks "
            f"{past}. "
            "Give in addition the tensor by which they get past, as it leaves the trunk, or leave `features` out."
        )
    return found


def cut_of(features: Sequence[Tensor], outputs: Outputs, shared: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The features through which a backward pass may be cut in two, none of them computed from another.

    The gradient by a feature counts what reaches it through the others. Where one of them is computed from another, its
    part would go through the trunk a second time. One that depends on the trunk by others only adds nothing to the cut
    and is left out.

    Args:
        features: the trunk's outputs, each once.
        outputs: the losses, for the diagnosis of a compiled model.
        shared: the shared parameters.

    Raises:
        InvalidInputError: one feature depends on another and, besides, on the trunk by a way of its own; or the losses
            leave one compiled graph together with the features.
    """
    if len(features) < 2:
        _refuse_compiled(features, outputs)
        return tuple(features)
    edges = {edge: i for i, edge in enumerate(_edges(features))}
    trunk = set(_edges(shared))
    kept: list[Tensor] = []
    for i, z in enumerate(features):
        above, beside = _ends(z, edges, trunk)
        # One that depends on others and on nothing else of the trunk is dropped: the others' gradients carry its part.
        if not above:
            kept.append(z)
        elif beside:
            raise InvalidInputError(
                f"`features` must not be computed from one another, got entry {i}, which depends on "
                f"entries {sorted(above)} and on the trunk besides: its part of the gradient would count twice. Give "
                "the tensors that leave the trunk, before they are combined, or leave `features` out."
            )
    _refuse_compiled(kept, outputs)
    return tuple(kept)


def _ends(feature: Tensor, edges: dict[tuple[Node, int], int], trunk: set[tuple[Node, int]]) -> tuple[set[int], bool]:
    """Which other features one is computed from, and whether it reaches a shared parameter past them."""
    start = _edge(feature)
    above: set[int] = set()
    beside = False
    stack = [(child, output) for child, output in start[0].next_functions if child is not None]
    seen = set(stack)
    while stack:
        edge = stack.pop()
        if edge in edges:
            # Not through it: what lies beyond is the other feature's own way to the trunk.
            above.add(edges[edge])
            continue
        beside |= edge in trunk
        for child, output in edge[0].next_functions:
            if child is not None and (child, output) not in seen:
                seen.add((child, output))
                stack.append((child, output))
    return above, beside


def _refuse_compiled(features: Sequence[Tensor], outputs: Outputs) -> None:
    """Make sure that the losses are computed from the features, and not beside them in one compiled graph."""
    # A compiled graph is one node with several outputs. Where losses and features are outputs of the same node, no
    # backward pass can start at the one and stop at the other.
    made = {node for node in _nodes(features) if node.name().startswith("CompiledFunction")}
    if made and any(root is not None and _start_of(root) in made for root in roots_of(outputs)):
        raise InvalidInputError(
            "`features` must lie between the trunk and the losses, got features and losses that leave one compiled "
            "graph together. Compile the trunk alone and compute the heads and losses outside, or leave `features` out."
        )


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
    stack = _nodes(starts)
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() not in _BATCHED:
            return False
        # The size of what enters each operation's backward pass, which batching multiplies by the number of tasks.
        entries += sum(math.prod(place.shape) for place in node._input_metadata)
        if entries > most:
            return False
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return True
