"""Two gloo processes on one machine against one process on the whole batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mtl_core import InvalidInputError, MicroBatches, NonFiniteGradientError, NonFiniteLossError, Problem, collect, step
from mtl_core.testing import TwoLayers, leave, small_problem

WORLD = 2


class ByNorm:
    """A weighting whose weights depend on what it sees, so that ranks that see different Gramians drift apart."""

    def weights(self, gramian: Tensor) -> Tensor:
        return 1.0 / (1.0 + gramian.diagonal().sqrt())


class ByLoss:
    """The same on losses, looking back after the step."""

    needs = "losses"
    takes_present = True

    def __init__(self) -> None:
        self.after: list[Tensor] = []

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return (losses**2).sum()

    def after_step(self, before: Tensor, after: Callable[[], Tensor]) -> None:
        self.after.append(after())


def by_matrix(jacobian: Tensor) -> Tensor:
    return (jacobian / jacobian.norm(dim=1, keepdim=True)).sum(0)


METHODS: dict[str, Callable[[], Any]] = {"weighting": ByNorm, "losses": ByLoss, "aggregator": lambda: by_matrix}


def whole_batch() -> Tensor:
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def partly_labelled() -> Problem:
    """A problem in which a batch holds the tasks that its first row says."""
    torch.manual_seed(0)

    def losses(model: nn.Module, batch: tuple[Tensor, tuple[str, ...]]) -> dict[str, Tensor]:
        x, names = batch
        outputs = model(x)[1]
        return {name: outputs["abc".index(name)].square().mean() for name in names}

    model = TwoLayers(3)
    return Problem(model, losses, shared="trunk", tasks=("a", "b", "c"))


def overflow_in_a_head(group: dist.ProcessGroup | None, rank: int) -> str:
    """What a step says where weights make a head's gradient infinite, on the one rank that has its task."""

    class Large:
        def weights(self, gramian: Tensor) -> Tensor:
            return torch.full((len(gramian),), 1e150, dtype=torch.float64)

    def losses(model: nn.Module, batch: tuple[Tensor, str]) -> dict[str, Tensor]:
        x, names = batch
        z = 1e-150 * model.trunk(x).sum()
        return {name: z + 1e200 * model.heads["abc".index(name)](x.new_ones(4)).sum() for name in names}

    torch.manual_seed(0)
    problem = Problem(TwoLayers(3), losses, shared="trunk", tasks=("a", "b", "c"))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    # A head of the first task alone has a gradient on one rank.
    names = ("a", "")[rank] or "b"
    for p in problem.model.heads[1:].parameters():
        p.requires_grad_(False)
    try:
        step(problem, (whole_batch(), names), optimizer, Large(), heads="weighted", group=group)
    except InvalidInputError as error:
        return str(error)
    return "no error"


def train_rows(group: dist.ProcessGroup | None, rank: int, world: int, used: str) -> tuple[list[bool], list[Tensor]]:
    """Embeddings of which each rank touches other rows, one of them on one rank only: are their gradients sparse?"""
    torch.manual_seed(0)
    tables = {name: nn.Embedding(6, 2, sparse=True) for name in ("shared", "own")}
    model = nn.ModuleDict({**tables, "a": nn.Linear(2, 1), "b": nn.Linear(2, 1)}).double()

    def losses(model: Any, ids: Tensor) -> dict[str, Tensor | None]:
        z = model["shared"](ids)
        first = (model["a"](z) - 1.0).square().mean()
        if used == "multiplied too":
            first = first + model["shared"].weight.square().mean()
        both = torch.cat([ids, ids]) if world == 1 else ids
        second = (model["b"](z) + model["own"](both[: len(ids)])).square().mean()
        # The second task is on the first rank's half of the batch alone.
        return {"a": first, "b": second if rank == 0 else None}

    problem = Problem(model, losses, shared=[model["shared"].weight], tasks=("a", "b"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    halves = [torch.tensor([0, 1, 1]), torch.tensor([3, 1, 4])]
    for _ in range(2):
        if world == 1:
            # One process: the first task on both halves, the second on the first.
            optimizer.zero_grad()
            of = [losses(model, ids) for ids in halves]
            total = 0.5 * (of[0]["a"] + of[1]["a"]) + of[0]["b"]  # type: ignore[operator]
            total.backward()  # type: ignore[union-attr]
            optimizer.step()
        else:
            step(problem, halves[rank], optimizer, ByFirst(), group=group)
    sparse = [table.weight.grad is not None and table.weight.grad.is_sparse for table in tables.values()]
    return sparse, [p.detach() for p in model.parameters()]


class ByFirst:
    """The sum of the losses that are there."""

    needs = "losses"
    takes_present = True

    def __call__(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        return losses.sum()


def train(group: dist.ProcessGroup | None, rank: int, world: int) -> dict[str, Any]:
    """Every scenario, on one rank's part of the data; ``world=1`` is the reference."""
    found: dict[str, Any] = {}
    problem, _ = small_problem(3, features=True)
    losses = problem.losses(whole_batch().chunk(world)[rank])
    grads = collect(losses.outputs, problem.shared, features=losses.features, heads=problem.heads, group=group)
    found["matrix"], found["losses"] = grads.matrix, grads.losses
    found["heads"] = [p.grad for p in problem.heads]
    for name, make in METHODS.items():
        problem, _ = small_problem(3)
        problem.model.register_buffer("statistic", torch.full((1,), float(rank)))
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
        method = make()
        for k in range(3):
            batch = whole_batch().roll(k, 0).chunk(world)[rank]
            report = step(problem, batch, optimizer, method, max_norm=0.5, group=group)
        found[name] = [p.detach() for p in problem.model.parameters()]
        found[f"{name} losses"] = report.losses
        found[f"{name} buffer"] = problem.model.statistic
        if isinstance(method, ByLoss):
            found["after"] = method.after
    for name in ("weighting", "losses"):
        problem, _ = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
        parts = MicroBatches(whole_batch().chunk(world)[rank].chunk(4 // world))
        step(problem, parts, optimizer, METHODS[name](), group=group)
        found[f"accumulated {name}"] = [p.detach() for p in problem.model.parameters()]
    for used in ("looked up", "multiplied too"):
        found[f"rows {used}"] = train_rows(group, rank, world, used)
    if world == 1:
        return found
    problem, _ = small_problem(3)
    losses = problem.losses(whole_batch().chunk(world)[rank])
    parts = collect(losses.outputs, problem.shared, group=group, keep="scattered")
    found["scattered"] = parts.gramian, parts.combine(torch.ones(3)), parts.matrix.shape[1]
    found["heads overflow"] = overflow_in_a_head(group, rank)
    found["sharded"] = train_sharded(rank)
    found["replicated"] = train_replicated(rank)
    for name in ("weighting", "losses"):
        problem = partly_labelled()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
        names = (("a", "b"), ("b", "c"))[rank]
        report = step(problem, (whole_batch().chunk(world)[rank], names), optimizer, METHODS[name](), group=group)
        found[f"partly {name}"] = [p.detach() for p in problem.model.parameters()]
        found[f"partly {name} losses"] = report.losses
    return found


def _worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300)
    )
    torch.save(train(dist.group.WORLD, rank, WORLD), f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_worker, args=(str(folder),), nprocs=WORLD, join=True)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train(None, 0, 1)


def test_mean_jacobian_losses_and_heads(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert torch.equal(ranks[0]["matrix"], ranks[1]["matrix"])
    for name in ("matrix", "losses", "heads"):
        torch.testing.assert_close(ranks[0][name], alone[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ranks[1][name], alone[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_steps_equal_those_of_one_process(ranks: list[dict[str, Any]], alone: dict[str, Any], method: str) -> None:
    for p, q in zip(ranks[0][method], ranks[1][method], strict=True):
        assert torch.equal(p, q)  # bit for bit, or the ranks drift apart
    torch.testing.assert_close(ranks[0][method], alone[method], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ranks[1][f"{method} losses"], alone[f"{method} losses"], rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("used", ["looked up", "multiplied too"])
def test_rows_of_embeddings_stay_rows(ranks: list[dict[str, Any]], alone: dict[str, Any], used: str) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank[f"rows {used}"][1], alone[f"rows {used}"][1], rtol=1e-10, atol=1e-12)
        assert rank[f"rows {used}"][0] == [used == "looked up", True]


@pytest.mark.parametrize("method", ["weighting", "losses"])
def test_micro_batches_on_every_rank(ranks: list[dict[str, Any]], alone: dict[str, Any], method: str) -> None:
    for p, q in zip(ranks[0][f"accumulated {method}"], ranks[1][f"accumulated {method}"], strict=True):
        assert torch.equal(p, q)
    expected = alone[f"accumulated {method}"]
    torch.testing.assert_close(ranks[0][f"accumulated {method}"], expected, rtol=1e-6, atol=1e-9)


def test_losses_after_the_step_are_those_of_the_whole_batch(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for k in range(3):
        torch.testing.assert_close(ranks[0]["after"][k], alone["after"][k], rtol=1e-9, atol=0.0)
        assert torch.equal(ranks[0]["after"][k], ranks[1]["after"][k])


def test_buffers_are_those_of_the_first_rank(ranks: list[dict[str, Any]]) -> None:
    assert [float(found["weighting buffer"]) for found in ranks] == [0.0, 0.0]


@pytest.mark.parametrize("method", ["weighting", "losses"])
def test_ranks_may_hold_different_tasks(ranks: list[dict[str, Any]], method: str) -> None:
    """A task's gradient is the mean over the ranks that have it; here ``b`` is on both, ``a`` and ``c`` on one each."""
    problem = partly_labelled()
    first, second = whole_batch().chunk(2)
    one, two = problem.losses((first, ("a", "b"))).values, problem.losses((second, ("b", "c"))).values
    losses = torch.stack([one[0], (one[1] + two[0]) / 2, two[1]])
    torch.testing.assert_close(ranks[0][f"partly {method} losses"], losses.detach(), rtol=1e-9, atol=0.0)
    rows = [torch.autograd.grad(loss, problem.shared, retain_graph=True) for loss in losses]
    jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    weights = ByNorm().weights(jacobian @ jacobian.T) if method == "weighting" else 2 * losses.detach()
    expected = torch.cat([p.detach().reshape(-1) for p in problem.shared]) - 0.05 * weights @ jacobian
    head_gradients = torch.autograd.grad(losses.sum(), problem.heads)
    for found in ranks:
        names = dict(zip((n for n, _ in problem.model.named_parameters()), found[f"partly {method}"], strict=True))
        moved = torch.cat([names[name].reshape(-1) for name in problem.shared_names])
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)
        heads = [p for name, p in names.items() if name not in problem.shared_names]
        for p, old, gradient in zip(heads, problem.heads, head_gradients, strict=True):
            torch.testing.assert_close(p, old.detach() - 0.05 * gradient, rtol=1e-9, atol=1e-12)


class HalfBroken(nn.Module):
    """A finite loss, whose gradient is NaN in the first row of the second head and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 2, dtype=torch.float64)
        self.heads = nn.ModuleList(nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        apart = self.heads[1](z.detach())[:, 0]
        return {
            "a": self.heads[0](z).square().mean(),
            "b": self.heads[1](z)[:, 1].square().mean() + (0 * apart).sqrt().sum(),
        }


def train_sharded(rank: int) -> dict[str, Any]:
    """The same steps with every parameter sharded over the ranks."""
    found: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", (WORLD,))
    for name, make in SHARDABLE.items():
        for form, features in (("mapping", False), ("stack", True)):
            problem, _ = small_problem(3, form=form, features=features)  # type: ignore[arg-type]
            fully_shard(problem.model.trunk, mesh=mesh)
            fully_shard(problem.model, mesh=mesh)
            optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
            for k in range(3):
                report = step(problem, whole_batch().roll(k, 0).chunk(WORLD)[rank], optimizer, make(), max_norm=0.5)
            found[name, form] = [p.full_tensor().detach() for p in problem.model.parameters()]  # type: ignore[attr-defined]
            found[name, form, "losses"] = report.losses
    problem, _ = small_problem(3)
    fully_shard(problem.model, mesh=mesh)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    with pytest.raises(InvalidInputError) as refused:
        step(problem, whole_batch().chunk(WORLD)[rank], optimizer, by_matrix)
    found["refused"] = str(refused.value)
    # A loss that is NaN on one rank must not leave the other in the backward pass alone.
    batch = whole_batch().chunk(WORLD)[rank]
    with pytest.raises(NonFiniteLossError) as broken:
        step(problem, batch * float("nan") if rank == 1 else batch, optimizer, ByNorm())
    found["broken"] = str(broken.value)
    # A head whose gradient is NaN in the first row alone, which lies on the first rank.
    problem = Problem(HalfBroken(), lambda model, x: model(x), shared="trunk", tasks=("a", "b"))
    fully_shard(problem.model, mesh=mesh)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
    with pytest.raises(NonFiniteGradientError) as half:
        step(problem, batch, optimizer, ByNorm())
    found["half"] = str(half.value)
    return found


class Sum:
    """The plain sum of the losses, by their gradients."""

    def weights(self, gramian: Tensor) -> Tensor:
        return gramian.new_ones(len(gramian))


def train_replicated(rank: int) -> dict[str, Any]:
    """The sum of the losses by torch's own data parallelism and by ours, from the same start on the same parts."""
    found: dict[str, Any] = {}
    for name in ("torch", "ours"):
        problem, _ = small_problem(3)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05)
        wrapped = nn.parallel.DistributedDataParallel(problem.model) if name == "torch" else None
        for k in range(3):
            part = whole_batch().roll(k, 0).chunk(WORLD)[rank]
            if wrapped is None:
                step(problem, part, optimizer, Sum(), group=dist.group.WORLD)
                continue
            optimizer.zero_grad()
            outputs = wrapped(part)[1]
            torch.stack([((y - i) ** 2).mean() * (i + 1) for i, y in enumerate(outputs)]).sum().backward()
            optimizer.step()
        found[name] = [p.detach() for p in problem.model.parameters()]
        if wrapped is not None:
            with pytest.raises(InvalidInputError) as refused:
                Problem(wrapped, lambda model, x: model(x), shared="module.trunk", tasks=("a",))
            found["refused"] = str(refused.value)
    return found


SHARDABLE: dict[str, Callable[[], Any]] = {"weighting": ByNorm, "losses": ByLoss}


@pytest.mark.parametrize("method", SHARDABLE)
@pytest.mark.parametrize("form", ["mapping", "stack"])
def test_sharded_steps_equal_those_of_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], method: str, form: str
) -> None:
    for found in ranks:
        torch.testing.assert_close(found["sharded"][method, form], alone[method], rtol=1e-6, atol=1e-9)
        losses = found["sharded"][method, form, "losses"]
        # As the parameters at which they are taken: under PyTorch 2.9 they differ by 4e-8.
        torch.testing.assert_close(losses, alone[f"{method} losses"], rtol=1e-6, atol=0.0)


def test_a_function_of_the_jacobian_is_not_given_some_of_its_columns(ranks: list[dict[str, Any]]) -> None:
    """Norms of some columns are not those of the gradients: without a word, each rank would go its own way."""
    for found in ranks:
        assert found["sharded"]["refused"].startswith("on every rank: the whole Jacobian must be on this rank")


def test_a_loss_that_is_nan_on_one_rank_of_a_sharded_model_is_an_error_on_all(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["sharded"]["broken"].startswith("on rank 1: ")


def test_a_head_that_is_broken_in_the_shard_of_one_rank_is_an_error_on_all(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "gradients of the heads of tasks ['b'] must be finite" in found["sharded"]["half"]


def test_a_head_that_overflows_on_one_rank_is_an_error_on_all(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "`heads` must be 'unit' for these weights" in found["heads overflow"]


def test_the_sum_is_what_data_parallelism_trains(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        replicated = found["replicated"]
        torch.testing.assert_close(replicated["ours"], replicated["torch"], rtol=1e-6, atol=1e-12)
        assert "must be the bare module, got DistributedDataParallel" in replicated["refused"]


def test_scattered_columns_give_the_same(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for found in ranks:
        gramian, combined, width = found["scattered"]
        assert width < alone["matrix"].shape[1]
        torch.testing.assert_close(gramian, alone["matrix"] @ alone["matrix"].T, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(combined, alone["matrix"].sum(0), rtol=1e-10, atol=1e-12)
