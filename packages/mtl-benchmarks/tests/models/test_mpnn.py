"""The network for molecules against torch-geometric's, and what it does on its own."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl_benchmarks.models import MPNN, EdgeConvolution, GraphMPNN, Graphs, GroupedMolecules, MoleculeGroup, SetToSet
from mtl_benchmarks.models.declaration import count
from mtl_core import InvalidInputError, MissingExtraError, Problem, collect
from mtl_teleport import LoRA, PeftLoRA

TASKS = ("a", "b")


def molecules(sizes: list[int], *, dtype: torch.dtype = torch.float64, seed: int = 0) -> GroupedMolecules:
    """Random molecules of these sizes in a random order."""
    g = torch.Generator().manual_seed(seed)
    groups = []
    for n in sorted(set(sizes)):
        b = sizes.count(n)
        nodes = torch.randn(b, n, 11, generator=g, dtype=torch.float64)
        edges = torch.randn(b, n, n, 5, generator=g, dtype=torch.float64)
        groups.append(MoleculeGroup(nodes.to(dtype), edges.to(dtype)))
    return GroupedMolecules(tuple(groups), torch.randperm(len(sizes), generator=g))


def pair(dtype: torch.dtype, *, width: int = 8, hidden: int = 12) -> tuple[MPNN, GraphMPNN]:
    torch.manual_seed(0)
    ours, theirs = MPNN(TASKS, width=width, hidden=hidden), GraphMPNN(TASKS, width=width, hidden=hidden)
    ours.load_state_dict(theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def stacked(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(outputs.values()))


def scaled_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def test_counts() -> None:
    model = MPNN()
    assert count(model.parameters()) == 617_675
    assert count(model.shared_parameters()) == 616_960
    assert sum(count(model.task_parameters(task)) for task in model.tasks) == 715
    assert count(model.last_shared_parameters()) == 8_256


def test_parameters_have_the_same_names_and_shapes() -> None:
    ours, theirs = MPNN(), GraphMPNN()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equal_to_torch_geometric_at_full_size(dtype: torch.dtype, tol: float) -> None:
    ours, theirs = pair(dtype, width=64, hidden=128)
    batch = molecules([1, 2, 5, 5, 9, 9, 9, 14], dtype=dtype)
    graphs = batch.to_graphs()
    mine, other = stacked(ours(batch)), stacked(theirs(graphs))
    assert scaled_difference(mine, other) < tol
    weights = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (mine * weights).sum().backward()
    (other * weights).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert scaled_difference(p.grad, q.grad) < tol, name


def test_second_derivatives_equal_torch_geometrics() -> None:
    ours, theirs = pair(torch.float64)
    batch = molecules([1, 3, 3, 4])
    found = []
    for model, given_ in ((ours, batch), (theirs, batch.to_graphs())):
        parameters = list(model.parameters())
        first = torch.autograd.grad(stacked(model(given_)).square().sum(), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), parameters))
    for name, mine, other in zip(dict(ours.named_parameters()), *found, strict=True):
        assert scaled_difference(mine, other) < 1e-9, name


def test_second_derivatives_in_single_precision() -> None:
    """Single precision runs other kernels of the recurrent layers than double."""
    found = []
    for dtype in (torch.float32, torch.float64):
        ours, _ = pair(dtype)
        parameters = list(ours.parameters())
        loss = stacked(ours(molecules([2, 3, 4], dtype=dtype))).square().sum()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        found.append(torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), parameters))
    for mine, exact in zip(*found, strict=True):
        assert scaled_difference(mine.double(), exact) < 1e-4


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_batch_equals_its_molecules_one_by_one(sizes: list[int], seed: int) -> None:
    ours, theirs = pair(torch.float64, width=4, hidden=5)
    batch = molecules(sizes, seed=seed)
    whole = stacked(ours(batch))
    torch.testing.assert_close(whole, stacked(theirs(batch.to_graphs())), rtol=1e-10, atol=1e-12)
    rows = [
        (MoleculeGroup(nodes[None], edges[None]))
        for group in batch.groups
        for nodes, edges in zip(group.nodes, group.edges, strict=True)
    ]
    alone = torch.cat([stacked(ours(GroupedMolecules.of([row]))) for row in rows], dim=1)
    torch.testing.assert_close(whole[:, batch.order], alone, rtol=1e-10, atol=1e-12)
    again = GroupedMolecules.from_graphs(batch.to_graphs())
    torch.testing.assert_close(stacked(ours(again)), whole, rtol=1e-10, atol=1e-12)


def test_renumbering_the_atoms_changes_nothing() -> None:
    ours, _ = pair(torch.float64)
    group = molecules([4, 4]).groups[0]
    order = torch.tensor([2, 0, 3, 1])
    renumbered = MoleculeGroup(group.nodes[:, order], group.edges[:, order][:, :, order])
    torch.testing.assert_close(
        stacked(ours(GroupedMolecules.of([renumbered]))),
        stacked(ours(GroupedMolecules.of([group]))),
        rtol=1e-10,
        atol=1e-12,
    )


def test_messages_by_hand() -> None:
    torch.manual_seed(0)
    layer = EdgeConvolution(3, 2, edge_features=4, hidden=5).double()
    nn.init.normal_(layer.bias)
    group = MoleculeGroup(torch.randn(2, 3, 3).double(), torch.randn(2, 3, 3, 4).double())
    out = layer(group.nodes.flatten(0, 1), layer.prepare([group])).view(2, 3, 2)
    for b in range(2):
        for i in range(3):
            expected = group.nodes[b, i] @ layer.lin.weight.T + layer.bias
            for j in set(range(3)) - {i}:
                expected = expected + group.nodes[b, j] @ layer.nn(group.edges[b, i, j]).view(3, 2) / 2
            torch.testing.assert_close(out[b, i], expected)


@pytest.mark.parametrize("cutoff", [-9.0, 0.3, 9.0])
def test_missing_edges_are_those_of_torch_geometric(cutoff: float) -> None:
    """Also where an atom has no neighbour left, and where none has."""
    ours, theirs = pair(torch.float64)
    batch = molecules([1, 2, 5, 5, 4]).within(cutoff)
    mine, other = stacked(ours(batch)), stacked(theirs(batch.to_graphs()))
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    for outputs in (mine, other):
        outputs.square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    edges = batch.to_graphs().edge_attr
    assert bool((edges[:, -1] <= cutoff).all())
    assert len(edges) == {-9.0: 0, 9.0: 2 + 20 + 20 + 12}.get(cutoff, len(edges))


def test_the_diagonal_does_not_count() -> None:
    ours, _ = pair(torch.float64)
    group = molecules([3, 3]).groups[0]
    edges = group.edges.clone()
    edges.diagonal(dim1=1, dim2=2).fill_(9.0)
    other = MoleculeGroup(group.nodes, edges)
    assert torch.equal(stacked(ours(GroupedMolecules.of([other]))), stacked(ours(GroupedMolecules.of([group]))))


def test_reading_ignores_absent_members_and_order() -> None:
    torch.manual_seed(0)
    reading = SetToSet(4, steps=3).double()
    x = torch.randn(1, 3, 4).double()
    none = torch.zeros(1, 3, 1, dtype=torch.bool)
    more = torch.cat([x.flip(1), torch.full((1, 2, 4), 7.0).double()], 1)
    absent = torch.tensor([False, False, False, True, True])[None, :, None]
    torch.testing.assert_close(reading(more, absent), reading(x, none))
    assert reading(x[:, :1], none[:, :1])[0, 4:].equal(x[0, 0])  # one member gets all attention


def test_tasks_may_be_differentiated_together() -> None:
    ours, _ = pair(torch.float64)
    batch = molecules([2, 3])
    problem = Problem(
        ours,
        lambda model, batch: {task: value.square().mean() for task, value in model(batch).items()},
        shared=ours.shared_parameters(),
        tasks=TASKS,
    )
    rows = [
        collect(dict(zip(TASKS, problem.losses(batch).outputs, strict=True)), problem.shared, chunk_size=k).matrix
        for k in (1, 2)
    ]
    torch.testing.assert_close(*rows)


def moved(targets: list[str] | None) -> tuple[set[str], int]:
    """The weights that LoRA of rank 5 displaces in the papers' network, and how many numbers it trains for that."""
    model = MPNN()
    problem = Problem(model, lambda *_: {}, shared=model.shared_parameters(), tasks=model.tasks)
    session = LoRA(rank=5, targets=targets).attach(problem, generator=torch.Generator().manual_seed(0))
    return set(session.delta()), sum(tensor.numel() for tensor in session.trainable)


def test_a_teleport_may_move_the_papers_two_layers_alone() -> None:
    of_lin0, of_lin1 = 5 * (11 + 64), 5 * (128 + 64)
    assert moved(["lin0", "lin1"]) == ({"lin0.weight", "lin1.weight"}, of_lin0 + of_lin1)
    assert of_lin0 + of_lin1 == 1_335


def test_a_teleport_may_move_every_layer() -> None:
    """Recurrent ones included, and those whose weights make matrices, which the papers' adapters do not reach."""
    shapes = {
        "lin0.weight": (64, 11),
        "conv.nn.0.weight": (128, 5),
        "conv.nn.2.weight": (4096, 128),
        "conv.lin.weight": (64, 64),
        "gru.weight_ih_l0": (192, 64),
        "gru.weight_hh_l0": (192, 64),
        "set2set.lstm.weight_ih_l0": (256, 128),
        "set2set.lstm.weight_hh_l0": (256, 64),
        "lin1.weight": (64, 128),
    }
    assert moved(None) == (set(shapes), sum(5 * (rows + columns) for rows, columns in shapes.values()))
    assert moved(None)[1] == 29_840


@pytest.mark.parametrize(("targets", "n_layers", "n_numbers"), [(["lin0", "lin1"], 2, 1_335), (None, 5, 23_760)])
def test_wrapped_layers_leave_the_recurrent_ones_out(targets: list[str] | None, n_layers: int, n_numbers: int) -> None:
    """PEFT, as the papers use it: on the two layers it is the same adapter, on all it reaches linear layers only."""
    model = MPNN()
    batch = molecules([2, 3], dtype=torch.float32)
    problem = Problem(
        model,
        lambda network, batch: {task: value.square().mean() for task, value in network(batch).items()},
        shared=model.shared_parameters(),
        tasks=model.tasks,
    )
    session = PeftLoRA(rank=5, targets=targets).attach(problem, batch=batch, generator=torch.Generator().manual_seed(0))
    for tensor in session.trainable:
        torch.nn.init.normal_(tensor)
    assert len(session.delta()) == n_layers
    assert sum(tensor.numel() for tensor in session.trainable) == n_numbers
    assert not any(name.startswith(("gru", "set2set")) for name in session.delta())
    session.detach()


def test_half_precision_by_autocast() -> None:
    ours, _ = pair(torch.float32)
    batch = molecules([2, 3, 3], dtype=torch.float32)
    exact = stacked(ours(batch))
    with torch.autocast("cpu", torch.bfloat16):
        loose = stacked(ours(batch))
    loose.sum().backward()
    assert scaled_difference(loose.float(), exact) < 0.05
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in ours.parameters())


# --- batches ---------------------------------------------------------------------------------------------------------


def graphs() -> Graphs:
    return molecules([2, 3]).to_graphs()


@pytest.mark.parametrize("change", ["missing", "twice", "self", "across"])
def test_graphs_that_are_not_complete_are_refused(change: str) -> None:
    x, index, attr, batch = graphs()
    index = index.clone()
    if change == "missing":
        index, attr = index[:, 1:], attr[1:]
    elif change == "twice":
        index[:, 0] = index[:, 1]
    elif change == "self":
        index[1, 0] = index[0, 0]
    else:
        index[0, 0] = len(x) - 1 if int(batch[index[1, 0]]) == 0 else 0
    with pytest.raises(InvalidInputError, match="link every atom with every other one of its molecule once"):
        GroupedMolecules.from_graphs(Graphs(x, index, attr, batch))


def test_graphs_in_another_order_are_refused() -> None:
    x, index, attr, batch = graphs()
    with pytest.raises(InvalidInputError, match="ascending order"):
        GroupedMolecules.from_graphs(Graphs(x, index, attr, batch.flip(0)))


def test_padded_molecules_are_the_same() -> None:
    ours, _ = pair(torch.float64)
    batch = molecules([2, 4, 3, 4, 1])
    nodes, edges = torch.full((5, 4, 11), 9.0).double(), torch.full((5, 4, 4, 5), 9.0).double()
    sizes = torch.zeros(5, dtype=torch.int64)
    rows = iter(batch.order.tolist())
    for group in batch.groups:
        n = group.nodes.shape[1]
        for k in range(len(group.nodes)):
            row = next(rows)
            nodes[row, :n], edges[row, :n, :n], sizes[row] = group.nodes[k], group.edges[k], n
    padded = GroupedMolecules.from_padded(nodes, edges, sizes)
    torch.testing.assert_close(stacked(ours(padded)), stacked(ours(batch)), rtol=1e-10, atol=1e-12)


def test_bad_batches_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"from 1 to 2 for each of 1 molecules, got \[3\]"):
        GroupedMolecules.from_padded(torch.zeros(1, 2, 11), torch.zeros(1, 2, 2, 5), torch.tensor([3]))
    with pytest.raises(InvalidInputError, match=r"\[b, n, f\] and \[b, n, n, c\]"):
        MoleculeGroup(torch.zeros(1, 2, 11), torch.zeros(1, 2, 3, 5))
    with pytest.raises(InvalidInputError, match=r"`links` must be \[b, n, n\]"):
        MoleculeGroup(torch.zeros(1, 2, 11), torch.zeros(1, 2, 2, 5), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(InvalidInputError, match="each of 0 to 1 once"):
        GroupedMolecules(molecules([2, 2]).groups, torch.tensor([0, 0]))
    with pytest.raises(InvalidInputError, match="`order`"):
        GroupedMolecules.of([])


def test_source_and_target_are_not_confused() -> None:
    batch = GroupedMolecules.of([MoleculeGroup(torch.zeros(1, 2, 1), torch.tensor([[[[0.0], [1.0]], [[2.0], [0.0]]]]))])
    _, index, attr, _ = batch.to_graphs()
    by_edge = {tuple(edge): float(value) for edge, value in zip(index.T.tolist(), attr, strict=True)}
    assert by_edge == {(1, 0): 1.0, (0, 1): 2.0}  # edges[:, i, j] goes to i from j; pairs are (source, target)


def test_without_torch_geometric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'torch-geometric>="):
        GraphMPNN(TASKS)
    assert MPNN(TASKS, width=4)(molecules([2, 3], dtype=torch.float32))["a"].shape == (2,)
