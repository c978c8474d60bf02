"""How well predicted probabilities of clicks and conversions do."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mtl_benchmarks.benchmarks.ctr_log import ClickLog
from mtl_core import InvalidInputError

__all__ = ["auc", "log_product", "ne_gain", "normalised_entropy", "scores"]


def normalised_entropy(target: Tensor, log_p: Tensor, log_q: Tensor) -> float:
    r"""Mean log loss over the entropy of the base rate; 1 for a model that knows the base rate only.

    .. math:: \mathrm{NE} = \frac{-\frac1n\sum_k \left(y_k \log p_k + (1 - y_k)\log(1 - p_k)\right)}
        {-\left(\bar y\log\bar y + (1 - \bar y)\log(1 - \bar y)\right)}

    Args:
        target: ``[n]`` in [0, 1]: labels, or a teacher's probabilities.
        log_p: ``[n]``, the logarithm of the prediction.
        log_q: ``[n]``, that of one minus the prediction.

    Raises:
        InvalidInputError: all targets are 0, or all are 1.

    References:
        He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014, section 3.

    Example:
        >>> half = torch.full((4,), 0.5).log()
        >>> round(normalised_entropy(torch.tensor([0.0, 1.0, 0.0, 1.0]), half, half), 6)
        1.0
    """
    y = target.double()
    rate = float(y.mean())
    if not 0.0 < rate < 1.0:
        raise InvalidInputError(f"`target` must have a mean strictly between 0 and 1, got {rate}. Use more samples.")
    loss = -float((y * log_p.double() + (1.0 - y) * log_q.double()).mean())
    return loss / -(rate * math.log(rate) + (1.0 - rate) * math.log(1.0 - rate))


def auc(label: Tensor, score: Tensor) -> float:
    """Area under the ROC curve, in percent: how often a positive is scored above a negative; ties count half.

    NaN where a score is NaN.

    Args:
        label: ``[n]``, boolean or 0 and 1.
        score: ``[n]``.

    Raises:
        InvalidInputError: there is no positive, or no negative.

    Example:
        >>> auc(torch.tensor([0, 1, 0, 1]), torch.tensor([0.1, 0.4, 0.35, 0.8]))
        100.0
    """
    positive = label.bool()
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise InvalidInputError(
            f"`label` must hold both classes, got {n_positive} positive of {len(label)}. Use more samples."
        )
    # A score that is none is neither above nor below another; sorted, it would stand last and count as the highest.
    if bool(torch.isnan(score).any()):
        return math.nan
    # By ranks and not by pairs, of which there are as many as positives times negatives. Equal scores share their mean
    # rank, which counts a tie as half.
    _, place, count = torch.unique(score, return_inverse=True, return_counts=True)
    mean_rank = (count.cumsum(0).double() - (count.double() - 1.0) / 2.0)[place]
    wins = float(mean_rank[positive].sum()) - n_positive * (n_positive + 1) / 2.0
    return 100.0 * wins / (n_positive * n_negative)


def ne_gain(values: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """By how many percent each normalised entropy is below that of a reference run, such as LS; positive is better.

    Example:
        >>> {task: round(gain, 3) for task, gain in ne_gain({"ne_click": 0.81}, {"ne_click": 0.9}).items()}
        {'click': 10.0}
    """
    return {
        name.removeprefix("ne_"): 100.0 * (reference[name] - value) / reference[name]
        for name, value in values.items()
        if name.startswith("ne_")
    }


def log_product(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of p q and of 1 - p q, each ``[n]``, from the logits ``[n]`` of p and q."""
    log_p = functional.logsigmoid(first) + functional.logsigmoid(second)
    # 1 - pq = (1 - p) + p (1 - q), a sum of positive terms: no cancellation.
    parts = (functional.logsigmoid(-first), functional.logsigmoid(first) + functional.logsigmoid(-second))
    return log_p, torch.logaddexp(*parts)


def scores(logits: Mapping[str, Tensor], data: ClickLog) -> dict[str, float]:
    """Every metric of the benchmark.

    Args:
        logits: ``[n]`` each, of ``click``, ``conv_click`` and ``distill``.
        data: the impressions they are for.
    """
    clicked = data.click > 0
    given = logits["conv_click"][clicked]
    log_p, log_q = log_product(logits["click"], logits["conv_click"])

    def both(logit: Tensor) -> tuple[Tensor, Tensor]:
        return functional.logsigmoid(logit), functional.logsigmoid(-logit)

    return {
        "ne_click": normalised_entropy(data.click, *both(logits["click"])),
        "ne_conv_click": normalised_entropy(data.conversion[clicked], *both(given)),
        "ne_conv": normalised_entropy(data.conversion, log_p, log_q),
        "ne_distill": normalised_entropy(data.teacher, *both(logits["distill"])),
        "auc_click": auc(data.click, logits["click"]),
        "auc_conv_click": auc(data.conversion[clicked], given),
        "auc_conv": auc(data.conversion, log_p),
    }
