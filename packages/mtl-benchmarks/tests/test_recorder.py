import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl_benchmarks.engine.recorder import Recorder, conflict_statistics
from mtl_core import StepReport, dominated_conflict, imbalance_ratio, mean_cosines, weak_conflict


def report(losses: list[float], jacobian: list[list[float]] | None) -> StepReport:
    rows = None if jacobian is None else torch.tensor(jacobian, dtype=torch.float64)
    gramian = None if rows is None else rows @ rows.T
    return StepReport(torch.tensor(losses), None, gramian, ("a", "b"))


def test_statistics_by_hand() -> None:
    # Mean (1.5, 0): the smaller gradient (-1, 0) points against it.
    opposed = torch.tensor([[4.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    agreeing = torch.tensor([[3.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    found = conflict_statistics(torch.stack([g @ g.T for g in (opposed, agreeing)]))
    assert found == {
        "weak_conflict": 0.5,
        "dominated_conflict": 0.5,
        "any_mean_conflict": 0.5,
        "majority_conflict": 0.5,
        "min_cosine": 0.0,
        "gradient_norm": (1.5 + 3.0) / 2,
        "imbalance": (4.0 + 1.0) / 2,
    }


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 6))
def test_statistics_agree_with_the_metrics_of_one_step(seed: int, m: int, d: int) -> None:
    rows = torch.randn(4, m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gramians = rows @ rows.transpose(1, 2)
    found = conflict_statistics(gramians)

    def mean(function: object) -> float:
        return float(torch.stack([function(gramian=g).double() for g in gramians]).mean())  # type: ignore[operator]

    assert found["weak_conflict"] == mean(weak_conflict)
    assert found["dominated_conflict"] == mean(dominated_conflict)
    assert found["imbalance"] == pytest.approx(mean(imbalance_ratio), rel=1e-9)
    assert found["min_cosine"] == pytest.approx(
        float(torch.stack([mean_cosines(gramian=g).min() for g in gramians]).mean()), abs=1e-6
    )


def test_epoch_means_and_round_trip() -> None:
    recorder = Recorder(("a", "b"))
    recorder.record_step(report([1.0, 3.0], [[1.0, 0.0], [0.0, 1.0]]), [0.5], epoch=0, step=0)
    again = Recorder(("a", "b"))
    again.load_state_dict(recorder.state_dict())
    for each in (recorder, again):
        each.record_step(report([2.0, 5.0], [[1.0, 0.0], [0.0, 1.0]]), [0.25], epoch=0, step=1)
        each.end_interval({"test": {"error": 0.1}}, epoch=1, step=2, rates={"lr": 0.5})
    assert recorder.training == again.training
    assert recorder.training[0]["loss_a"] == 1.5
    assert recorder.training[0]["loss_b"] == 4.0
    assert again.trace == [[0.5], [0.25]]
    assert again.history == [{"test": {"error": 0.1}}]


def test_absent_tasks_and_missing_gramians_do_not_count() -> None:
    recorder = Recorder(("a", "b"))
    recorder.record_step(report([1.0, float("nan")], [[1.0], [0.0]]), None, epoch=0, step=0)
    recorder.record_step(report([3.0, 4.0], None), None, epoch=0, step=1)
    recorder.end_interval({"test": {}}, epoch=1, step=2, rates={})
    assert recorder.training == [{"loss_a": 2.0, "loss_b": 4.0}]


def test_a_majority_is_half_of_the_tasks_by_hand() -> None:
    # Means (0.5, 0), (0, 0.25) and (1, 0): none, two and one of four tasks oppose them.
    none = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    two = [[1.0, -1.0], [-1.0, -1.0], [0.0, 1.5], [0.0, 1.5]]
    one = [[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    rows = [torch.tensor(each, dtype=torch.float64) for each in (none, two, one)]
    found = conflict_statistics(torch.stack([each @ each.T for each in rows]))
    assert found["majority_conflict"] == pytest.approx(1 / 3)
    assert found["any_mean_conflict"] == pytest.approx(2 / 3)
