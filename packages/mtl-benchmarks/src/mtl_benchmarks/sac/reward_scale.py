"""Rewards of different tasks brought to one scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy

__all__ = ["RewardScale"]

_FLOOR = 1e-8


class RewardScale:
    r"""Divides each task's rewards by their running deviation: :math:`r / (\sqrt{v} + 10^{-8})`.

    Mean and variance move exponentially, :math:`\mu \leftarrow (1-\rho)\mu + \rho r` and then
    :math:`v \leftarrow (1-\rho)v + \rho (r-\mu)^2`, from 0 and 1; the mean is not subtracted.

    Args:
        n_tasks: how many tasks.
        rate: :math:`\rho`.

    Example:
        >>> scale = RewardScale(1, rate=0.5)
        >>> scale(numpy.array([2.0])).tolist()  # mean 1, variance 0.5 + 0.5
        [1.99999998]
    """

    def __init__(self, n_tasks: int, *, rate: float) -> None:
        self._rate = rate
        self._mean = numpy.zeros(n_tasks)
        self._variance = numpy.ones(n_tasks)

    def __call__(self, rewards: numpy.ndarray) -> numpy.ndarray:
        """The rewards ``[m]`` of one step, scaled, after they were taken into account."""
        self._mean = (1 - self._rate) * self._mean + self._rate * rewards
        # Around the mean that has just moved, not the one before: the formula of the class.
        self._variance = (1 - self._rate) * self._variance + self._rate * (rewards - self._mean) ** 2
        scaled: numpy.ndarray = rewards / (numpy.sqrt(self._variance) + _FLOOR)
        return scaled

    def state_dict(self) -> dict[str, Any]:
        """Mean and variance."""
        return {"mean": self._mean.tolist(), "variance": self._variance.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._mean, self._variance = numpy.array(state["mean"]), numpy.array(state["variance"])
