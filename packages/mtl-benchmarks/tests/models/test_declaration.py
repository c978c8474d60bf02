"""Every model keeps to the protocol, and any method and a teleport can be put on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mtl_core
from mtl_aggregators import FairGrad
from mtl_benchmarks.models import (
    CGC,
    CNN9,
    MPNN,
    MTAN,
    PLE,
    ClonedPolicy,
    CrossStitch,
    DSelectK,
    GraphMPNN,
    GroupedMolecules,
    HardSharing,
    MMoE,
    MoleculeGroup,
    OverlayCNN,
    SegNetCrossStitch,
    SegNetMTAN,
    SegNetSplit,
    SharedTower,
    TaskModel,
    check_declaration,
)
from mtl_benchmarks.models.declaration import task_names
from mtl_core import InvalidInputError, Problem, UnknownNameError
from mtl_core.errors import NoLossesError
from mtl_teleport import COST, TeleportReport
from mtl_teleport.triggers import Trigger


def heads(width: int = 6) -> dict[str, nn.Module]:
    return {"a": nn.Linear(width, 1), "b": nn.Linear(width, 2)}


def expert() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh())


def tower() -> list[nn.Module]:
    return [expert(), nn.Linear(6, 6)]


def vectors() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def images() -> Tensor:
    return torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def molecules() -> GroupedMolecules:
    g = torch.Generator().manual_seed(0)
    return GroupedMolecules.of(
        [MoleculeGroup(torch.randn(2, n, 11, generator=g), torch.rand(2, n, n, 5, generator=g)) for n in (2, 3)]
    )


def observations() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"reach": torch.randn(3, 7, generator=g), "push": torch.randn(4, 7, generator=g)}


MODELS: dict[str, tuple[Callable[[], TaskModel], Callable[[], object]]] = {
    "hard sharing": (lambda: HardSharing(expert(), heads()), vectors),
    "cross-stitch": (lambda: CrossStitch(tower, heads()), vectors),
    "cross-stitch, sum": (lambda: CrossStitch(tower, heads(), mixing="sum"), vectors),
    "mtan": (
        lambda: MTAN(tower(), [nn.Linear(6, 6)], channels=(6, 6), heads=heads(), kind="vectors"),
        vectors,
    ),
    "mmoe": (lambda: MMoE(expert, heads(), n_experts=3, gate_inputs=5), vectors),
    "cgc": (lambda: CGC(expert, heads(), gate_inputs=5, n_shared=2, n_own=2), vectors),
    "ple": (lambda: PLE([expert, lambda: nn.Linear(6, 6)], heads(), gate_inputs=(5, 6)), vectors),
    "dselect-k": (lambda: DSelectK(expert, heads(), n_experts=4, k=2, gate_inputs=5), vectors),
    "dselect-k, static": (lambda: DSelectK(expert, heads(), n_experts=3, k=2), vectors),
    "segnet": (lambda: SegNetSplit(width=1 / 32), images),
    "segnet-mtan, shared attention": (lambda: SegNetMTAN(width=1 / 32), images),
    "segnet-mtan, own attention": (lambda: SegNetMTAN(width=1 / 32, attention="task"), images),
    "segnet cross-stitch": (lambda: SegNetCrossStitch(width=1 / 32), images),
    "nine layers": (lambda: CNN9(("a", "b", "c"), width=2), images),
    "mpnn": (lambda: MPNN(("a", "b"), width=4, hidden=6), molecules),
    "mpnn of torch-geometric": (
        lambda: GraphMPNN(("a", "b"), width=4, hidden=6),
        lambda: molecules().to_graphs(),
    ),
    "policy": (lambda: ClonedPolicy(7, 2, tasks=("reach", "push"), hidden=(6, 6)), observations),
    "policy, one head": (
        lambda: ClonedPolicy(7, 2, tasks=("reach", "push"), hidden=(6, 6), heads="one"),
        observations,
    ),
    "overlay": (lambda: OverlayCNN(canvas=8, width=2), lambda: torch.rand(3, 1, 8, 8)),
    "tower": (
        lambda: SharedTower({"x": 4, "y": 3}, heads=("a", "b"), embedding=2, width=5),
        lambda: torch.tensor([[1, 2], [3, 0]]),
    ),
}


class Always(Trigger):
    def __call__(self, gramian: Tensor) -> bool:
        return True


@pytest.fixture(params=MODELS, ids=str)
def built(request: pytest.FixtureRequest) -> tuple[TaskModel, object]:
    torch.manual_seed(0)
    make, batch = MODELS[request.param]
    return make(), batch()


def losses(model: nn.Module, batch: object) -> dict[str, Tensor]:
    return {task: (output - 0.3).square().mean() for task, output in model(batch).items()}


def test_every_parameter_is_declared_once(built: tuple[TaskModel, object]) -> None:
    model, _ = built
    check_declaration(model)
    assert model.shared_parameters()


def test_no_task_reaches_what_is_anothers(built: tuple[TaskModel, object]) -> None:
    model, batch = built
    found = losses(model, batch)
    assert tuple(found) == model.tasks
    parameters = dict(model.named_parameters())
    for task, loss in found.items():
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        reached = {id(p) for p, g in zip(parameters.values(), gradients, strict=True) if g is not None}
        assert any(id(p) in reached for p in model.shared_parameters())
        assert all(id(p) in reached for p in model.task_parameters(task))
        for other in set(model.tasks) - {task}:
            assert not any(id(p) in reached for p in model.task_parameters(other))


def test_a_method_and_a_teleport_fit(built: tuple[TaskModel, object]) -> None:
    model, batch = built
    problem = Problem(model, losses, shared=model.shared_parameters(), tasks=model.tasks)
    assert len(problem.shared) == len(model.shared_parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    method = COST(FairGrad(alpha=1.0), trigger=Always(), max_per_epoch=None, max_steps=2, aim=None)
    before = [p.detach().clone() for p in model.shared_parameters()]
    (event,) = mtl_core.step(problem, batch, optimizer, method).events
    assert isinstance(event, TeleportReport)
    moved = [not torch.equal(p, was) for p, was in zip(model.shared_parameters(), before, strict=True)]
    assert any(moved)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("name", ["hard sharing", "cross-stitch", "nine layers", "mpnn"])
def test_features_are_where_all_heads_start(name: str) -> None:
    """Given to collect, they give the same gradients as the losses alone."""
    torch.manual_seed(0)
    make, batch = MODELS[name]
    model = make().eval()  # batch statistics would move between the two passes
    expected = mtl_core.collect(losses(model, batch()), model.shared_parameters()).matrix
    features = model.features(batch())  # type: ignore[operator]
    each = features if isinstance(features, dict) else dict.fromkeys(model.tasks, features)
    heads = model.get_submodule("heads")
    found = {task: (heads.get_submodule(task)(each[task]) - 0.3).square().mean() for task in model.tasks}
    own = [p for task in model.tasks for p in model.task_parameters(task)]
    rows = mtl_core.collect(found, model.shared_parameters(), features=features, heads=own).matrix
    torch.testing.assert_close(rows, expected)


class Wrong(TaskModel):
    def __init__(self) -> None:
        super().__init__(("a", "b"))
        self.trunk = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)

    def task_modules(self, task: str) -> list[nn.Module]:
        return [self.head]  # the same for both


class Forgetful(Wrong):
    def task_modules(self, task: str) -> list[nn.Module]:
        return []

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters())


def test_a_false_declaration_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"declared once.*task 'a' and in task 'b'"):
        check_declaration(Wrong())
    with pytest.raises(InvalidInputError, match=r"got none for head\.weight, head\.bias"):
        check_declaration(Forgetful())
    with pytest.raises(InvalidInputError, match="got Linear without"):
        check_declaration(nn.Linear(2, 2))


def test_unknown_tasks_and_bad_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'c'"):
        HardSharing(expert(), heads()).task_parameters("c")
    with pytest.raises(InvalidInputError, match="single string"):
        task_names("abc")
    with pytest.raises(InvalidInputError, match="distinct"):
        task_names(["a", "a"])
    with pytest.raises(InvalidInputError, match=r"without a dot, got 'a\.b'"):
        task_names(["a.b"])
    with pytest.raises(NoLossesError):
        HardSharing(expert(), {})
