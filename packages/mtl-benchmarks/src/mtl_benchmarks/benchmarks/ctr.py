"""A simulated log of clicks and conversions, whose true probabilities are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batches import Batches
from mtl_benchmarks.benchmark import Benchmark, Evaluation, Training
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.shared_tower import SharedTower
from mtl_core import Problem
from mtl_core.checks import in_interval, non_negative, positive_int
from mtl_core.errors import InvalidInputError, InvalidParameterError

__all__ = ["CTR", "ClickLog", "auc", "ne_gain", "normalised_entropy"]

_RANK = 4
_HOURS, _DEVICES, _CATEGORIES = 24, 4, 20


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


@dataclass(frozen=True)
class ClickLog:
    """Impressions with what came of them.

    Attributes:
        fields: [n, 5] int64: user, ad, the ad's category, hour, device.
        click: [n] float32, 0 or 1.
        conversion: [n] float32, 0 or 1; only a clicked impression converts.
        teacher: [n] float32, a teacher's probability of a click.
        p_click: [n] float32, the true probability of a click.
        p_conversion: [n] float32, the true probability of a conversion given a click.
    """

    fields: Tensor
    click: Tensor
    conversion: Tensor
    teacher: Tensor
    p_click: Tensor
    p_conversion: Tensor

    def __len__(self) -> int:
        return len(self.click)

    def rows(self, rows: Tensor) -> ClickLog:
        """The chosen impressions."""
        return ClickLog(*(column[rows] for column in vars(self).values()))

    def to(self, device: str) -> ClickLog:
        """The same impressions on another device."""
        return ClickLog(*(column.to(device) for column in vars(self).values()))


@dataclass(frozen=True)
class _World:
    """The users and ads, and what they lead to."""

    user: Tensor  # [n_users, 2, 1 + rank]: bias and factors, for clicks and for conversions
    ad: Tensor
    category: Tensor  # [n_ads] int64
    category_effect: Tensor  # [categories, 2]
    hour: Tensor  # [hours, 2]
    device: Tensor  # [devices, 2]
    users: Tensor  # [n_users], how often each is seen
    ads: Tensor

    def logits(self, fields: Tensor) -> Tensor:
        """Logits [n, 2] of click and conversion, without their intercepts."""
        user, ad = self.user[fields[:, 0]], self.ad[fields[:, 1]]
        together = (user[..., 1:] * ad[..., 1:]).sum(-1)
        context = self.category_effect[fields[:, 2]] + self.hour[fields[:, 3]] + self.device[fields[:, 4]]
        return user[..., 0] + ad[..., 0] + together + context

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Fields [n, 5] of impressions."""
        user = torch.multinomial(self.users, n, replacement=True, generator=generator)
        ad = torch.multinomial(self.ads, n, replacement=True, generator=generator)
        hour = torch.randint(_HOURS, (n,), generator=generator)
        device = torch.randint(_DEVICES, (n,), generator=generator)
        return torch.stack([user, ad, self.category[ad], hour, device], dim=1)


class CTR(Benchmark):
    r"""Advertisements: will it be clicked, will the click convert, will the view convert, what does a teacher say?

    Every impression is a user, an ad with its category, an hour and a device. Users and ads have biases and factors, so
    that :math:`\mathrm{logit}\,p = b + b_u + b_a + \langle x_u, y_a\rangle + \text{context}`, once for a click and
    once for a conversion given a click, with correlated parameters. A conversion needs a click:
    :math:`p_{\text{conv}} = p_{\text{click}}\, p_{\text{conv|click}}`, and the network predicts it as that product of
    its two outputs, over all impressions; the loss of ``conv_click`` is over the clicked ones alone, and it is absent
    from a batch without a click. The ``teacher`` knows the true logit of a click up to noise.

    It has the shape of the auxiliary-learning experiment on ads ranking in the MARIGOLD paper (main tasks ``click``,
    ``conv_click`` and ``conv``, auxiliary task ``distill``), on simulated data: its numbers compare with other
    runs of this benchmark and with nothing else. ``oracle`` says what the true probabilities would score.

    Args:
        n_train: impressions in the training set.
        n_test: impressions in the test set.
        n_users: users, seen with a frequency that falls as one over the rank.
        n_ads: ads, likewise.
        click_rate: mean probability of a click, in (0, 1).
        conversion_rate: mean probability of a conversion given a click, in (0, 1), over all impressions.
        correlation: of the parameters behind clicks and conversions, in [-1, 1].
        teacher_noise: standard deviation of the teacher's logit around the true one.
        embedding: width of the network's embeddings.
        width: units of its shared layers.
        data_seed: seed of users, ads and impressions.

    Raises:
        InvalidParameterError: an option is out of its range.

    References:
        Ma et al., *Entire Space Multi-Task Model*, SIGIR 2018 (the product over all impressions); Chen et al., *Feed m
        Birds with One Scone*, section 4.2.

    Example:
        >>> ctr = CTR(n_train=1000, n_test=1000)
        >>> log = ctr.data("train")
        >>> log.fields.shape, bool((log.conversion <= log.click).all())
        (torch.Size([1000, 5]), True)
    """

    name: ClassVar[str] = "ctr"
    tasks: ClassVar[tuple[str, ...]] = ("click", "conv_click", "conv", "distill")
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(
            Metric(f"ne_{task}", task, "", higher_is_better=False)
            for task in ("click", "conv_click", "conv", "distill")
        ),
        *(Metric(f"auc_{t}", t, "%", higher_is_better=True) for t in ("click", "conv_click", "conv")),
    )

    def __init__(
        self,
        *,
        n_train: int = 60_000,
        n_test: int = 40_000,
        n_users: int = 2000,
        n_ads: int = 300,
        click_rate: float = 0.15,
        conversion_rate: float = 0.2,
        correlation: float = 0.5,
        teacher_noise: float = 0.5,
        embedding: int = 8,
        width: int = 64,
        data_seed: int = 0,
    ) -> None:
        self.n_train = positive_int("n_train", n_train)
        self.n_test = positive_int("n_test", n_test)
        self.n_users = positive_int("n_users", n_users)
        self.n_ads = positive_int("n_ads", n_ads)
        self.click_rate = _rate("click_rate", click_rate)
        self.conversion_rate = _rate("conversion_rate", conversion_rate)
        self.correlation = in_interval("correlation", correlation, -1.0, 1.0)
        self.teacher_noise = non_negative("teacher_noise", teacher_noise)
        self.embedding = positive_int("embedding", embedding)
        self.width = positive_int("width", width)
        self.data_seed = data_seed
        self._data: dict[str, ClickLog] = {}

    @property
    def training(self) -> Training:
        """Two epochs of Adam with learning rate 2e-3; the rarest task begins to overfit in the third."""
        return Training(epochs=2, batch_size=256, lr=2e-3)

    @cached_property
    def _world(self) -> _World:
        generator = torch.Generator().manual_seed(self.data_seed)

        def pair(count: int, *width: int, scale: float) -> Tensor:
            """Two correlated normal parameters of each of ``count`` things: for clicks and for conversions."""
            first, other = scale * torch.randn(2, count, *width, generator=generator)
            second = self.correlation * first + math.sqrt(1.0 - self.correlation**2) * other
            return torch.stack([first, second], dim=1)

        def parameters(count: int) -> Tensor:
            bias = pair(count, 1, scale=0.7)
            return torch.cat([bias, pair(count, _RANK, scale=_RANK**-0.25)], dim=2)

        category = torch.randint(_CATEGORIES, (self.n_ads,), generator=generator)
        return _World(
            user=parameters(self.n_users),
            ad=parameters(self.n_ads),
            category=category,
            category_effect=pair(_CATEGORIES, scale=0.5),
            hour=pair(_HOURS, scale=0.2),
            device=pair(_DEVICES, scale=0.3),
            users=1.0 / torch.arange(10.0, 10.0 + self.n_users),
            ads=1.0 / torch.arange(10.0, 10.0 + self.n_ads),
        )

    @cached_property
    def _intercepts(self) -> Tensor:
        """Intercepts [2] that give the mean rates, found on impressions that are in neither set."""
        fields = self._world.draw(20_000, torch.Generator().manual_seed(self.data_seed + 1))
        logits = self._world.logits(fields).double()
        found = []
        for column, rate in zip(logits.unbind(1), (self.click_rate, self.conversion_rate), strict=True):
            low, high = -30.0, 30.0
            for _ in range(60):
                middle = (low + high) / 2.0
                low, high = (middle, high) if float((column + middle).sigmoid().mean()) < rate else (low, middle)
            found.append((low + high) / 2.0)
        return torch.tensor(found)

    def data(self, split: Literal["train", "test"]) -> ClickLog:
        """The impressions of a split, drawn once and the same at every call."""
        if split not in self._data:
            self._data[split] = self._draw(split)
        return self._data[split]

    def _draw(self, split: Literal["train", "test"]) -> ClickLog:
        n, offset = (self.n_train, 2) if split == "train" else (self.n_test, 3)
        generator = torch.Generator().manual_seed(self.data_seed + offset)
        fields = self._world.draw(n, generator)
        logits = self._world.logits(fields) + self._intercepts
        probability = logits.sigmoid()
        happened = torch.rand(n, 2, generator=generator) < probability
        click, conversion = happened[:, 0], happened[:, 0] & happened[:, 1]
        teacher = (logits[:, 0] + self.teacher_noise * torch.randn(n, generator=generator)).sigmoid()
        return ClickLog(fields, click.float(), conversion.float(), teacher, probability[:, 0], probability[:, 1])

    def build(self) -> nn.Module:
        """A fresh :class:`~mtl_benchmarks.models.SharedTower` with outputs for click, conversion and teacher."""
        cardinalities = {
            "user": self.n_users,
            "ad": self.n_ads,
            "category": _CATEGORIES,
            "hour": _HOURS,
            "device": _DEVICES,
        }
        heads = ("click", "conv_click", "distill")
        return SharedTower(cardinalities, heads=heads, embedding=self.embedding, width=self.width)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean cross-entropy per task; that of ``conv_click`` over clicked impressions, absent without one."""
        wanted = tuple(tasks)

        def losses(model: nn.Module, batch: ClickLog) -> tuple[dict[str, Tensor | None], Tensor]:
            features = model.get_submodule("trunk")(batch.fields)
            needed = {"click", "conv_click"} if "conv" in wanted else set()
            logits: dict[str, Tensor] = {
                name: model.get_submodule(f"heads.{name}")(features)[:, 0]
                for name in ("click", "conv_click", "distill")
                if name in wanted or name in needed
            }
            return {task: _loss(task, logits, batch) for task in wanted}, features

        return Problem(model, losses, shared=model.get_submodule("trunk"), tasks=wanted)

    def batches(self, *, batch_size: int, seed: int, device: str) -> Batches[ClickLog]:
        """Shuffled training impressions, kept on the device."""
        data = self.data("train").to(device)
        return Batches(lambda rows, generator: data.rows(rows.to(device)), len(data), batch_size=batch_size, seed=seed)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, device: str) -> Evaluation:
        """Normalised entropy and area under the curve of every task, over the whole test set.

        Those of ``conv_click`` are over the clicked impressions; the teacher's scores are no labels, and have no area.
        """
        data = self.data("test").to(device)
        was_training = model.training
        model.eval()
        logits: dict[str, Tensor] = {name: found.double() for name, found in model(data.fields).items()}
        model.train(was_training)
        return {"test": _scores(logits, data)}

    def oracle(self) -> dict[str, float]:
        """What the true probabilities score on the test set: the bound for any model, but for sampling."""
        data = self.data("test")
        p, q = data.p_click.double(), data.p_conversion.double()
        return _scores({"click": p.logit(), "conv_click": q.logit(), "distill": p.logit()}, data)


def _rate(name: str, value: float) -> float:
    rate = in_interval(name, value, 0.0, 1.0)
    if rate in (0.0, 1.0):
        raise InvalidParameterError(f"`{name}` must lie strictly between 0 and 1, got {value!r}.")
    return rate


def _log_product(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of p q and of 1 - p q, from the logits of p and q."""
    log_p = functional.logsigmoid(first) + functional.logsigmoid(second)
    # 1 - pq = (1 - p) + p (1 - q), a sum of positive terms: no cancellation.
    parts = (functional.logsigmoid(-first), functional.logsigmoid(first) + functional.logsigmoid(-second))
    return log_p, torch.logaddexp(*parts)


def _loss(task: str, logits: Mapping[str, Tensor], batch: ClickLog) -> Tensor | None:
    if task == "click":
        return functional.binary_cross_entropy_with_logits(logits["click"], batch.click)
    if task == "distill":
        return functional.binary_cross_entropy_with_logits(logits["distill"], batch.teacher)
    if task == "conv":
        log_p, log_q = _log_product(logits["click"], logits["conv_click"])
        return -(batch.conversion * log_p + (1.0 - batch.conversion) * log_q).mean()
    clicked = batch.click > 0
    if not bool(clicked.any()):
        return None
    return functional.binary_cross_entropy_with_logits(logits["conv_click"][clicked], batch.conversion[clicked])


def _scores(logits: Mapping[str, Tensor], data: ClickLog) -> dict[str, float]:
    clicked = data.click > 0
    given = logits["conv_click"][clicked]
    log_p, log_q = _log_product(logits["click"], logits["conv_click"])

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
