"""A simulated log of impressions, clicks and conversions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["CATEGORIES", "DEVICES", "HOURS", "ClickLog", "ClickWorld"]

HOURS, DEVICES, CATEGORIES = 24, 4, 20
"""How many values the fields of the context have."""

_RANK = 4


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


class ClickWorld:
    r"""Users and ads, and what they lead to.

    .. math:: \mathrm{logit}\,p = b + b_u + b_a + \langle x_u, y_a\rangle + \text{context}

    once for a click and once for a conversion given a click, with correlated normal parameters. A user or an ad is seen
    with a frequency that falls as one over its rank.

    Args:
        n_users: users.
        n_ads: ads.
        click_rate: mean probability of a click, in (0, 1).
        conversion_rate: mean probability of a conversion given a click, in (0, 1), over all impressions.
        correlation: of the parameters behind clicks and conversions, in [-1, 1].
        teacher_noise: standard deviation of the teacher's logit around the true one.
        seed: of users and ads.

    Example:
        >>> world = ClickWorld(
        ...     n_users=10, n_ads=5, click_rate=0.2, conversion_rate=0.5, correlation=0.0, teacher_noise=0.0, seed=0
        ... )
        >>> log = world.log(100, seed=1)
        >>> bool((log.teacher == log.p_click).all())
        True
    """

    def __init__(
        self,
        *,
        n_users: int,
        n_ads: int,
        click_rate: float,
        conversion_rate: float,
        correlation: float,
        teacher_noise: float,
        seed: int,
    ) -> None:
        self._rates = (click_rate, conversion_rate)
        self._correlation = correlation
        self._teacher_noise = teacher_noise
        self._seed = seed
        generator = torch.Generator().manual_seed(seed)
        self._category = torch.randint(CATEGORIES, (n_ads,), generator=generator)
        # [count, 2, 1 + rank]: bias and factors, for clicks and for conversions
        self._user = self._biases_and_factors(n_users, generator)
        self._ad = self._biases_and_factors(n_ads, generator)
        self._context = [
            self._pair(count, scale=scale, generator=generator)
            for count, scale in ((CATEGORIES, 0.5), (HOURS, 0.2), (DEVICES, 0.3))
        ]
        # From 10 on: from 1 on, the first of 2,000 users would have one impression in eight and decide every metric.
        self._users = 1.0 / torch.arange(10.0, 10.0 + n_users)
        self._ads = 1.0 / torch.arange(10.0, 10.0 + n_ads)

    def _pair(self, count: int, *width: int, scale: float, generator: torch.Generator) -> Tensor:
        """Two correlated normal parameters of each of ``count`` things: for clicks and for conversions."""
        first, other = scale * torch.randn(2, count, *width, generator=generator)
        second = self._correlation * first + math.sqrt(1.0 - self._correlation**2) * other
        return torch.stack([first, second], dim=1)

    def _biases_and_factors(self, count: int, generator: torch.Generator) -> Tensor:
        bias = self._pair(count, 1, scale=0.7, generator=generator)
        # With factors of variance r^-1/2 each, the inner product of r of them has variance 1 for any rank r.
        return torch.cat([bias, self._pair(count, _RANK, scale=_RANK**-0.25, generator=generator)], dim=2)

    def _logits(self, fields: Tensor) -> Tensor:
        """Logits ``[n, 2]`` of click and conversion, without their intercepts."""
        user, ad = self._user[fields[:, 0]], self._ad[fields[:, 1]]
        together = (user[..., 1:] * ad[..., 1:]).sum(-1)
        category, hour, device = self._context
        context = category[fields[:, 2]] + hour[fields[:, 3]] + device[fields[:, 4]]
        return user[..., 0] + ad[..., 0] + together + context

    def _fields(self, n: int, generator: torch.Generator) -> Tensor:
        """Fields ``[n, 5]`` of impressions."""
        user = torch.multinomial(self._users, n, replacement=True, generator=generator)
        ad = torch.multinomial(self._ads, n, replacement=True, generator=generator)
        hour = torch.randint(HOURS, (n,), generator=generator)
        device = torch.randint(DEVICES, (n,), generator=generator)
        return torch.stack([user, ad, self._category[ad], hour, device], dim=1)

    @cached_property
    def _intercepts(self) -> Tensor:
        """Intercepts ``[2]`` that give the mean rates, found on impressions of their own."""
        # Impressions of their own, so that the intercepts, and with them every probability, depend on no split's
        # length.
        fields = self._fields(20_000, torch.Generator().manual_seed(self._seed + 1))
        logits = self._logits(fields).double()
        found = []
        for column, rate in zip(logits.unbind(1), self._rates, strict=True):
            # Bisection: the mean probability rises with the intercept, and 60 halvings of 60 reach the last digit.
            low, high = -30.0, 30.0
            for _ in range(60):
                middle = (low + high) / 2.0
                low, high = (middle, high) if float((column + middle).sigmoid().mean()) < rate else (low, middle)
            found.append((low + high) / 2.0)
        return torch.tensor(found)

    def log(self, n: int, *, seed: int) -> ClickLog:
        """``n`` impressions, the same at every call with the same seed."""
        generator = torch.Generator().manual_seed(seed)
        fields = self._fields(n, generator)
        logits = self._logits(fields) + self._intercepts
        probability = logits.sigmoid()
        happened = torch.rand(n, 2, generator=generator) < probability
        click, conversion = happened[:, 0], happened[:, 0] & happened[:, 1]
        teacher = (logits[:, 0] + self._teacher_noise * torch.randn(n, generator=generator)).sigmoid()
        return ClickLog(fields, click.float(), conversion.float(), teacher, probability[:, 0], probability[:, 1])
