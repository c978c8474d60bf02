"""The solvers that stay on the Gramian's device: the same results, and nothing that waits for it.

CPU tensors stand in for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_aggregators import MGDA, CAGrad, DualProj, FairGrad, GramianMethod, IMGrad, NashMTL, UPGrad, make
from mtl_aggregators.solvers import ball_dual, device, fair_point, min_norm, min_norm_residual, project_rows
from mtl_core import InvalidParameterError, collect
from mtl_core.extension import gramian_of
from mtl_core.testing import STRUCTURES, jacobian_of

SIZES = ((2, 3), (3, 8), (5, 24), (11, 16), (11, 4), (40, 45))

METHODS: dict[str, Callable[..., GramianMethod]] = {
    "MGDA": MGDA,
    "MGDA l2": partial(MGDA, normalization="l2", paper_scale=True),
    "CAGrad": CAGrad,
    "CAGrad c=2": partial(CAGrad, c=2.0, rescale="c2"),
    "NashMTL": NashMTL,
    "NashMTL paper": partial(NashMTL, paper_scale=True),
    "FairGrad 2": partial(FairGrad, alpha=2.0),
    "FairGrad 0.5": partial(FairGrad, alpha=0.5),
    "UPGrad": UPGrad,
    "UPGrad ridge": partial(UPGrad, ridge=1e-3),
    "DualProj": DualProj,
    "IMGrad": IMGrad,
    "IMGrad lm": partial(IMGrad, measure="lm"),
    "IMGrad dc": partial(IMGrad, CAGrad(c=2.0, paper_scale=True), measure="dc"),
    "IMGrad nash": partial(IMGrad, "nashmtl"),
    "IMGrad fair": partial(IMGrad, FairGrad(alpha=2.0)),
}


def draws(structure: Any) -> list[Tensor]:
    return [
        jacobian_of(structure, n_tasks=m, n_parameters=d, spread=spread, scale=spread - 3.0, seed=m + d)
        for m, d in SIZES
        for spread in (0.0, 2.0, 6.0)
    ]


def off(jacobian: Tensor, found: np.ndarray | Tensor, expected: np.ndarray) -> float:
    """How far two updates lie apart, relative to what the expected one is summed from."""
    found = found.numpy() if isinstance(found, Tensor) else found
    size = float(np.abs(expected) @ jacobian.norm(dim=1).numpy())
    return float(np.linalg.norm(jacobian.numpy().T @ (found - expected))) / (size + 1e-300)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", METHODS)
def test_both_backends_agree(name: str, structure: str) -> None:
    host, here = METHODS[name](backend="host"), METHODS[name](backend="device")
    for jacobian in draws(structure)[:: 4 if name.startswith(("CAGrad", "IMGrad")) else 1]:
        gramian = gramian_of(jacobian)
        expected = host.weights(gramian).numpy()
        if name == "MGDA l2":
            # At stationary points the weights are not unique, but what they make of the unit gradients is.
            jacobian = jacobian / jacobian.norm(dim=1, keepdim=True).clamp(min=1e-300)
        assert off(jacobian, here.weights(gramian), expected) <= 1e-8


@pytest.mark.parametrize("structure", STRUCTURES)
def test_residuals_are_those_of_the_host(structure: str) -> None:
    for jacobian in draws(structure):
        gramian = gramian_of(jacobian)
        assert min_norm_residual(gramian.numpy(), device.min_norm(gramian).numpy()) <= 1e-10
        rows = device.project_rows(gramian).numpy()
        expected = project_rows(gramian.numpy()).value
        assert max(off(jacobian, row, other) for row, other in zip(rows, expected, strict=True)) <= 1e-8


def test_batches_are_solved_together() -> None:
    gramians = torch.stack([gramian_of(jacobian_of("generic", n_tasks=4, n_parameters=9, seed=s)) for s in range(6)])
    together = (
        device.min_norm(gramians),
        device.fair_point(gramians, 2.0),
        device.ball_dual(gramians, linear=1.0, norm=0.4),
    )
    for i, gramian in enumerate(gramians):
        assert together[0][i].tolist() == pytest.approx(min_norm(gramian.numpy()).value.tolist(), abs=1e-10)
        assert together[1][i].tolist() == pytest.approx(fair_point(gramian.numpy(), 2.0).value.tolist(), rel=1e-9)
        ball = ball_dual(gramian.numpy(), linear=1.0, norm=0.4)
        assert together[2].step[i].tolist() == pytest.approx(ball.step.tolist(), abs=1e-9)
        assert together[2].value[i].tolist() == pytest.approx(ball.value.tolist(), abs=1e-9)
        assert device.project_rows(gramians)[i].flatten().tolist() == pytest.approx(
            project_rows(gramian.numpy()).value.ravel().tolist(), abs=1e-9
        )


class Synchronisations(TorchDispatchMode):
    """Counts the operations whose result a host has to wait for on an accelerator."""

    WAITING = (
        "aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.equal", "aten.is_nonzero", "aten.masked_select",
        "aten._unique", "aten.repeat_interleave.Tensor", "aten.linalg_eigh", "aten._linalg_eigh", "aten.linalg_solve.",
        "aten.linalg_cholesky.", "aten.index.Tensor_bool",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.calls += 1
        copies_to_host = name.startswith("aten._to_copy") and (kwargs or {}).get("device") == torch.device("cpu")
        boolean_index = name.startswith("aten.index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool
            for i in (args[1] if len(args) > 1 and isinstance(args[1], list) else ())
        )
        if name.startswith(self.WAITING) or copies_to_host or boolean_index:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_tasks", [2, 3, 11])
@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_the_device(name: str, n_tasks: int) -> None:
    gramian = gramian_of(jacobian_of("generic", n_tasks=n_tasks, n_parameters=15, seed=1))
    method = METHODS[name](backend="device")
    with Synchronisations() as counter:
        method.weights(gramian)
    assert counter.calls > 5
    assert counter.seen == []


@pytest.mark.parametrize("name", METHODS)
def test_nor_does_an_update_by_hand(name: str) -> None:
    jacobian = jacobian_of("generic", n_tasks=3, n_parameters=15, seed=1)
    method = METHODS[name](backend="device")
    with Synchronisations() as counter:
        method(jacobian)
    assert counter.calls > 5
    assert counter.seen == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", METHODS)
def test_an_accelerator_does_not_wait_either(name: str) -> None:
    jacobian = jacobian_of("generic", n_tasks=11, n_parameters=15, seed=1).to("cuda")
    method = METHODS[name](backend="device")
    method(jacobian)  # handles and workspaces are made at the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        update = method(jacobian)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(update.cpu(), METHODS[name](backend="host")(jacobian.cpu()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_imgrad_where_the_balance_is_zero(structure: Any) -> None:
    for jacobian in draws(structure)[::2]:
        gramian = gramian_of(jacobian)
        base = CAGrad(c=0.8)
        expected = base.augmented(gramian.numpy(), 0.0)
        found = base.augmented_on_device(gramian, torch.zeros((), dtype=torch.float64))
        assert off(jacobian, found, expected) <= 1e-8


@pytest.mark.parametrize("structure", STRUCTURES)
def test_cagrad_in_a_small_ball(structure: Any) -> None:
    # The mean's pull then outweighs by far the distances between the gradients that decide.
    host, here = CAGrad(c=1e-5, backend="host"), CAGrad(c=1e-5, backend="device")
    for jacobian in draws(structure)[::4]:
        gramian = gramian_of(jacobian)
        mean = 1.0 / len(gramian)
        step = (here.weights(gramian) - mean) / 1e-5
        # Of gradients along one line the last digits go into the squared ratio of 1e5.
        assert off(jacobian, step, (host.weights(gramian).numpy() - mean) / 1e-5) <= 1e-5


def test_the_counter_sees_what_the_host_backend_does() -> None:
    with Synchronisations() as counter:
        MGDA(backend="host").weights(torch.eye(3))
    assert counter.seen


@pytest.mark.parametrize("name", ["MGDA", "UPGrad", "FairGrad 2", pytest.param("IMGrad", marks=pytest.mark.slow)])
def test_they_are_captured_whole(name: str) -> None:
    method = METHODS[name](backend="device")
    gramian = gramian_of(jacobian_of("generic", n_tasks=3, n_parameters=9, seed=2))
    graphs = torch._dynamo.explain(method.solve_on_device)(gramian)
    assert graphs.graph_count == 1
    assert graphs.graph_break_count == 0


def test_what_is_not_finite_is_not_hidden() -> None:
    bad = torch.eye(3, dtype=torch.float64)
    for value in (float("nan"), float("inf")):
        bad[0, 1] = bad[1, 0] = value
        for factory in METHODS.values():
            assert bool(torch.isnan(factory(backend="device").weights(bad)).all())


def test_zero_gradients() -> None:
    for factory in METHODS.values():
        weights = factory(backend="device").weights(torch.zeros(3, 3))
        expected = factory(backend="host").weights(torch.zeros(3, 3))
        assert weights.tolist() == pytest.approx(expected.tolist())


def test_auto_is_the_host_for_host_gramians() -> None:
    method = MGDA()
    method.weights(torch.eye(3))
    assert method.last_solution is not None
    assert not device.solves_on_device("auto", torch.eye(2))
    assert device.solves_on_device("auto", torch.empty(2, 2, device="meta"))
    assert not device.solves_on_device("auto", torch.empty(2, 2, device="meta"), closed=False)
    assert not device.solves_on_device("auto", torch.empty(3, 3, device="meta"))


def test_what_has_a_closed_form_takes_a_tenth_of_the_operations() -> None:
    gramian = gramian_of(jacobian_of("generic", n_tasks=2, n_parameters=15, seed=1))
    for name, factory in METHODS.items():
        method = factory(backend="device")
        with Synchronisations() as counter:
            method.weights(gramian)
        assert (counter.calls < 100) == method.closed_on_device, (name, counter.calls)


WITHOUT: dict[str, dict[str, Any]] = {
    "mgda": {"normalization": "loss"},
    "fairgrad": {"variant": "released"},
    "nashmtl": {"update_weights_every": 2},
    "imgrad": {"update_every": 2},
    "imtlg": {},
}


@pytest.mark.parametrize("name", WITHOUT)
def test_configurations_without_a_device_solver_say_so_where_they_are_given(name: str) -> None:
    settings = WITHOUT[name]
    with pytest.raises(InvalidParameterError, match=r"`backend` must be 'host' or 'auto'.*got 'device'"):
        make(name, backend="device", **settings)
    assert make(name, backend="auto", **settings).backend == "host"


def test_nor_do_others_take_the_device() -> None:
    with pytest.raises(InvalidParameterError, match="`backend` must be 'host' or 'auto'"):
        IMGrad(NashMTL(backend="host"), backend="device")
    with pytest.raises(InvalidParameterError, match="`backend` must be one of"):
        MGDA(backend="gpu")  # type: ignore[arg-type]


def test_updates_by_hand_stay_on_the_device_too() -> None:
    jacobian = jacobian_of("generic", n_tasks=3, n_parameters=7, seed=5)
    host, here = UPGrad(backend="host"), UPGrad(backend="device")
    assert torch.allclose(here(jacobian), host(jacobian))
    assert here.last_solution is None
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    gradients = collect([theta[0] ** 2, theta.sum()], [theta])
    update = here(gradients)
    assert "host_gramian" not in gradients.__dict__
    assert torch.allclose(update, host(gradients))
