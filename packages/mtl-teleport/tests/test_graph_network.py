"""A message-passing network as for molecules, teleported in all its layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_core import Problem
from mtl_teleport import COST, OFT, LoHa, LoKr, LoRA, TeleportReport
from mtl_teleport.adapters import Adapter
from mtl_teleport.triggers import Trigger

Graphs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
WIDTH, NODES, EDGES, TARGETS = 8, 6, 4, 3


class Always(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return True


class EdgeConvolution(nn.Module):
    """Sums messages, each by a matrix that a small network makes from the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Linear(EDGES, 16), nn.ReLU(), nn.Linear(16, WIDTH * WIDTH))
        self.root = nn.Parameter(torch.empty(WIDTH, WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))
        nn.init.xavier_uniform_(self.root)

    def forward(self, h: Tensor, source: Tensor, target: Tensor, edges: Tensor) -> Tensor:
        matrices = self.edge(edges).view(-1, WIDTH, WIDTH)
        messages = torch.bmm(h[source].unsqueeze(1), matrices).squeeze(1)
        degree = torch.bincount(target, minlength=len(h)).clamp(min=1).to(h)
        return torch.zeros_like(h).index_add(0, target, messages) / degree[:, None] + h @ self.root + self.bias


class SetToSet(nn.Module):
    """Reads a set of nodes per graph by an LSTM that attends to it, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor, graph: Tensor, n_graphs: int) -> Tensor:
        state = (h.new_zeros(1, n_graphs, WIDTH), h.new_zeros(1, n_graphs, WIDTH))
        read = h.new_zeros(n_graphs, 2 * WIDTH)
        for _ in range(2):
            query, state = self.lstm(read.unsqueeze(0), state)
            query = query.squeeze(0)
            weight = (h * query[graph]).sum(1).exp()
            total = torch.zeros(n_graphs, dtype=h.dtype).index_add(0, graph, weight)
            content = torch.zeros_like(query).index_add(0, graph, h * (weight / total[graph])[:, None])
            read = torch.cat([query, content], dim=1)
        return read


class Molecules(nn.Module):
    """Input layer, three rounds of messages through one GRU, set-to-set reading."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(NODES, WIDTH)
        self.messages = EdgeConvolution()
        self.gru = nn.GRU(WIDTH, WIDTH)
        self.reading = SetToSet()
        self.output = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, batch: Graphs) -> Tensor:
        nodes, ends, edges, graph, target = batch
        h = torch.relu(self.input(nodes))
        state = h.unsqueeze(0)
        for _ in range(3):
            message = torch.relu(self.messages(h, ends[0], ends[1], edges))
            out, state = self.gru(message.unsqueeze(0), state)
            h = out.squeeze(0)
        return torch.relu(self.output(self.reading(h, graph, len(target))))


def molecules() -> tuple[Problem, Graphs]:
    """Twelve random graphs with three properties each."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": Molecules(), "heads": nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(TARGETS))})
    model.double()
    sizes = torch.randint(3, 8, (12,))
    graph = torch.repeat_interleave(torch.arange(12), sizes)
    first = torch.cumsum(sizes, 0) - sizes
    ends = torch.stack(
        [first.repeat_interleave(10) + (torch.randint(0, 99, (120,)) % sizes.repeat_interleave(10)) for _ in range(2)]
    )
    batch = (
        torch.randn(len(graph), NODES, dtype=torch.float64),
        ends,
        torch.randn(120, EDGES, dtype=torch.float64),
        graph,
        torch.randn(12, TARGETS, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.3]),
    )

    def losses(model: nn.Module, batch: Graphs) -> dict[str, Tensor]:
        z = model.get_submodule("trunk")(batch)
        heads = model.get_submodule("heads")
        assert isinstance(heads, nn.ModuleList)
        return {f"property {k}": (head(z)[:, 0] - batch[4][:, k]).square().mean() for k, head in enumerate(heads)}

    tasks = tuple(f"property {k}" for k in range(TARGETS))
    return Problem(model, losses, shared="trunk", tasks=tasks), batch


@pytest.mark.parametrize("adapter", [LoRA(), LoHa(), LoKr(), OFT()], ids=lambda a: type(a).__name__)
def test_every_layer_of_a_graph_network_is_teleported(adapter: Adapter) -> None:
    problem, batch = molecules()
    before = {name: p.detach().clone() for name, p in problem.named_shared.items()}
    seen = {name: id(p) for name, p in problem.model.named_parameters()}
    moved: dict[str, Tensor] = {}
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3)

    def remember(*_: object) -> None:
        moved.update({name: p.detach().clone() for name, p in problem.named_shared.items()})

    optimizer.register_step_pre_hook(remember)
    method = COST(adapter=adapter, trigger=Always(), max_per_epoch=None, aim=None)
    (report,) = mtl_core.step(problem, batch, optimizer, method).events
    assert isinstance(report, TeleportReport)
    assert report.accepted
    assert 0 < report.drift <= 0.02
    matrices = {name for name, p in before.items() if p.ndim >= 2}
    assert {name for name in moved if not torch.equal(moved[name], before[name])} == matrices
    for part in ("input", "messages.edge.0", "messages.edge.2", "messages.root", "gru.weight_ih_l0",
                 "gru.weight_hh_l0", "reading.lstm.weight_ih_l0", "reading.lstm.weight_hh_l0", "output"):  # fmt: skip
        assert any(name.startswith(f"trunk.{part}") for name in matrices)
    assert {name: id(p) for name, p in problem.model.named_parameters()} == seen
    assert max(growth for growth in report.search_growth if not math.isnan(growth)) > 1.1


def test_what_is_left_of_the_conflict_is_looked_at() -> None:
    """Trained for a while, with the default trigger: whatever happens keeps the losses."""
    problem, batch = molecules()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=3e-3)
    method = COST(max_per_epoch=None)
    found: list[TeleportReport] = []
    for _ in range(25):
        events = mtl_core.step(problem, batch, optimizer, method).events
        found += [event for event in events if isinstance(event, TeleportReport)]
    assert all(event.drift <= 0.02 for event in found if event.accepted)
    assert all(math.isfinite(float(p.detach().sum())) for p in problem.model.parameters())


def test_sum_of_messages_by_hand() -> None:
    """The layer is what it says: with the edge network at zero only the root is left, by edges its messages."""
    torch.manual_seed(0)
    layer = EdgeConvolution().double()
    h = torch.randn(3, WIDTH, dtype=torch.float64)
    source, target = torch.tensor([0, 1]), torch.tensor([2, 2])
    edges = torch.randn(2, EDGES, dtype=torch.float64)
    matrices = layer.edge(edges).view(2, WIDTH, WIDTH)
    expected = h @ layer.root + layer.bias
    expected[2] = expected[2] + (h[0] @ matrices[0] + h[1] @ matrices[1]) / 2
    torch.testing.assert_close(layer(h, source, target, edges), expected)
