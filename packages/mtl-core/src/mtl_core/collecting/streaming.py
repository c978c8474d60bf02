r"""The Gramian without the Jacobian: one backward sweep for all tasks at once, parameter block by parameter block.

A Jacobian ``[m, d]`` costs ``m`` copies of the shared parameters, but all that most methods look at is
:math:`J J^\top`, a sum over parameters. So the graph is cut into groups of operations, from the losses down (``Plan``).
Each group is differentiated for every task, its parameters' gradients go into the Gramian and are forgotten, and only
the gradients at the cut are carried on. What remains in memory is one cut's activations per task and one block's
gradients per task.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

from mtl_core.collecting.flat import added, as_real
from mtl_core.collecting.gramian import gramian_of
from mtl_core.collecting.graph import Joint, Outputs, Root, refuse_detached, roots_of
from mtl_core.collecting.groups import Edge, Linear, Plan
from mtl_core.collecting.sparse import SparseRows

__all__ = ["streamed_gramian"]


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
    plan = Plan([edge for edge, _ in starts], shared, heads, block)
    with _set_aside(plan.hooked) as hooks:
        return _Sweep(plan, hooks, shared[0].device).run(names, starts)


Hook = Callable[[Tensor], Tensor | None]


@contextmanager
def _set_aside(parameters: Mapping[Node, Tensor]) -> Iterator[dict[Node, list[Hook]]]:
    """Keep autograd from calling parameters' hooks for a while; yields them.

    The sweep meets a gradient in the parts that come from each use of its parameter. A hook is a function of the whole,
    of which it may clip or mask entries.
    """
    kept = {node: OrderedDict(p._backward_hooks or {}) for node, p in parameters.items()}
    try:
        # Emptied and not replaced: autograd holds the dictionary itself.
        for parameter in parameters.values():
            assert parameter._backward_hooks is not None
            parameter._backward_hooks.clear()
        yield {node: list(hooks.values()) for node, hooks in kept.items()}
    finally:
        for node, parameter in parameters.items():
            assert parameter._backward_hooks is not None
            parameter._backward_hooks.update(kept[node])


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

    def __init__(self, plan: Plan, hooks: Mapping[Node, Sequence[Hook]], device: torch.device) -> None:
        self.plan = plan
        self.hooks = hooks
        self.device = device

    def run(
        self, names: Sequence[str], starts: Sequence[tuple[Edge, Tensor | None]]
    ) -> tuple[Tensor, list[tuple[Tensor | None, ...]]]:
        n_tasks, plan = len(starts), self.plan
        # Per task, the gradients that wait at the cut, and those of parameters to which later groups may still add.
        frontier: list[dict[Edge, Tensor | None]] = [{edge: seed} for edge, seed in starts]
        held: list[dict[Node, Tensor]] = [{} for _ in starts]
        gramian = torch.zeros(n_tasks, n_tasks, dtype=torch.float64, device=self.device)
        touched = [False] * n_tasks
        for k, group in enumerate(plan.groups):
            entering = [[edge for edge in front if edge[0] in group.nodes] for front in frontier]
            # Before the seeds are taken out below. The call below does not form the weight's gradient a second time: no
            # edge that leads to it is asked for, so autograd skips it.
            if group.linear is not None:
                gramian += self._sliced(group.linear, entering, frontier, touched)
            # Task by task, not batched: not every operation has a batching rule, and only one task's gradients within
            # the group are in memory at a time.
            for task, edges in enumerate(entering):
                seeds = [frontier[task].pop(edge) for edge in edges]
                if edges and group.leaving:
                    found = _call(edges, seeds) if group.by_itself else _differentiate(edges, seeds, group.leaving)
                    self._carry(found, frontier[task], held[task])
            # As soon as no later group adds to a parameter, its gradients are turned into numbers and freed.
            done = [p for p in plan.shared if plan.last.get(p) == k and any(p in row for row in held)]
            if done:
                gramian += self._absorb(done, held, touched)
        detached = [name for name, reached in zip(names, touched, strict=True) if not reached]
        refuse_detached(detached, "shared parameters")
        order = sorted(plan.heads, key=plan.heads.__getitem__)
        return gramian, [tuple(self._hooked(node, row.get(node)) for node in order) for row in held]

    def _hooked(self, node: Node, gradient: Tensor | None) -> Tensor | None:
        """A parameter's whole gradient, as its hooks leave it."""
        if gradient is None:
            return None
        for hook in self.hooks.get(node, ()):
            found = hook(gradient)
            gradient = gradient if found is None else found
        return gradient

    def _carry(
        self, found: Sequence[tuple[Edge, Tensor]], front: dict[Edge, Tensor | None], held: dict[Node, Tensor]
    ) -> None:
        """Add one task's gradients to what has arrived at the cut and at the parameters."""
        for edge, gradient in found:
            node = edge[0]
            if node in self.plan.shared or node in self.plan.heads:
                # Never in place: for a sum autograd hands out one tensor as the gradient of both terms.
                before = held.get(node)
                held[node] = gradient if before is None else added(before, gradient)
            elif self.plan.needed.get(node):
                waiting = front.get(edge)
                front[edge] = gradient if waiting is None else waiting + gradient

    def _absorb(self, done: Sequence[Node], held: list[dict[Node, Tensor]], touched: list[bool]) -> Tensor:
        """The part of the Gramian that comes from parameters whose gradients are complete, which are then forgotten."""
        total: Tensor | None = None
        for node in done:
            rows = [self._hooked(node, row.pop(node, None)) for row in held]
            for task, row in enumerate(rows):
                touched[task] |= row is not None
            if any(row is not None and row.is_sparse and not row.is_complex() for row in rows):
                # A table of a million rows costs what the rows that were looked up cost.
                part = _by_rows(rows, node)
            else:
                matrix = _rows_of(rows, self.plan.sizes[node])
                # The stack is a copy: the gradients are freed before the Gramian converts blocks of it to float64.
                del rows
                part = gramian_of(matrix)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _sliced(
        self,
        linear: Linear,
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
        width = max(1, self.plan.block // like.shape[-1])
        total = torch.zeros(len(deltas), len(deltas), dtype=torch.float64, device=like.device)
        for columns in torch.split(linear.rows, width, dim=1):
            # [width, n] times [m, n, out] is [m, width, out]: for every task the same rows of its weight's gradient.
            total += gramian_of(torch.matmul(columns.T, stacked).flatten(1))
        return total


def _differentiate(
    edges: Sequence[Edge], seeds: Sequence[Tensor | None], leaving: dict[Edge, None]
) -> list[tuple[Edge, Tensor]]:
    """The gradients at the edges that leave a group, from those at the edges that enter it."""
    found = torch.autograd.grad(
        [GradientEdge(*edge) for edge in edges],
        # Edges rather than tensors: intermediate results are held by the graph alone, and no tensor of them is left.
        [GradientEdge(*edge) for edge in leaving],
        grad_outputs=list(seeds),
        retain_graph=True,
        # A group's exits need not all be reached from one task's entries.
        allow_unused=True,
    )
    return [(edge, gradient) for edge, gradient in zip(leaving, found, strict=True) if gradient is not None]


def _call(edges: Sequence[Edge], seeds: Sequence[Tensor | None]) -> list[tuple[Edge, Tensor]]:
    """As ``_differentiate`` for a single operation, by calling its backward function.

    What the engine does to each result is done here as well: sums over broadcast dimensions and the dtype of the input.
    """
    node = edges[0][0]
    # One entry per output of the forward operation, of which some may have no gradient.
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


def _rows_of(gradients: Sequence[Tensor | None], size: int) -> Tensor:
    like = next(g for g in gradients if g is not None)
    dense = [None if g is None else (g.to_dense() if g.layout != torch.strided else g) for g in gradients]
    real = [None if g is None else as_real(g).reshape(-1) for g in dense]
    # One number seen as a whole row: a task without a gradient costs no memory before the stack.
    filler = torch.zeros((), dtype=like.dtype.to_real(), device=like.device).expand(size)
    return torch.stack([filler if g is None else g for g in real])


def _by_rows(gradients: Sequence[Tensor | None], node: Node) -> Tensor:
    """The Gramian of gradients by one parameter of which only some rows were touched."""
    parameter: Tensor = node.variable  # type: ignore[attr-defined]
    return SparseRows([None if g is None else (g,) for g in gradients], [parameter], [0]).gramian()
