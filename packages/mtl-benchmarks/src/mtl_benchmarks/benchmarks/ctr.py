"""A simulated log of clicks and conversions, whose true probabilities are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.batching.batches import Batches, Part, resident
from mtl_benchmarks.batching.tally import Rows, Tally, tallied
from mtl_benchmarks.benchmark import Benchmark, Evaluation
from mtl_benchmarks.benchmarks.ctr_log import CATEGORIES, DEVICES, HOURS, ClickLog, ClickWorld
from mtl_benchmarks.benchmarks.ctr_scores import auc, log_product, ne_gain, normalised_entropy, scores
from mtl_benchmarks.components.sizes import fitting
from mtl_benchmarks.metrics import Metric
from mtl_benchmarks.models.shared_tower import SharedTower
from mtl_benchmarks.protocol.optimizers import OptimizerChoice
from mtl_benchmarks.protocol.training import Training
from mtl_core import InvalidParameterError, Problem
from mtl_core.checks import in_interval, non_negative, positive_int
from mtl_core.checks import seed as checked_seed

__all__ = ["CTR", "ClickLog", "auc", "ne_gain", "normalised_entropy"]


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
    caveats: ClassVar[tuple[str, ...]] = (
        "The log is simulated: its numbers compare with other runs of this benchmark and with nothing else.",
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
        self.data_seed = checked_seed("data_seed", data_seed)
        for name in ("n_train", "n_test", "n_users", "n_ads"):  # five fields and as many labels and scores, in 64 bits
            fitting(name, getattr(self, name), bytes_each=2 * 5 * 8)
        self._data: dict[str, ClickLog] = {}

    @property
    def training(self) -> Training:
        """Two epochs of Adam with learning rate 2e-3; the rarest task begins to overfit in the third."""
        return Training(epochs=2, batch_size=256, optimizer=OptimizerChoice("adam", {"lr": 2e-3}))

    @cached_property
    def _world(self) -> ClickWorld:
        return ClickWorld(
            n_users=self.n_users,
            n_ads=self.n_ads,
            click_rate=self.click_rate,
            conversion_rate=self.conversion_rate,
            correlation=self.correlation,
            teacher_noise=self.teacher_noise,
            seed=self.data_seed,
        )

    def data(self, split: Literal["train", "test"]) -> ClickLog:
        """The impressions of a split, drawn once and the same at every call."""
        if split not in self._data:
            # Seeds of their own: the world has `data_seed`, its calibration the next, and neither split depends on the
            # other's length.
            n, offset = (self.n_train, 2) if split == "train" else (self.n_test, 3)
            self._data[split] = self._world.log(n, seed=self.data_seed + offset)
        return self._data[split]

    def build(self) -> nn.Module:
        """A fresh :class:`~mtl_benchmarks.models.SharedTower` with outputs for click, conversion and teacher."""
        cardinalities = {
            "user": self.n_users,
            "ad": self.n_ads,
            "category": CATEGORIES,
            "hour": HOURS,
            "device": DEVICES,
        }
        heads = ("click", "conv_click", "distill")
        return SharedTower(cardinalities, heads=heads, embedding=self.embedding, width=self.width)

    def problem(self, model: nn.Module, *, tasks: Sequence[str]) -> Problem:
        """Mean cross-entropy per task; that of ``conv_click`` over clicked impressions, absent without one."""
        wanted = tuple(tasks)

        def losses(model: nn.Module, batch: ClickLog) -> tuple[dict[str, Tensor | None], Tensor]:
            features = model.get_submodule("trunk")(batch.fields)
            # `conv` has no output of its own: its probability is the product of the two others, which are computed for
            # it even where they are not trained.
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
        return resident(self.data("train"), batch_size=batch_size, seed=seed, device=device)

    def tally(self, model: nn.Module, *, device: str, part: Part) -> Tally:
        """The logits of a part of the test set: the area under a curve needs all of them side by side."""

        def count(data: ClickLog, begin: int, end: int) -> dict[str, Tensor | Rows]:
            logits: dict[str, Tensor] = model(data.fields[begin:end].to(device))
            return {name: Rows(found.double()) for name, found in logits.items()}

        return tallied(model, {"test": self.data("test")}, count, part=part)

    def metrics_from(self, tally: Tally) -> Evaluation:
        """Normalised entropy and area under the curve of every task, over the whole test set.

        Those of ``conv_click`` are over the clicked impressions; the teacher's scores are no labels, and have no area.
        """
        rows = cast("Mapping[str, Rows]", tally["test"])
        logits = {name: found.values for name, found in rows.items()}
        return {"test": scores(logits, self.data("test").to(str(logits["click"].device)))}

    def oracle(self) -> dict[str, float]:
        """What the true probabilities score on the test set: the bound for any model, but for sampling."""
        data = self.data("test")
        p, q = data.p_click.double(), data.p_conversion.double()
        return scores({"click": p.logit(), "conv_click": q.logit(), "distill": p.logit()}, data)


def _rate(name: str, value: float) -> float:
    rate = in_interval(name, value, 0.0, 1.0)
    if rate in (0.0, 1.0):
        raise InvalidParameterError(f"`{name}` must lie strictly between 0 and 1, got {value!r}.")
    return rate


def _loss(task: str, logits: Mapping[str, Tensor], batch: ClickLog) -> Tensor | None:
    if task == "click":
        return functional.binary_cross_entropy_with_logits(logits["click"], batch.click)
    if task == "distill":
        return functional.binary_cross_entropy_with_logits(logits["distill"], batch.teacher)
    if task == "conv":
        log_p, log_q = log_product(logits["click"], logits["conv_click"])
        return -(batch.conversion * log_p + (1.0 - batch.conversion) * log_q).mean()
    clicked = batch.click > 0
    if not bool(clicked.any()):
        return None
    return functional.binary_cross_entropy_with_logits(logits["conv_click"][clicked], batch.conversion[clicked])
