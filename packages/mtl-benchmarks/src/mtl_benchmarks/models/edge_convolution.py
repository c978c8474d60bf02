r"""Messages through a matrix made from each edge, without making the matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from mtl_benchmarks.models.grouped_molecules import MoleculeGroup
from mtl_core.checks import positive_int

__all__ = ["EdgeConvolution", "Prepared"]


class Prepared(NamedTuple):
    """What a batch's edges and the parameters give, once for all rounds of messages.

    Attributes:
        hidden: per group [b, n · k, n]: the edge network's hidden layer, by target, unit and source, zero from an atom
            to itself.
        weight: [k · c, o], the matrices that the hidden units stand for, one under the other.
        bias: [c, o], the matrix that every edge has.
        links: per group [b, n, n], 1 where there is an edge and 0 elsewhere; None: every atom with every other.
    """

    hidden: tuple[Tensor, ...]
    weight: Tensor
    bias: Tensor
    links: tuple[Tensor | None, ...]


class _Contraction(torch.autograd.Function):
    r"""``out[i] = Σ_k (Σ_j hidden[i, k, j] x[j]) W[k]`` for all groups at once.

    The inner sums, ``k`` times as large as the nodes, live for one group at a time and are made again for the
    derivative, so that memory does not grow with the number of rounds. Every operation has a derivative of its own, so
    a second one is right as well.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, *hidden: Tensor) -> Tensor:
        found = []
        for nodes, h in zip(_grouped(x, hidden), hidden, strict=True):
            # [b, n·k, n] times [b, n, c]: for each target and hidden unit the sum over sources, without a matrix per
            # edge.
            inner = torch.bmm(h, nodes)
            found.append(inner.reshape(nodes.shape[0] * nodes.shape[1], -1) @ weight)
        return torch.cat(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *hidden = ctx.saved_tensors
        of_x, of_hidden = [], []
        of_weight = torch.zeros_like(weight)
        above = _grouped(gradient, hidden)
        for nodes, g, h in zip(_grouped(x, hidden), above, hidden, strict=True):
            b, n, c = nodes.shape
            flat = g.reshape(b * n, -1)
            if ctx.needs_input_grad[1]:
                inner = torch.bmm(h, nodes).reshape(b * n, -1)
                of_weight = torch.addmm(of_weight, inner.T, flat)
            of_inner = (flat @ weight.T).reshape(b, -1, c)
            of_hidden.append(torch.bmm(of_inner, nodes.transpose(1, 2)) if any(ctx.needs_input_grad[2:]) else None)
            of_x.append(torch.bmm(h.transpose(1, 2), of_inner).reshape(b * n, c))
        return torch.cat(of_x), of_weight, *of_hidden


def _grouped(flat: Tensor, hidden: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all nodes ``[N, c]`` as one ``[b, n, c]`` per group."""
    shapes = [(h.shape[0], h.shape[2]) for h in hidden]
    parts = flat.split([b * n for b, n in shapes])
    return [part.reshape(*shape, part.shape[1]) for part, shape in zip(parts, shapes, strict=True)]


class EdgeConvolution(nn.Module):
    r"""Mean of the neighbours' messages, each through a matrix that a small network makes from the edge.

    .. math::
        y_i = \Theta x_i + b + \frac{1}{n-1} \sum_{j \ne i} x_j^\top W(e_{ij}), \qquad
        W(e) = \mathrm{reshape}_{c \times o}\big(W_2\, \mathrm{relu}(W_1 e + b_1) + b_2\big)

    on complete graphs; where edges are missing, the mean over those that there are. :math:`W(e)` is linear in the
    hidden layer :math:`h(e) \in \mathbb{R}^k`, so the sum over neighbours may come first:
    :math:`\sum_j h(e_{ij}) \otimes x_j`, of :math:`k \cdot c` numbers per node, and then one product with the second
    layer's weights. No edge ever has a matrix of its own, and the hidden layer is evaluated once for all rounds.
    Parameters have the names and shapes of torch-geometric's ``NNConv`` with mean aggregation.

    Args:
        inputs: numbers ``c`` per node.
        outputs: numbers ``o`` per node.
        edge_features: numbers per edge.
        hidden: units ``k`` of the edge network's hidden layer.

    References:
        Gilmer et al., *Neural Message Passing for Quantum Chemistry*, ICML 2017, section 5.1 ("edge network").

    Example:
        >>> layer = EdgeConvolution(4, 3, edge_features=5, hidden=8)
        >>> pair = MoleculeGroup(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2, 5))
        >>> layer(torch.ones(2, 4), layer.prepare([pair])).shape
        torch.Size([2, 3])
    """

    def __init__(self, inputs: int, outputs: int, *, edge_features: int, hidden: int = 128) -> None:
        super().__init__()
        self.inputs, self.outputs = positive_int("inputs", inputs), positive_int("outputs", outputs)
        self.nn = nn.Sequential(
            nn.Linear(positive_int("edge_features", edge_features), positive_int("hidden", hidden)),
            nn.ReLU(),
            nn.Linear(hidden, inputs * outputs),
        )
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        # As torch-geometric's own layer, so that both networks begin alike.
        bound = inputs**-0.5
        nn.init.uniform_(self.lin.weight, -bound, bound)

    def prepare(self, groups: Sequence[MoleculeGroup]) -> Prepared:
        """Evaluate what does not depend on the nodes."""
        # Not get_parameter: under functional_call the weights are tensors that are no parameters.
        first, second = cast(nn.Linear, self.nn[0]), cast(nn.Linear, self.nn[2])
        weight, bias = second.weight, second.bias
        matrices = rearrange(weight, "(c o) k -> (k c) o", c=self.inputs)
        hidden = tuple(self._hidden(first(group.edges), group.links) for group in groups)
        links = tuple(None if group.links is None else group.links.to(group.nodes.dtype) for group in groups)
        return Prepared(hidden, matrices, bias.view(self.inputs, self.outputs), links)

    @staticmethod
    def _hidden(raw: Tensor, links: Tensor | None) -> Tensor:
        others = ~torch.eye(raw.shape[1], dtype=torch.bool, device=raw.device) if links is None else links
        # By target, unit, source: then the sum over sources is one product per molecule, over adjacent numbers.
        return rearrange(raw.relu() * others[..., None], "b i j k -> b (i k) j")

    def forward(self, x: Tensor, prepared: Prepared) -> Tensor:
        """New features ``[N, o]`` from those of all nodes ``[N, c]``, in the order of the prepared groups."""
        hidden, weight, bias, links = prepared
        # A derivative runs outside of autocast, so its function must as well: else their dtypes differ.
        with torch.autocast(x.device.type, enabled=False):
            arguments = [value.to(weight.dtype) for value in (x, weight, *hidden)]
            sums: Tensor = _Contraction.apply(*arguments)  # type: ignore[no-untyped-call]
        out = []
        for summed, nodes, linked in zip(_grouped(sums, hidden), _grouped(x, hidden), links, strict=True):
            # An atom alone has no neighbours: their mean is zero, as in torch-geometric.
            if linked is None:
                # The bias gives every edge the same matrix, so that its part is one product with the sum of the
                # neighbours.
                others = nodes.sum(1, keepdim=True) - nodes
                found = (summed + others @ bias) / max(nodes.shape[1] - 1, 1)
            else:
                found = (summed + (linked.to(nodes.dtype) @ nodes) @ bias) / linked.sum(2, keepdim=True).clamp(min=1)
            out.append(found.flatten(0, 1))
        own: Tensor = self.lin(x)
        return torch.cat(out) + own + self.bias
