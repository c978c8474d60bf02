"""How a graph is cut into groups of operations that are differentiated one group after the other."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node

from mtl_core.collecting.flat import flat_size

__all__ = ["Edge", "Group", "Linear", "Plan"]

Edge = tuple[Node, int]
"""An operation, and which of its outputs a gradient belongs to."""


@dataclass
class Group:
    """Operations that are differentiated together, and the edges that lead out of them."""

    nodes: set[Node] = field(default_factory=set)
    leaving: dict[Edge, None] = field(default_factory=dict)
    parameters: int = 0
    linear: Linear | None = None
    by_itself: bool = False
    """One operation, called directly: one of its inputs is computed from another, as in ``x + f(x)``.

    Asked for the gradients by both, autograd would also run through ``f`` and count its part at ``x``; the group of
    ``f`` would count it again.
    """


@dataclass(frozen=True)
class Linear:
    """A matrix product whose weight gradient is formed slice by slice."""

    node: Node
    weight: Node
    rows: Tensor
    """The product's left factor ``[n, in]``; the weight's gradient is ``rows.T @ delta``."""


class Plan:
    """The operations between losses and parameters, in groups that are differentiated one after the other.

    Args:
        starts: where the tasks' backward passes enter the graph.
        shared: the shared parameters.
        heads: the heads' parameters.
        block: how many gradient entries per task a group's parameters may have, unless it is a single operation.

    Attributes:
        shared: by the node at which its gradient arrives, the position of each shared parameter.
        heads: likewise for the heads' parameters.
        sizes: numbers of entries of the shared parameters, by that node.
        hooked: by that node, the parameters that have hooks.
        needed: whether each node under the losses leads to some parameter.
        groups: the groups, from the losses down.
        last: by node, the group after which its gradient is complete.
    """

    def __init__(self, starts: Sequence[Edge], shared: Sequence[Tensor], heads: Sequence[Tensor], block: int) -> None:
        # A leaf has no grad_fn: its edge leads to the node that accumulates its gradient, which is what the graph
        # names.
        accumulate = torch.autograd.graph.get_gradient_edge
        self.shared = {accumulate(p).node: k for k, p in enumerate(shared)}
        self.heads = {accumulate(p).node: k for k, p in enumerate(heads)}
        self.sizes = {accumulate(p).node: flat_size(p) for p in shared}
        self.hooked = {accumulate(p).node: p for p in (*shared, *heads) if p._backward_hooks}
        self.block = block

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
        # Subgraphs without a parameter, such as that of the input's gradient, would be differentiated for nothing.
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
        # How many users of each node's result are still to be visited: Kahn's topological sort.
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
        # From the parameters up, so that the children's sets are complete when they are united.
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
        # Each node has a bit of its own, so that the sum over distinct nodes is their union.
        mask = sum(self.bits[node] for node in ends)
        return not any(self.reach[node] & mask for node in ends)

    def _group(self) -> list[Group]:
        groups: list[Group] = []
        absorbed: set[Node] = set()
        current = Group()
        # Groups are consecutive stretches of the order: when one begins, every gradient that enters it has arrived.
        for node in self.order:
            if node in absorbed:
                continue
            # Dictionaries as sets that keep their order, so that the same graph is always cut alike.
            edges = {(c, nr): None for c, nr in node.next_functions if c is not None and self.needed[c]}
            linear = self._as_linear(node)
            if linear is not None:
                others = {edge: None for edge in edges if linear.weight not in _children(edge[0])}
                # The product becomes a group that leads everywhere but to its weight, whose gradient is never formed
                # whole.
                if self._is_clean(others):
                    absorbed.update(edge[0] for edge in edges if edge not in others)
                    groups += [current, Group({node}, others, linear=linear)]
                    current = Group()
                    continue
            # Zero but for operations that use a shared parameter directly: heads' gradients are kept anyway.
            added = sum(self.sizes.get(child, 0) for child in _children(node))
            leaving = {edge: None for edge in current.leaving if edge[0] is not node} | edges
            # Only operations with parameters fill a block; those without are free to join any group.
            full = added and current.parameters + added > self.block
            if current.nodes and (full or not self._is_clean(leaving)):
                groups.append(current)
                current, leaving = Group(), edges
            current.nodes.add(node)
            current.leaving = leaving
            current.parameters += added
            # Still not clean, though the group holds this operation only: its inputs depend on one another.
            if not self._is_clean(leaving):
                current.by_itself = True
                groups.append(current)
                current = Group()
        return [group for group in [*groups, current] if group.nodes]

    def _as_linear(self, node: Node) -> Linear | None:
        """The node as a matrix product with a transposed weight of its own, too large to hold per task."""
        name = node.name()
        # A factor other than 1 would belong to the weight's gradient, which is formed here from the left factor alone.
        if name.startswith("AddmmBackward") and node._saved_alpha == 1:  # type: ignore[attr-defined]
            position, saved = 2, "_saved_mat1"
        elif name.startswith("MmBackward"):
            position, saved = 1, "_saved_self"
        else:
            return None
        # nn.Linear multiplies by weight.T, which is an operation between the product and the weight.
        transpose = node.next_functions[position][0]
        # A weight that is used twice has a sum of two products as its gradient, and the Gramian of a sum has cross
        # terms that slices of one product do not see.
        if transpose is None or not transpose.name().startswith("TBackward") or self.uses.get(transpose) != 1:
            return None
        weight = transpose.next_functions[0][0]
        if weight is None or self.uses.get(weight) != 1 or self.sizes.get(weight, 0) <= self.block:
            return None
        # A hook on the weight, such as a mask of its gradient, is called with the whole gradient or not at all.
        if weight in self.hooked:
            return None
        rows: Tensor = getattr(node, saved)
        if rows.is_complex():
            return None  # its weight's gradient is conj(X)ᵀ Δ, in pairs of reals; as a whole it comes out right
        return Linear(node, weight, rows.detach()) if rows.layout == torch.strided else None


def _children(node: Node) -> set[Node]:
    return {child for child, _ in node.next_functions if child is not None}
