"""Where a backward pass is cut in two: at the features, between the heads and the trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from mtl_core.collecting.graph import (
    Leaf,
    Outputs,
    edge_of,
    edges_of,
    nodes_of,
    reached_by_any,
    roots_of,
    start_edge,
    start_of,
)
from mtl_core.errors import InvalidInputError

__all__ = ["cut_of", "heads_above"]

_TRUNK, _END = -1, -2
"""What an edge is to the heads' parameters, which have numbers from 0 on: a way past the features, or a feature."""


def heads_above(
    outputs: Outputs,
    names: Sequence[str],
    features: Sequence[Tensor],
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
) -> list[list[int]]:
    """Which of the heads' parameters each loss depends on, between it and the features.

    Raises:
        InvalidInputError: naming the tasks whose loss reaches the shared parameters past the features; or parameters of
            heads lie below the features, where their gradients would be lost.
    """
    # What the walk may meet, by edge, not by node: the pieces of one split are features of their own and share their
    # node. Taken for one another, a part of the gradient was lost. Parameters are told by themselves, since the node at
    # which a leaf's gradient arrives has to be asked for by a view. A feature may itself be a shared parameter: then it
    # is an end of the heads and no way past the features. A frozen tensor has no node in the graph.
    numbers = [k for k, h in enumerate(heads) if h.requires_grad]
    leaves: dict[int, int] = {}
    edges: dict[tuple[Node, int], int] = {}
    for tensor, role in (
        *((p, _TRUNK) for p in shared),
        *((heads[k], k) for k in numbers),
        *((z, _END) for z in features),
    ):
        made: Node | None = tensor.grad_fn
        if made is None:
            leaves[id(tensor)] = role
        else:
            edges[made, tensor.output_nr] = role
    found: list[list[int]] = []
    past: list[str] = []
    for name, root in zip(names, roots_of(outputs), strict=True):
        stack = [] if root is None else [start_edge(root)]
        seen = set(stack)
        own: list[int] = []
        while stack:
            edge = stack.pop()
            node: Any = edge[0]
            met = leaves.get(id(node.variable)) if node.__class__ is Leaf else edges.get(edge)
            if met is not None:
                if met == _END:
                    # The trunk begins here, which is not the heads'.
                    continue
                if met == _TRUNK:
                    past.append(name)
                    break
                own.append(met)
            for child in node.next_functions:
                if child[0] is not None and child not in seen:
                    seen.add(child)
                    stack.append(child)
        found.append(own)
    if past:
        whole = any(node.name().startswith(_COMPILED) for node in nodes_of(features))
        raise InvalidInputError(
            "`features` must be the only way from the shared parameters to the losses, got another way for tasks "
            f"{past}. "
            + (
                "A compiled graph that holds heads too cannot be cut: compile the trunk alone, and give all of its "
                "outputs, or leave `features` out."
                if whole
                else "Give in addition the tensor by which they get past, as it leaves the trunk, or leave `features` "
                "out."
            )
        )
    # Heads of absent tasks are above no loss either; only then is it worth to walk through the trunk.
    seldom = [heads[k] for k in set(numbers).difference(*found)]
    reached = reached_by_any(tuple(features), seldom) if seldom else []
    below_features = [h for h, ok in zip(seldom, reached, strict=True) if ok]
    if below_features:
        raise InvalidInputError(
            "`features` must be the trunk's outputs, from which heads start, got some that are computed by "
            f"{len(below_features)} parameters of heads, of shapes {[tuple(h.shape) for h in below_features[:4]]}. "
            "Give the tensors as they leave the trunk, or leave `features` out."
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
    edges = {edge: i for i, edge in enumerate(edges_of(features))}
    trunk = set(edges_of(shared))
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
    start = edge_of(feature)
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


_COMPILED = "CompiledFunction"
"""How the node of a graph that was compiled as a whole is called."""


def _refuse_compiled(features: Sequence[Tensor], outputs: Outputs) -> None:
    """Make sure that the losses are computed from the features, and not beside them in one compiled graph."""
    # A compiled graph is one node with several outputs. Where losses and features are outputs of the same node, no
    # backward pass can start at the one and stop at the other.
    made = {node for node in nodes_of(features) if node.name().startswith(_COMPILED)}
    if made and any(root is not None and start_of(root) in made for root in roots_of(outputs)):
        raise InvalidInputError(
            "`features` must lie between the trunk and the losses, got features and losses that leave one compiled "
            "graph together. Compile the trunk alone and compute the heads and losses outside, or leave `features` out."
        )
