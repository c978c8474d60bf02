"""What a method remembers is in its state_dict."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_aggregators import (
    CRMOGM,
    DBMTL,
    DWA,
    FAMO,
    IMTLL,
    LS,
    MGDA,
    PCD,
    STCH,
    UW,
    CAGrad,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    GroupedGradVac,
    IMGrad,
    MoCo,
    MoDo,
    NashMTL,
    PCGrad,
    SDMGrad,
    TrimmedMean,
    UPGrad,
)
from mtl_core import InvalidInputError
from mtl_core.extension import gramian_of

FACTORIES: list[Callable[[], Any]] = [
    MGDA,
    PCGrad,
    partial(PCGrad, generator=None),
    CAGrad,
    FairGrad,
    NashMTL,
    partial(NashMTL, update_weights_every=3),
    UPGrad,
    GradVac,
    IMGrad,
    partial(IMGrad, "fairgrad", update_every=3),
    PCD,
    CRMOGM,
    lambda: CRMOGM(GradVac()),
]

JACOBIAN_FACTORIES: list[Callable[[], Any]] = [
    GradDrop,
    partial(GroupedGradVac, sizes=[1, 2]),
    ExcessMTL,
    DBMTL,
    MoCo,
    partial(MoCo, variant="libmtl"),
    TrimmedMean,
]


def gramians(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [gramian_of(torch.randn(5, 3, generator=generator, dtype=torch.float64)) for _ in range(count)]


def saved(method: torch.nn.Module) -> dict[str, Any]:
    """A state_dict that has been to disk and back."""
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    state: dict[str, Any] = torch.load(buffer, weights_only=True)
    return state


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_a_fresh_object_continues_bit_for_bit(factory: Callable[[], Any], steps: int) -> None:
    original = factory()
    for gramian in gramians(steps):
        original.weights(gramian)
    fresh = factory()
    fresh.load_state_dict(saved(original))
    for gramian in gramians(10)[steps:]:
        assert torch.equal(fresh.weights(gramian), original.weights(gramian))


@pytest.mark.parametrize("factory", FACTORIES)
def test_copies_continue_too(factory: Callable[[], Any]) -> None:
    original = factory()
    original.weights(gramians(1)[0])
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        mine = copy.deepcopy(original)
        for gramian in gramians(5):
            assert torch.equal(twin.weights(gramian), mine.weights(gramian))


def test_scalarisation_has_no_state() -> None:
    assert LS(weights=[1.0, 2.0]).state_dict() == {}
    assert copy.deepcopy(LS(weights=[1.0, 2.0]))(torch.ones(2)) == 3.0


@pytest.mark.parametrize("factory", JACOBIAN_FACTORIES)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_methods_on_gradients_continue_bit_for_bit(factory: Callable[[], Any], steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    seen = [torch.randn(5, 3, generator=generator) for _ in range(6)]
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    def call(method: Any, jacobian: Tensor) -> Tensor:
        update: Tensor = method(jacobian, losses=losses) if isinstance(method, DBMTL | MoCo) else method(jacobian)
        return update

    original = factory()
    for jacobian in seen[:steps]:
        call(original, jacobian)
    fresh = factory()
    fresh.load_state_dict(saved(original))
    twins = [fresh, copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    for jacobian in seen[steps:]:
        expected = call(original, jacobian)
        for twin in twins:
            assert torch.equal(call(twin, jacobian), expected)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_methods_that_own_their_step_continue_too(steps: int) -> None:
    matrices = gramians(6)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    norm, trained = GradNorm(), GradNorm()
    for gramian in matrices[:steps]:
        norm.weights(gramian, losses=losses)
    trained.load_state_dict(saved(norm))
    for k, gramian in enumerate(matrices[steps:]):
        moved = losses / (k + 1.0)
        assert torch.equal(norm.weights(gramian, losses=moved), trained.weights(gramian, losses=moved))
    for cls in (SDMGrad, MoDo):
        original, fresh = cls(), cls()
        for gramian in matrices[:steps]:
            original.weigh(gramian)
        fresh.load_state_dict(saved(original))
        for gramian in matrices[steps:]:
            assert torch.equal(original.weigh(gramian), fresh.weigh(gramian))


@pytest.mark.parametrize("factory", [GradVac, PCD, CRMOGM, ExcessMTL, partial(DBMTL, log_losses=False), MoCo])
def test_another_number_of_tasks_is_refused_by_name(factory: Callable[[], Any]) -> None:
    method = factory()
    method(torch.randn(3, 4))
    with pytest.raises(InvalidInputError, match=f"{type(method).__name__} must see the same number of tasks"):
        method(torch.randn(4, 4))
    method.reset()
    assert method(torch.randn(4, 4)).shape == (4,)


@pytest.mark.parametrize("inner", [MGDA, PCGrad, GradVac, PCD, partial(NashMTL, update_weights_every=2), IMGrad])
def test_an_average_refuses_another_number_of_tasks_before_its_weighting_moves(inner: Callable[[], Any]) -> None:
    method, other = CRMOGM(inner()), CRMOGM(inner())
    matrices = [torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    for each in (method, other):
        for jacobian in matrices[:2]:
            each(jacobian)
    with pytest.raises(InvalidInputError, match="same number of tasks"):
        method(torch.randn(4, 4, dtype=torch.float64))
    assert torch.equal(method(matrices[2]), other(matrices[2]))


@pytest.mark.parametrize("n_tasks", [2, 4])
@pytest.mark.parametrize(
    "factory",
    [
        lambda: DWA(variant="window", window=2),
        DWA,
        lambda: STCH(variant="warmup", warmup_epochs=0),
        FAMO,
        IMTLL,
        UW,
    ],
)
def test_another_number_of_losses_is_refused(factory: Callable[[], Any], n_tasks: int) -> None:
    method, losses = factory(), torch.rand(3) + 0.5
    other = torch.rand(n_tasks) + 0.5

    def seen(values: torch.Tensor, epoch: int) -> None:
        if hasattr(method, "start_epoch"):
            method.start_epoch(epoch)
        method(values)
        method.after_step(values, lambda: 0.9 * values)

    for epoch in range(2):
        seen(losses, epoch)
    with pytest.raises(InvalidInputError, match="must hold 3 losses, as before, got"):
        seen(other, 2)
    method.reset()
    seen(other, 0)


def test_another_number_of_tasks_in_methods_that_own_their_step() -> None:
    for method in (SDMGrad(), MoDo()):
        method.weigh(torch.eye(3, dtype=torch.float64))
        with pytest.raises(InvalidInputError, match="same number of tasks"):
            method.weigh(torch.eye(2, dtype=torch.float64))
        method.reset()
        method.weigh(torch.eye(2, dtype=torch.float64))
    norm = GradNorm()
    norm.weights(torch.eye(3), losses=torch.ones(3))
    with pytest.raises(InvalidInputError, match="same number of tasks"):
        norm.weights(torch.eye(2), losses=torch.ones(2))
    norm.reset()
    norm.weights(torch.eye(2), losses=torch.ones(2))
