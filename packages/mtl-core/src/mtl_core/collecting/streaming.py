r"""The Gramian without the Jacobian: one backward sweep for all tasks at once, parameter block by parameter block.

A Jacobian ``[m, d]`` costs ``m`` copies of the shared parameters, but all that most methods look at is
:math:`J J^\top`, a sum over parameters. So the graph is cut into groups of operations, from the losses down. Each group
is differentiated for every task, its parameters' gradients go into the Gramian and are forgotten, and only the
gradients at the cut are carried on. What remains in memory is one cut's activations per task and one block's gradients
per task.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

from mtl_core.collecting.flat import flat_size
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collecting.graph import Joint, Outputs, Root, refuse_detached, roots_of

__all__ = ["streamed_gramian"]

Edge = tuple[Node, int]


@dataclass
class _Group:
    """Operations that are differentiated together, and the edges that lead out of them."""

    nodes: set[Node] = field(default_factory=set)
    leaving: dict[Edge, None] = field(default_factory=dict)
    parameters: int = 0
    linear: _Linear | None = None
    by_itself: bool = False
    """One operation, called directly: one of its inputs is computed from another, as in ``x + f(x)``.

    Asked for the gradients by both, autograd would also run through ``f`` and count its part at ``x``; the group of
    ``f`` would count it again.
    """


@dataclass(frozen=True)
class _Linear:
    """A matrix product whose weight gradient is formed slice by slice."""

    node: Node
    weight: Node
    rows: Tensor
    """The product's left factor ``[n, in]``; the weight's gradient is ``rows.T @ delta``."""


def streamed_gramian(
    outputs: Outputs, names: Sequence[str], shared: Sequence[Tensor], heads: Sequence[Tensor], *, block: int
) -> tuple[Tensor, list[tuple[Tensor | None, ...]]]:
    """The Gramian ``[k, k]`` of ``k`` tasks' gradients, and their heads' gradients.

    Args:
        outputs: the losses; their graph is kept.
        names: the tasks' names, for messages.
        shared: the shared parameters.
        heads: the heads' parameters.
        block: how many gradient entries per task may be held at a time. A single operation's parameters may exceed it,
            unless it is a matrix product, which is cut up.

    Returns:
        float64 ``[k, k]``, and one row of gradients by each head per task.
    """
    roots = [_start(root) for root in roots_of(outputs)]
    refuse_detached([name for name, root in zip(names, roots, strict=True) if root is None], "shared parameters")
    starts = [root for root in roots if root is not None]
    sweep = _Sweep([edge for edge, _ in starts], shared, heads, block)
    return sweep.run(names, starts)


def _start(root: Root) -> tuple[Edge, Tensor | None] | None:
    """The edge at which a task's backward pass enters the graph, and the gradient it starts with."""
    if root is None:
        return None
    if isinstance(root, GradientEdge):
        return (root.node, root.output_nr), None
    seed: Tensor | None = None
    if isinstance(root, Joint):
        seed = torch.zeros_like(root.losses)
        seed[root.i] = 1.0
        root = root.losses
    edge = torch.autograd.graph.get_gradient_edge(root)
    return (edge.node, edge.output_nr), seed


class _Sweep:
    """One pass over the graph, from the losses to the parameters."""

    def __init__(self, starts: Sequence[Edge], shared: Sequence[Tensor], heads: Sequence[Tensor], block: int) -> None:
        # A leaf has no grad_fn: its edge leads to the node that accumulates its gradient, which is what the graph
        # names.
        accumulate = torch.autograd.graph.get_gradient_edge
        self.shared = {accumulate(p).node: k for k, p in enumerate(shared)}
        self.heads = {accumulate(p).node: k for k, p in enumerate(heads)}
        self.sizes = {accumulate(p).node: flat_size(p) for p in shared}
        self.block = block
        self.parameters = list(shared)
        self.order = self._order({node for node, _ in starts})
        self.uses = self._uses()
        self.reach = self._reach()
        self.groups = self._group()
        # Later groups overwrite earlier ones: the group after which a node's gradient is complete. A sliced weight has
        # none, since the transpose above it belongs to no group: nothing is held for it.
        self.last = {
            child: k for k, group in enumerate(self.groups) for node in group.nodes for child in _children(node)
        }

    def _order(self, starts: set[Node]) -> list[Node]:
        """The nodes that lead to a wanted parameter, each before those its gradient goes to, latest operation first."""
        needed: dict[Node, bool] = {}
        targets = self.shared.keys() | self.heads.keys()
        # With a stack of its own: a recursion would meet Python's limit at about a thousand operations in a row.
        stack = [(node, False) for node in starts]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                needed[node] = node in targets or any(needed[c] for c in _children(node))
            elif node not in needed:
                stack.append((node, True))
                stack.extend((c, False) for c in _children(node) if c not in needed)
        waiting = dict.fromkeys(needed, 0)
        for node in needed:
            for child in _children(node):
                waiting[child] += 1
        # A node is ready once all users of its result have been visited. The sequence number alone would not do as an
        # order, for each thread counts its own forward operations. Among the ready nodes it picks the one that the
        # forward pass made last, as autograd's engine does, so that the groups follow the forward pass backwards and
        # few gradients wait at the cut. The count breaks ties, since nodes cannot be compared.
        ready = [(-node._sequence_nr(), k, node) for k, node in enumerate(n for n in needed if not waiting[n])]
        heapq.heapify(ready)
        order: list[Node] = []
        count = len(ready)
        while ready:
            node = heapq.heappop(ready)[2]
            if needed[node] and node not in targets:
                order.append(node)
            for child in _children(node):
                waiting[child] -= 1
                if not waiting[child]:
                    count += 1
                    heapq.heappush(ready, (-child._sequence_nr(), count, child))
        self.needed = needed
        return order

    def _uses(self) -> dict[Node, int]:
        """How often each operation's result is used."""
        uses: dict[Node, int] = {}
        for node in self.order:
            for child, _ in node.next_functions:
                # Not by _children, a set: an operation that takes one result twice uses it twice.
                if child is not None:
                    uses[child] = uses.get(child, 0) + 1
        return uses

    def _reach(self) -> dict[Node, int]:
        """Which nodes each node leads to, as bits."""
        # Integers as sets of bits: one operation unites two of them, whatever their size.
        bits = {node: 1 << k for k, node in enumerate([*self.shared, *self.heads, *self.order])}
        reach = dict.fromkeys(bits, 0)
        for node in reversed(self.order):
            for child in _children(node):
                if child in bits:
                    reach[node] |= bits[child] | reach[child]
        self.bits = bits
        return reach

    def _is_clean(self, leaving: dict[Edge, None]) -> bool:
        """Whether no edge leads on to another.

        Asked for the gradients at two edges of which one leads to the other, autograd goes on from the first and adds
        its part to the second. The next group starts from both, so that this part would be counted twice.
        """
        ends = {node for node, _ in leaving}
        mask = sum(self.bits[node] for node in ends)
        return not any(self.reach[node] & mask for node in ends)

    def _group(self) -> list[_Group]:
        groups: list[_Group] = []
        absorbed: set[Node] = set()
        current = _Group()
        # Groups are consecutive stretches of the order: when one begins, every gradient that enters it has arrived.
        for node in self.order:
            if node in absorbed:
                continue
            edges = {(c, nr): None for c, nr in node.next_functions if c is not None and self.needed[c]}
            linear = self._as_linear(node)
            if linear is not None:
                others = {edge: None for edge in edges if linear.weight not in _children(edge[0])}
                # The product becomes a group that leads everywhere but to its weight, whose gradient is never formed
                # whole.
                if self._is_clean(others):
                    absorbed.update(edge[0] for edge in edges if edge not in others)
                    groups += [current, _Group({node}, others, linear=linear)]
                    current = _Group()
                    continue
            added = sum(self.sizes.get(child, 0) for child in _children(node))
            leaving = {edge: None for edge in current.leaving if edge[0] is not node} | edges
            # Only operations with parameters fill a block; those without are free to join any group.
            full = added and current.parameters + added > self.block
            if current.nodes and (full or not self._is_clean(leaving)):
                groups.append(current)
                current, leaving = _Group(), edges
            current.nodes.add(node)
            current.leaving = leaving
            current.parameters += added
            # Still not clean, though the group holds this operation only: its inputs depend on one another.
            if not self._is_clean(leaving):
                current.by_itself = True
                groups.append(current)
                current = _Group()
        return [group for group in [*groups, current] if group.nodes]

    def _as_linear(self, node: Node) -> _Linear | None:
        """The node as a matrix product with a transposed weight of its own, too large to hold per task."""
        name = node.name()
        # A factor other than 1 would belong to the weight's gradient, which is formed here from the left factor alone.
        if name.startswith("AddmmBackward") and node._saved_alpha == 1:  # type: ignore[attr-defined]
            position, saved = 2, "_saved_mat1"
        elif name.startswith("MmBackward"):
            position, saved = 1, "_saved_self"
        else:
            return None
        transpose = node.next_functions[position][0]
        # A weight that is used twice has a sum of two products as its gradient, and the Gramian of a sum has cross
        # terms that slices of one product do not see.
        if transpose is None or not transpose.name().startswith("TBackward") or self.uses.get(transpose) != 1:
            return None
        weight = transpose.next_functions[0][0]
        if weight is None or self.uses.get(weight) != 1 or self.sizes.get(weight, 0) <= self.block:
            return None
        rows: Tensor = getattr(node, saved)
        if rows.is_complex():
            return None  # its weight's gradient is conj(X)ᵀ Δ, in pairs of reals; as a whole it comes out right
        return _Linear(node, weight, rows.detach()) if rows.layout == torch.strided else None

    def run(
        self, names: Sequence[str], starts: Sequence[tuple[Edge, Tensor | None]]
    ) -> tuple[Tensor, list[tuple[Tensor | None, ...]]]:
        n_tasks = len(starts)
        frontier: list[dict[Edge, Tensor | None]] = [{edge: seed} for edge, seed in starts]
        held: list[dict[Node, Tensor]] = [{} for _ in starts]
        gramian = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=self.parameters[0].device)
        touched = [False] * n_tasks
        for k, group in enumerate(self.groups):
            entering = [[edge for edge in front if edge[0] in group.nodes] for front in frontier]
            # Before the seeds are taken out below. The call below does not form the weight's gradient a second time: no
            # edge that leads to it is asked for, so autograd skips it.
            if group.linear is not None:
                gramian += self._sliced(group.linear, entering, frontier, touched)
            for task, edges in enumerate(entering):
                seeds = [frontier[task].pop(edge) for edge in edges]
                if edges and group.leaving:
                    found = _call(edges, seeds) if group.by_itself else _differentiate(edges, seeds, group.leaving)
                    self._carry(found, frontier[task], held[task])
            # As soon as no later group adds to a parameter, its gradients are turned into numbers and freed.
            done = [p for p in self.shared if self.last.get(p) == k and any(p in row for row in held)]
            if done:
                gramian += self._absorb(done, held, touched)
        detached = [name for name, reached in zip(names, touched, strict=True) if not reached]
        refuse_detached(detached, "shared parameters")
        order = sorted(self.heads, key=self.heads.__getitem__)
        return gramian, [tuple(row.get(node) for node in order) for row in held]

    def _carry(
        self, found: Sequence[tuple[Edge, Tensor]], front: dict[Edge, Tensor | None], held: dict[Node, Tensor]
    ) -> None:
        """Add one task's gradients to what has arrived at the cut and at the parameters."""
        for edge, gradient in found:
            node = edge[0]
            if node in self.shared or node in self.heads:
                # Never in place: for a sum autograd hands out one tensor as the gradient of both terms.
                held[node] = held[node] + gradient if node in held else gradient
            elif self.needed.get(node):
                before = front.get(edge)
                front[edge] = gradient if before is None else before + gradient

    def _absorb(self, done: Sequence[Node], held: list[dict[Node, Tensor]], touched: list[bool]) -> Tensor:
        """The part of the Gramian that comes from parameters whose gradients are complete, which are then forgotten."""
        total: Tensor | None = None
        for node in done:
            rows = [row.pop(node, None) for row in held]
            matrix = _rows_of(rows, self.sizes[node])
            for task, row in enumerate(rows):
                touched[task] |= row is not None
            # The stack is a copy: the gradients are freed before the Gramian converts blocks of it to float64.
            del rows
            part = gramian_of(matrix)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _sliced(
        self,
        linear: _Linear,
        entering: Sequence[Sequence[Edge]],
        frontier: Sequence[dict[Edge, Tensor | None]],
        touched: list[bool],
    ) -> Tensor:
        r"""A product's weight's part, :math:`\langle X^\top\Delta_i, X^\top\Delta_j\rangle`, by slices of ``X``."""
        deltas = [None if not edges else frontier[task][edges[0]] for task, edges in enumerate(entering)]
        like = next(delta for delta in deltas if delta is not None)
        stacked = torch.stack([torch.zeros_like(like) if delta is None else delta for delta in deltas])
        for task, delta in enumerate(deltas):
            touched[task] |= delta is not None
        # Each column of X gives one row of the weight's gradient; as many are formed at once as the block allows.
        width = max(1, self.block // like.shape[-1])
        total = torch.zeros(len(deltas), len(deltas), dtype=torch.float64, device=like.device)
        for columns in torch.split(linear.rows, width, dim=1):
            total += gramian_of(torch.matmul(columns.T, stacked).flatten(1))
        return total


def _differentiate(
    edges: Sequence[Edge], seeds: Sequence[Tensor | None], leaving: dict[Edge, None]
) -> list[tuple[Edge, Tensor]]:
    """The gradients at the edges that leave a group, from those at the edges that enter it."""
    found = torch.autograd.grad(
        [GradientEdge(*edge) for edge in edges],
        [GradientEdge(*edge) for edge in leaving],
        grad_outputs=list(seeds),
        retain_graph=True,
        allow_unused=True,
    )
    return [(edge, gradient) for edge, gradient in zip(leaving, found, strict=True) if gradient is not None]


def _call(edges: Sequence[Edge], seeds: Sequence[Tensor | None]) -> list[tuple[Edge, Tensor]]:
    """As ``_differentiate`` for a single operation, by calling its backward function.

    What the engine does to each result is done here as well: sums over broadcast dimensions and the dtype of the input.
    """
    node = edges[0][0]
    given: list[Tensor | None] = [None] * len(node._input_metadata)
    for (_, nr), seed in zip(edges, seeds, strict=True):
        metadata = node._input_metadata[nr]
        given[nr] = torch.ones(metadata.shape, dtype=metadata.dtype, device=metadata.device) if seed is None else seed
    # The engine switches gradients off for a first derivative; a direct call would record a graph of its own.
    with torch.no_grad():
        if isinstance(node, BackwardCFunction):
            # The engine hands zeros, not None, to a Function's backward for outputs that have no gradient.
            filled = [
                torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device) if g is None else g
                for g, meta in zip(given, node._input_metadata, strict=True)
            ]
            results = node.apply(*filled)
        else:
            results = node(*given)  # type: ignore[operator]
        found: list[tuple[Edge, Tensor]] = []
        for (child, nr), result in zip(
            node.next_functions, results if isinstance(results, tuple) else (results,), strict=True
        ):
            if child is None or result is None:
                continue
            # A backward formula may leave sums over broadcast dimensions and conversions of the dtype to the engine.
            metadata = child._input_metadata[nr]
            found.append(((child, nr), result.sum_to_size(metadata.shape).to(metadata.dtype)))
    return found


def _children(node: Node) -> set[Node]:
    return {child for child, _ in node.next_functions if child is not None}


def _rows_of(gradients: Sequence[Tensor | None], size: int) -> Tensor:
    like = next(g for g in gradients if g is not None)
    dense = [None if g is None else (g.to_dense() if g.layout != torch.strided else g) for g in gradients]
    real = [None if g is None else (torch.view_as_real(g) if g.is_complex() else g).reshape(-1) for g in dense]
    # One number seen as a whole row: a task without a gradient costs no memory before the stack.
    filler = torch.zeros((), dtype=like.dtype.to_real(), device=like.device).expand(size)
    return torch.stack([filler if g is None else g for g in real])
