"""What is kept of weights, norms and cosines over time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl_benchmarks.engine.series import TaskSeries, Thinned, pair_cosines
from mtl_core import StepReport, individual_progress


def report(weights: list[float], jacobian: list[list[float]]) -> StepReport:
    rows = torch.tensor(jacobian, dtype=torch.float64)
    return StepReport(torch.tensor([1.0, 2.0]), torch.tensor(weights), rows @ rows.T, ("a", "b"))


@given(st.integers(2, 20), st.integers(1, 500))
def test_a_thinned_series_is_bounded_evenly_spaced_and_never_empty(limit: int, n: int) -> None:
    kept: Thinned[int] = Thinned(limit)
    for place in range(n):
        kept.offer(place, place)
    places = [place for place, _ in kept.items]
    assert places == list(range(0, n, kept.stride))
    assert len(places) <= limit
    assert len(places) > limit // 2 or kept.stride == 1


def test_means_by_hand() -> None:
    series = TaskSeries(("a", "b"))
    first, second = [[3.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [-2.0, 0.0]]
    gramians = []
    for step, (weights, jacobian) in enumerate((([1.0, 3.0], first), ([2.0, 5.0], second))):
        given_ = report(weights, jacobian)
        series.record_step(given_, step=step)
        gramians.append(given_.gramian)
    row = series.end_interval(torch.stack(gramians), steps=2, number=0)  # type: ignore[arg-type]
    assert row == pytest.approx(
        {
            "weight_a": 1.5,
            "weight_b": 4.0,
            "norm_a": 2.0,
            "norm_b": 3.0,
            "cosine_a": (0.6 - 1.0) / 2,  # the mean gradient is (1.5, 2), then (-0.5, 0)
            "cosine_b": (0.8 + 1.0) / 2,
        }
    )
    assert list(series.pair_rows()) == [(0, "a", "b", -0.5)]
    assert list(series.step_rows()) == [
        (0, "a", 1.0, 1.0, 3.0),
        (0, "b", 2.0, 3.0, 4.0),
        (1, "a", 1.0, 2.0, 1.0),
        (1, "b", 2.0, 5.0, 2.0),
    ]
    # The updates are (3, 12), at cosines 3 and 12 over sqrt(153), and (-8, 0).
    length = 153**0.5
    assert [(step, task) for step, task, *_ in series.gradient_rows()] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert [list(row[2:]) for row in series.gradient_rows()] == [
        pytest.approx([3 / length, 9.0, 0.0]),
        pytest.approx([12 / length, 0.0, 16.0]),
        pytest.approx([-1.0, 1.0, -2.0]),
        pytest.approx([1.0, -2.0, 4.0]),
    ]


def test_a_task_without_gradient_has_no_cosine() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    found = pair_cosines((rows @ rows.T)[None])
    assert found[0, 0] == 1.0
    assert bool(found[0, 1].isnan())
    assert bool(found[1, 1].isnan())


def test_going_on_from_any_step_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    reports = [report(torch.rand(2, generator=generator).tolist(), torch.randn(2, 3, generator=generator).tolist())
               for _ in range(8)]  # fmt: skip

    def feed(series: TaskSeries, begin: int, end: int) -> TaskSeries:
        for step in range(begin, end):
            series.record_step(reports[step], step=step)
            if step % 4 == 3:
                gramians = [each.gramian for each in reports[step - 3 : step + 1]]
                series.end_interval(torch.stack(gramians), steps=4, number=step // 4)  # type: ignore[arg-type]
        return series

    whole = feed(TaskSeries(("a", "b")), 0, 8)
    for cut in range(9):
        half = feed(TaskSeries(("a", "b")), 0, cut)
        again = TaskSeries(("a", "b"))
        again.load_state_dict(half.state_dict())
        feed(again, cut, 8)
        assert list(again.step_rows()) == list(whole.step_rows())
        assert list(again.pair_rows()) == list(whole.pair_rows())
        assert list(again.gradient_rows()) == list(whole.gradient_rows())


def test_an_update_without_weights_brings_its_own_progress() -> None:
    series = TaskSeries(("a", "b"))
    gramian = torch.eye(2, dtype=torch.float64)
    known = StepReport(torch.ones(2), None, gramian, ("a", "b"), progress=torch.tensor([0.5, -0.5]))
    for step, each in enumerate((known, StepReport(torch.ones(2), None, gramian, ("a", "b")))):
        series.record_step(each, step=step)
    series.end_interval(torch.stack([gramian, gramian]), steps=2, number=0)
    assert [row[2] for row in series.gradient_rows()] == [0.5, -0.5, "", ""]


@given(st.integers(0, 2**31), st.integers(2, 5))
def test_progress_is_that_of_core(seed: int, n_tasks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(n_tasks, 6, generator=generator, dtype=torch.float64)
    jacobian[0] *= float(seed % 3 > 0)  # now and then a task without a gradient
    weights = torch.randn(n_tasks, generator=generator, dtype=torch.float64)
    tasks, gramian = tuple("abcde"[:n_tasks]), jacobian @ jacobian.T
    series = TaskSeries(tasks)
    series.record_step(StepReport(torch.ones(n_tasks), weights, gramian, tasks), step=0)
    series.end_interval(gramian[None], steps=1, number=0)
    found = [row[2] for row in series.gradient_rows()]
    assert found == pytest.approx(individual_progress(None, weights, gramian=gramian).tolist(), abs=1e-12)


def test_a_checkpoint_of_before_goes_on() -> None:
    state = TaskSeries(("a", "b")).state_dict()
    del state["gradients"]
    again = TaskSeries(("a", "b"))
    again.load_state_dict(state)
    assert list(again.gradient_rows()) == []
