from __future__ import annotations

import math

import pytest
import torch

from mtl_aggregators import MARIGOLD, AuxiliaryWeights, Bilevel, MainTasks
from mtl_benchmarks import CTR, Choice, Collection, RunConfig, run
from mtl_benchmarks.benchmarks.ctr import auc, ne_gain, normalised_entropy
from mtl_benchmarks.models import SharedTower
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_core import InvalidInputError, InvalidParameterError, step

SMALL = {"n_train": 2000, "n_test": 4000, "n_users": 100, "n_ads": 30, "width": 8, "embedding": 4}


def test_normalised_entropy_by_hand() -> None:
    target = torch.tensor([1.0, 0.0, 0.0, 0.0])
    p = torch.tensor([0.5, 0.25, 0.25, 0.25])
    loss = -(math.log(0.5) + 3 * math.log(0.75)) / 4
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert normalised_entropy(target, p.log(), (1 - p).log()) == pytest.approx(loss / base, rel=1e-6)
    rate = torch.full((4,), 0.25)
    assert normalised_entropy(target, rate.log(), (1 - rate).log()) == pytest.approx(1.0, rel=1e-6)
    with pytest.raises(InvalidInputError, match="strictly between 0 and 1, got 0"):
        normalised_entropy(torch.zeros(3), rate, rate)


def test_auc_by_hand() -> None:
    # Positives 0.8 and 0.4 against negatives 0.4, 0.1 and 0.9: two wins, two losses, and 1 win and a tie.
    label, score = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0.8, 0.4, 0.4, 0.1, 0.9])
    assert auc(label, score) == pytest.approx(100 * (2 + 1.5) / 6)
    assert auc(label, torch.zeros(5)) == 50.0
    assert auc(label, -score) == pytest.approx(100 - auc(label, score))
    with pytest.raises(InvalidInputError, match="both classes, got 0 positive of 3"):
        auc(torch.zeros(3), torch.rand(3))


def test_auc_of_what_is_no_number() -> None:
    score = torch.tensor([0.0, 1.0, math.nan])
    assert math.isnan(auc(torch.tensor([0, 1, 1]), score))
    assert auc(torch.tensor([0, 1, 1]), score.nan_to_num(posinf=math.inf, nan=math.inf)) == 100.0


def test_auc_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(500, generator=generator) < 0.1
    score = (torch.rand(500, generator=generator) * 20).round()
    assert auc(label, score) == pytest.approx(100 * metrics.roc_auc_score(label.numpy(), score.numpy()))


def test_ne_gain() -> None:
    gains = ne_gain({"ne_click": 0.72, "auc_click": 80.0}, {"ne_click": 0.8, "auc_click": 70.0})
    assert gains == pytest.approx({"click": 10.0})


def test_the_log_keeps_to_its_probabilities() -> None:
    log = CTR(n_train=100_000, n_test=10).data("train")
    assert bool((log.conversion <= log.click).all())
    assert float(log.click.mean()) == pytest.approx(0.15, abs=0.01)
    assert float(log.p_conversion.mean()) == pytest.approx(0.2, abs=0.01)
    # Calibrated by tenths: what happens is as frequent as it is likely.
    for happened, probability in (
        (log.click, log.p_click),
        (log.conversion, log.p_click * log.p_conversion),
        (log.conversion[log.click > 0], log.p_conversion[log.click > 0]),
    ):
        order = probability.argsort()
        for part in order.chunk(10):
            expected = float(probability[part].mean())
            spread = math.sqrt(expected * (1 - expected) / len(part))
            assert abs(float(happened[part].mean()) - expected) < 4.5 * spread
    # Clicks and conversions are correlated: clicked impressions convert more readily than the average one would.
    assert float(log.p_conversion[log.click > 0].mean()) > 0.22


def test_fields_are_in_range_and_ids_have_long_tails() -> None:
    ctr = CTR(**SMALL)
    fields = ctr.data("train").fields
    assert fields.min() == 0
    assert fields.amax(0).tolist() <= [99, 29, 19, 23, 3]
    counts = torch.bincount(fields[:, 0], minlength=100)
    assert counts[:10].sum() > 2 * counts[-10:].sum()
    categories = {(int(ad), int(category)) for ad, category in fields[:, 1:3]}
    assert len(categories) == len({ad for ad, _ in categories})


def test_data_depend_on_the_data_seed_alone() -> None:
    torch.manual_seed(1)
    first = CTR(**SMALL).data("train")
    torch.manual_seed(2)
    second, other = CTR(**SMALL).data("train"), CTR(**SMALL, data_seed=1).data("train")
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))
    assert not torch.equal(first.fields, other.fields)
    assert not torch.equal(first.fields[:1000], CTR(**SMALL).data("test").fields[:1000])


def test_the_teacher_is_right_up_to_its_noise() -> None:
    exact = CTR(**SMALL, teacher_noise=0.0).data("train")
    assert torch.allclose(exact.teacher, exact.p_click, atol=1e-6)
    noisy = CTR(**SMALL, teacher_noise=0.5).data("train")
    assert float((noisy.teacher.logit() - noisy.p_click.logit()).std()) == pytest.approx(0.5, rel=0.1)


def test_losses_by_hand() -> None:
    ctr = CTR(**SMALL)
    torch.manual_seed(0)
    model = ctr.build()
    problem = ctr.problem(model, tasks=ctr.tasks)
    batch = ctr.data("train").rows(torch.arange(500))
    losses = dict(zip(ctr.tasks, problem.losses(batch).values.detach(), strict=True))
    logits = {name: found.detach() for name, found in model(batch.fields).items()}
    p, q = logits["click"].double().sigmoid(), logits["conv_click"].double().sigmoid()

    def cross_entropy(target: torch.Tensor, probability: torch.Tensor) -> float:
        target = target.double()
        return -float((target * probability.log() + (1 - target) * (1 - probability).log()).mean())

    clicked = batch.click > 0
    assert float(losses["click"]) == pytest.approx(cross_entropy(batch.click, p), rel=1e-5)
    assert float(losses["conv_click"]) == pytest.approx(cross_entropy(batch.conversion[clicked], q[clicked]), rel=1e-5)
    assert float(losses["conv"]) == pytest.approx(cross_entropy(batch.conversion, p * q), rel=1e-5)
    teacher = logits["distill"].double().sigmoid()
    assert float(losses["distill"]) == pytest.approx(cross_entropy(batch.teacher, teacher), rel=1e-5)


def test_a_batch_without_clicks_lacks_a_task() -> None:
    ctr = CTR(**SMALL)
    problem = ctr.problem(ctr.build(), tasks=ctr.tasks)
    log = ctr.data("train")
    silent = log.rows(torch.arange(len(log))[log.click == 0][:50])
    assert problem.losses(silent).tasks == ("click", "conv", "distill")
    optimizer = OptimizerChoice("adam", {"lr": 1e-3}).build(problem)
    for mode in ({}, {"lookahead": "fused"}):
        report = step(problem, silent, optimizer, MARIGOLD(**mode))  # type: ignore[arg-type]
        assert report.weights is not None
        assert float(report.weights[1]) == 0.0


def test_the_product_is_exact_for_extreme_logits() -> None:
    ctr = CTR(**SMALL)
    model = ctr.build()
    assert isinstance(model, SharedTower)
    for value in (-80.0, 80.0):
        with torch.no_grad():
            for head in model.heads.values():
                head.get_parameter("weight").zero_()
                head.get_parameter("bias").fill_(value)
        problem = ctr.problem(model, tasks=("conv",))
        loss = problem.losses(ctr.data("train")).values
        assert bool(torch.isfinite(loss).all())
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_single_tasks_use_what_they_need() -> None:
    ctr = CTR(**SMALL)
    model = ctr.build()
    batch = ctr.data("train")
    for task in ctr.tasks:
        assert ctr.problem(model, tasks=(task,)).losses(batch).tasks == (task,)


def test_learning_beats_the_base_rate_and_not_the_oracle() -> None:
    ctr = CTR(n_train=20_000, n_test=10_000, n_users=100, n_ads=30, width=16)
    torch.manual_seed(0)
    model = ctr.build()
    problem = ctr.problem(model, tasks=ctr.tasks)
    optimizer = OptimizerChoice("adam", {"lr": 5e-3}).build(problem)
    batches = ctr.batches(batch_size=256, seed=0, device="cpu")
    for index in range(len(batches)):
        step(problem, batches.batch(0, index), optimizer, lambda jacobian: jacobian.sum(0))
    found, best = ctr.evaluate(model, device="cpu")["test"], ctr.oracle()
    assert set(found) == {metric.name for metric in ctr.metrics} == set(best)
    for task in ctr.tasks:
        assert best[f"ne_{task}"] < found[f"ne_{task}"] < 0.99
    assert 60.0 < found["auc_click"] < best["auc_click"]
    assert model.training


def test_auxiliary_learning() -> None:
    ctr = CTR(**SMALL)
    torch.manual_seed(0)
    problem = ctr.problem(ctr.build(), tasks=ctr.tasks)
    optimizer = OptimizerChoice("adam", {"lr": 2e-3}).build(problem)
    method = Bilevel(upper=MainTasks("click"), weights=AuxiliaryWeights(["distill"], lr=1e-2), lookahead="fused")
    batches = ctr.batches(batch_size=256, seed=0, device="cpu")
    for index in range(len(batches)):
        report = step(problem, batches.batch(0, index), optimizer, method)
    assert report.weights is not None
    assert report.weights[:3].tolist() == [1.0, 1.0, 1.0]
    assert float(report.weights[3]) != 1.0


def test_a_run(tmp_path: object) -> None:
    choice = Choice("ctr", {**SMALL})
    collection = Collection(tmp_path)  # type: ignore[arg-type]
    for method in ("marigold", "famo"):
        config = RunConfig.resolve(choice, method, seed=0, epochs=1)
        values = run(config, collection.run_path(config.name)).values
        assert set(values) == {metric.name for metric in CTR.metrics}


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_train", 0), ("n_test", 0), ("n_users", 0), ("n_ads", 0), ("click_rate", 0.0), ("click_rate", 1.5),
     ("conversion_rate", 1.0), ("correlation", 2.0), ("teacher_noise", -1.0), ("embedding", 0), ("width", 0)],
)  # fmt: skip
def test_refuses(name: str, value: object) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{name}` must"):
        CTR(**{name: value}).build()  # type: ignore[arg-type]
