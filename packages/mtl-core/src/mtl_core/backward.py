"""Vector-Jacobian products from task losses: rows of the Jacobian, checked before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from mtl_core.errors import DetachedLossError, InvalidInputError, NonFiniteLossError

__all__ = [
    "Joint",
    "Outputs",
    "Root",
    "Row",
    "Store",
    "batched_rows",
    "check_attached",
    "check_finite_losses",
    "check_no_bypass",
    "empty_jacobian",
    "feature_rows",
    "flat_size",
    "flatten_into",
    "full_losses",
    "head_gradients",
    "is_compiled",
    "pick",
    "refuse_detached",
    "roots_of",
    "sequential_rows",
    "widest_dtype",
]

Outputs = tuple[Tensor, ...] | Tensor
"""Task losses: one scalar each, or one tensor ``[k]`` that was computed jointly."""

Row = tuple[Tensor | None, ...]
"""One task's gradient by each input; ``None`` where the task does not touch it."""

Store = Callable[[int, Row], None]
"""What becomes of the gradient of the k-th present task."""


class Joint:
    """Entry ``i`` of losses that were computed as one tensor."""

    def __init__(self, losses: Tensor, i: int) -> None:
        self.losses = losses
        self.i = i


Root = Tensor | GradientEdge | Joint | None
"""What one task's backward pass starts from; ``None`` where the loss has no graph at all."""


def roots_of(outputs: Outputs) -> list[Root]:
    """One root per task. A stack is taken apart: going through it would run every task's head in every task's pass."""
    if not isinstance(outputs, Tensor):
        return [loss if loss.requires_grad else None for loss in outputs]
    if not outputs.requires_grad:
        return [None] * len(outputs)
    stack = outputs.grad_fn
    if stack is not None and stack.name().startswith("StackBackward"):
        return [None if node is None else GradientEdge(node, nr) for node, nr in stack.next_functions]
    return [Joint(outputs, i) for i in range(len(outputs))]


def _grad(root: Root, inputs: Sequence[Tensor], retain_graph: bool) -> Row:
    if root is None:
        return (None,) * len(inputs)
    if isinstance(root, GradientEdge):
        return torch.autograd.grad([root], inputs, retain_graph=retain_graph, allow_unused=True)
    if isinstance(root, Tensor):
        return torch.autograd.grad([root], inputs, retain_graph=retain_graph, allow_unused=True)
    seed = torch.zeros_like(root.losses)
    seed[root.i] = 1.0
    return torch.autograd.grad([root.losses], inputs, [seed], retain_graph=retain_graph, allow_unused=True)


def sequential_rows(
    outputs: Outputs,
    store: Store,
    names: Sequence[str],
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
    retain_graph: bool,
) -> list[Row]:
    """Store each task's gradient, by a backward pass of its own; return the heads' gradients per task."""
    head_rows: list[Row] = []
    detached: list[str] = []
    for k, root in enumerate(roots_of(outputs)):
        found = _grad(root, (*shared, *heads), retain_graph or k < len(names) - 1)
        if all(g is None for g in found[: len(shared)]):
            detached.append(names[k])
            continue
        store(k, found[: len(shared)])
        head_rows.append(found[len(shared) :])
    refuse_detached(detached, "shared parameters")
    return head_rows


def batched_rows(
    outputs: Outputs,
    store: Store,
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
    chunk_size: int,
    retain_graph: bool,
) -> list[Row]:
    """As ``sequential_rows``, ``chunk_size`` tasks at a time by batched vector-Jacobian products."""
    losses = outputs if isinstance(outputs, Tensor) else torch.stack(outputs)
    seeds = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    head_rows: list[Row] = []
    for start in range(0, len(losses), chunk_size):
        part = seeds[start : start + chunk_size]
        keep = retain_graph or start + chunk_size < len(losses)
        found = _vjp([losses], (*shared, *heads), [part], keep)
        for k in range(len(part)):
            row = tuple(None if g is None else g[k] for g in found)
            store(start + k, row[: len(shared)])
            head_rows.append(row[len(shared) :])
    return head_rows


def head_gradients(
    outputs: Outputs, names: Sequence[str], features: Sequence[Tensor], heads: Sequence[Tensor]
) -> tuple[list[Row], list[Row]]:
    """Each task's gradient by the features and by the heads' parameters; the graph is kept.

    Raises:
        DetachedLossError: a loss does not depend on the features.
    """
    at_features: list[Row] = []
    head_rows: list[Row] = []
    for root in roots_of(outputs):
        found = _grad(root, (*features, *heads), True)
        at_features.append(found[: len(features)])
        head_rows.append(found[len(features) :])
    refuse_detached(
        [name for name, row in zip(names, at_features, strict=True) if all(g is None for g in row)], "features"
    )
    return at_features, head_rows


def feature_rows(
    outputs: Outputs,
    store: Store,
    names: Sequence[str],
    features: Sequence[Tensor],
    shared: Sequence[Tensor],
    heads: Sequence[Tensor],
    chunk_size: int,
    retain_graph: bool,
) -> list[Row]:
    """As ``sequential_rows``, but each head once, down to the features, and then ``chunk_size`` tasks at a time."""
    at_features, head_rows = head_gradients(outputs, names, features, heads)
    for start in range(0, len(names), chunk_size):
        part = at_features[start : start + chunk_size]
        keep = retain_graph or start + chunk_size < len(names)
        used = [j for j in range(len(features)) if any(row[j] is not None for row in part)]
        starts = [features[j] for j in used]
        if len(part) == 1:
            own = [g for g in part[0] if g is not None]
            row = torch.autograd.grad(starts, shared, own, retain_graph=keep, allow_unused=True)
            store(start, row)
            continue
        seeds = [
            torch.stack([torch.zeros_like(features[j]) if (g := row[j]) is None else g for row in part]) for j in used
        ]
        found = _vjp(starts, shared, seeds, keep)
        for k in range(len(part)):
            store(start + k, tuple(None if g is None else g[k] for g in found))
    return head_rows


def _vjp(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor], retain_graph: bool) -> Row:
    """Several vector-Jacobian products at once, one per entry of the seeds' first dimension."""
    return torch.autograd.grad(
        outputs, inputs, seeds, retain_graph=retain_graph, allow_unused=True, is_grads_batched=True
    )


def flat_size(parameter: Tensor) -> int:
    """Number of real entries of a parameter; a complex one has two each."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def widest_dtype(parameters: Sequence[Tensor]) -> torch.dtype:
    """The real dtype to which the parameters' gradients are promoted."""
    dtype = parameters[0].dtype.to_real()
    for parameter in parameters[1:]:
        dtype = torch.promote_types(dtype, parameter.dtype.to_real())
    return dtype


def empty_jacobian(n_tasks: int, shared: Sequence[Tensor]) -> Tensor:
    """Room for a Jacobian ``[m, d]``."""
    size = sum(flat_size(p) for p in shared)
    return torch.empty(n_tasks, size, dtype=widest_dtype(shared), device=shared[0].device)


def flatten_into(row: Tensor, gradients: Sequence[Tensor | None], shared: Sequence[Tensor]) -> None:
    """Write gradients into one row of the Jacobian, zero where there is none."""
    parts: list[Tensor] = []
    for gradient, parameter in zip(gradients, shared, strict=True):
        if gradient is None:
            parts.append(row.new_zeros(()).expand(flat_size(parameter)))
            continue
        dense = gradient.to_dense() if gradient.layout != torch.strided else gradient
        real = torch.view_as_real(dense) if dense.is_complex() else dense
        parts.append(real.reshape(-1).to(row.dtype))
    torch.cat(parts, out=row)


def full_losses(outputs: Outputs, n_tasks: int, index: Sequence[int]) -> Tensor:
    """The losses ``[m]``, detached, with NaN for tasks outside ``index``."""
    values = outputs.detach() if isinstance(outputs, Tensor) else torch.stack([loss.detach() for loss in outputs])
    if len(index) == n_tasks:
        return values.clone()
    return values.new_full((n_tasks,), float("nan")).index_put((torch.tensor(index, device=values.device),), values)


def pick(values: Tensor, index: Sequence[int]) -> Tensor:
    """The entries at ``index``, one by one: an index made into a tensor would have to be copied to the device."""
    return values if len(index) == len(values) else torch.stack([values[i] for i in index])


def refuse_detached(detached: Sequence[str], what: str) -> None:
    """Raise ``DetachedLossError`` if there are tasks to name."""
    if detached:
        raise DetachedLossError(
            f"the losses of tasks {list(detached)} must depend on the {what}, got none that do. "
            "Look for .detach(), torch.no_grad() or .item() on the way, or leave these tasks out.",
            tasks=detached,
        )


def check_finite_losses(losses: Tensor, names: Sequence[str], index: Sequence[int]) -> None:
    """Make sure that the losses at ``index`` are finite.

    Raises:
        NonFiniteLossError: naming the tasks whose loss is not.
    """
    found = losses.tolist()
    bad = {names[i]: found[i] for i in index if not math.isfinite(found[i])}
    if bad:
        listed = ", ".join(f"{name!r} is {value}" for name, value in bad.items())
        raise NonFiniteLossError(
            f"every task's loss must be finite, got: {listed}. Nothing was updated. Look at this batch's targets "
            "and the learning rate.",
            tasks=tuple(bad),
        )


def check_attached(outputs: Outputs, names: Sequence[str], shared: Sequence[Tensor]) -> None:
    """Make sure that each loss depends on the shared parameters, by its graph and without differentiating.

    Raises:
        DetachedLossError: naming the tasks whose loss does not.
    """
    reached = _reach(roots_of(outputs), shared)
    refuse_detached([name for name, ok in zip(names, reached, strict=True) if not ok], "shared parameters")


def _node(tensor: Tensor) -> Node:
    return get_gradient_edge(tensor).node


def _start_of(root: Tensor | GradientEdge | Joint) -> Node:
    if isinstance(root, GradientEdge):
        return root.node
    return _node(root.losses if isinstance(root, Joint) else root)


def _reach(roots: Sequence[Root], targets: Sequence[Tensor], stop: Sequence[Tensor] = ()) -> list[bool]:
    """Whether the graph of each root leads to some target without passing through ``stop``."""
    known: dict[Node, bool] = {_node(t): True for t in targets}
    known.update({_node(t): False for t in stop if t.requires_grad})
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


def check_no_bypass(
    outputs: Outputs, names: Sequence[str], features: Sequence[Tensor], shared: Sequence[Tensor]
) -> None:
    """Make sure that the losses reach the shared parameters through the features only.

    Raises:
        InvalidInputError: naming the tasks whose loss has another way.
    """
    reached = _reach(roots_of(outputs), shared, stop=features)
    past = [name for name, ok in zip(names, reached, strict=True) if ok]
    if past:
        raise InvalidInputError(
            "`features` must be the only way from the shared parameters to the losses, got another way for tasks "
            f"{past}. "
            "Add the tensor that bypasses them to `features`, or leave `features` out."
        )
