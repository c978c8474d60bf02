import sys

import pytest
import torch

from mtl_benchmarks.benchmarks.digits import Digits, _scanned_digits, overlay
from mtl_benchmarks.models import OverlayCNN
from mtl_core import InvalidParameterError, MissingExtraError, collect

SMALL = {"n_train": 200, "n_test": 100, "width": 2}


def test_overlay_takes_the_darker_pixel() -> None:
    left, right = torch.full((1, 8, 8), 0.25), torch.full((1, 8, 8), 0.75)
    canvas = overlay(left, right, shift=4)[0, 0]
    assert canvas.shape == (12, 12)
    assert canvas[0, 0] == 0.25
    assert canvas[5, 5] == 0.75
    assert canvas[11, 11] == 0.75
    assert canvas[0, 11] == 0
    assert overlay(left, right, shift=0).shape == (1, 1, 8, 8)


def test_train_and_test_share_no_source() -> None:
    digits = Digits(n_train=3000, n_test=3000)
    train, test = digits.data("train"), digits.data("test")
    assert not set(train.sources.flatten().tolist()) & set(test.sources.flatten().tolist())
    assert len(set(train.sources.flatten().tolist())) <= round(1797 * 2 / 3)
    assert train.images.min() >= 0
    assert train.images.max() == 1


def test_classes_belong_to_the_pictures() -> None:
    # Corner to corner nothing overlaps, so each digit can be read back from the canvas.
    digits = Digits(**SMALL, shift=8)
    data = digits.data("train")
    again = Digits(**SMALL, shift=0).data("train")
    upper, lower = data.images[:, 0, :8, :8], data.images[:, 0, 8:, 8:]
    assert torch.equal(torch.maximum(upper, lower), again.images[:, 0])
    pairs = {(int(s), int(c)) for s, c in zip(data.sources[:, 0], data.left, strict=True)}
    pairs |= {(int(s), int(c)) for s, c in zip(data.sources[:, 1], data.right, strict=True)}
    assert len(pairs) == len({source for source, _ in pairs})


def test_data_depend_on_the_data_seed_alone() -> None:
    torch.manual_seed(1)
    first = Digits(**SMALL).data("train")
    torch.manual_seed(2)
    assert torch.equal(first.images, Digits(**SMALL).data("train").images)
    assert not torch.equal(first.images, Digits(**SMALL, data_seed=1).data("train").images)


def test_class_balance() -> None:
    even = torch.bincount(Digits(n_train=20000, n_test=1).data("train").left, minlength=10) / 2000
    assert even.min() > 0.9
    assert even.max() < 1.1
    skewed = Digits(n_train=20000, n_test=2000, class_balance=0.1)
    counts = torch.bincount(skewed.data("train").left, minlength=10)
    assert 0.08 < counts[9] / counts[0] < 0.12
    assert torch.bincount(skewed.data("test").left, minlength=10).min() > 150


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_train", 0), ("shift", 9), ("shift", -1), ("width", 0), ("class_balance", 0), ("class_balance", 2),
     ("reconstruction", "max"), ("reconstruction_weight", 0)],
)  # fmt: skip
def test_refuses(name: str, value: object) -> None:
    with pytest.raises(InvalidParameterError, match=f"`{name}` must"):
        Digits(**{name: value})  # type: ignore[arg-type]


def test_three_losses_and_their_gradients() -> None:
    digits = Digits(**SMALL)
    torch.manual_seed(0)
    model = digits.build()
    problem = digits.problem(model, tasks=digits.tasks)
    batch = digits.batches(batch_size=16, seed=0, device="cpu").batch(0, 0)
    losses = problem.losses(batch)
    assert losses.tasks == ("left", "right", "image")
    output = model(batch.images)
    expected = (output["image"] - batch.images.flatten(1)).square().mean()
    assert losses.values[2].item() == pytest.approx(expected.item())
    # Through the features or without them: the same gradients.
    with_features = collect(losses.values, problem.shared, features=losses.features, heads=problem.heads)
    without = collect(problem.losses(batch).values, problem.shared)
    assert torch.allclose(with_features.matrix, without.matrix, atol=1e-6)


def test_reconstruction_options_scale_the_loss() -> None:
    values = {}
    for options in ({}, {"reconstruction": "sum"}, {"reconstruction_weight": 3.0}):
        digits = Digits(**SMALL, **options)
        torch.manual_seed(0)
        problem = digits.problem(digits.build(), tasks=("image",))
        batch = digits.batches(batch_size=8, seed=0, device="cpu").batch(0, 0)
        values[str(options)] = problem.losses(batch).values.item()
    mean, total, tripled = values.values()
    assert total == pytest.approx(144 * mean, rel=1e-5)
    assert tripled == pytest.approx(3 * mean, rel=1e-5)


def test_evaluation_by_hand_and_mode() -> None:
    digits = Digits(**SMALL)
    model = digits.build().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_submodule("left").bias[3] = 1.0  # type: ignore[index, operator]
    values = digits.evaluate(model, device="cpu")["test"]
    data = digits.data("test")
    assert values["accuracy_left"] == pytest.approx(100 * (data.left == 3).double().mean().item())
    assert values["error_image"] == pytest.approx(data.images.double().square().mean().sqrt().item())
    assert model.training


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    _scanned_digits.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'scikit-learn>="):
        Digits(**SMALL).data("train")


def test_model_sizes() -> None:
    model = OverlayCNN(canvas=12, width=8)
    assert sum(p.numel() for p in model.trunk.parameters()) == 80 + 1168 + (144 * 64 + 64)
    with pytest.raises(InvalidParameterError, match="width"):
        OverlayCNN(width=0)
