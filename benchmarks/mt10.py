"""Soft actor-critic on MT10: what an update costs whose ten task gradients are taken apart.

    python -m nox -s bench -- mt10 [--rounds 9] [--batch 1280] [--width 400] [--method cagrad] [--threads 1]

The networks and the batch are those of the papers: three layers of 400 units for the actor and each of two critics,
1280 transitions of ten tasks at random. A plain update is the algorithm written down by hand: targets, one backward
pass for the critics, one for the actor, one for the temperature, three steps of Adam, the targets moved. Beside it
stand the agent's own updates: the mean of the losses; the method with a graph for each task (`split`); and with all
tasks at once by `torch.func.vmap` (`vmap`). They take turns in one process; times are medians over rounds of the time
of the process, which a busy machine does not stretch as much as that on the clock. The ratios are of rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.making import make_method
from mtl_benchmarks.models import GaussianActor, TwinCritic
from mtl_benchmarks.sac import SACAgent, SACProtocol, Transitions
from mtl_benchmarks.worlds import MT10_TASKS

TARGET = 2.5
STEPS = 2_000_000


def transitions(n: int) -> Transitions:
    generator = torch.Generator().manual_seed(0)
    observations, following = torch.randn(2, n, 39, generator=generator)
    actions = torch.rand(n, 4, generator=generator) * 2 - 1
    rewards = torch.rand(n, generator=generator)
    return Transitions(observations, actions, rewards, following, torch.randint(10, (n,), generator=generator))


def plain_update(width: int) -> Callable[[Transitions], None]:
    """The update of soft actor-critic by hand, of the mean over the batch."""
    torch.manual_seed(0)
    actor, critic = GaussianActor(hidden=(width,) * 3), TwinCritic(hidden=(width,) * 3)
    target = copy.deepcopy(critic).requires_grad_(False)
    logarithm = torch.zeros(1, requires_grad=True)
    optimizers = [torch.optim.Adam(each, lr=3e-4) for each in (critic.parameters(), actor.parameters(), [logarithm])]

    def descend(number: int, loss: torch.Tensor) -> None:
        optimizers[number].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[number].step()

    def update(batch: Transitions) -> None:
        n = len(batch.rewards)
        with torch.no_grad():
            actions, density = actor.sample(batch.following, torch.randn(n, 4))
            goals = torch.minimum(*target(batch.following, actions)) - logarithm.exp() * density
            goals = batch.rewards + 0.99 * goals
        first, second = critic(batch.observations, batch.actions)
        descend(0, functional.mse_loss(first, goals) + functional.mse_loss(second, goals))
        actions, density = actor.sample(batch.observations, torch.randn(n, 4))
        critic.requires_grad_(False)
        descend(1, (logarithm.exp().detach() * density - torch.minimum(*critic(batch.observations, actions))).mean())
        critic.requires_grad_(True)
        descend(2, (logarithm.exp() * (4.0 - density).detach()).mean())
        with torch.no_grad():
            for kept, own in zip(target.parameters(), critic.parameters(), strict=True):
                kept.lerp_(own, 0.005)

    return update


def agent_update(width: int, method: str, grouping: str) -> Callable[[Transitions], object]:
    torch.manual_seed(0)
    protocol = SACProtocol(hidden=(width,) * 3, grouping=grouping)  # type: ignore[arg-type]
    return SACAgent(MT10_TASKS, protocol, lambda seed: make_method(Choice(method), seed=seed)).update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1280)
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--method", default="cagrad")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    updates: dict[str, Callable[[Transitions], object]] = {
        "plain, by hand": plain_update(options.width),
        "mean of the losses": agent_update(options.width, "ls", "split"),
        f"{options.method}, split": agent_update(options.width, options.method, "split"),
        f"{options.method}, vmap": agent_update(options.width, options.method, "vmap"),
    }
    batch = transitions(options.batch)
    for update in updates.values():
        update(batch)
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    clock: dict[str, list[float]] = {name: [] for name in updates}
    for number in range(options.rounds):
        for name in list(updates)[:: 1 if number % 2 == 0 else -1]:
            begin, start = time.perf_counter(), time.process_time()
            updates[name](batch)
            seconds[name].append(time.process_time() - start)
            clock[name].append(time.perf_counter() - begin)
    print(f"batch {options.batch}, three layers of {options.width}, {options.threads} thread(s)")
    print(f"  {'':<22} {'s/update':>9} {'on the clock':>13} {'of plain':>9} {'spread':>14} {'2M updates':>12}")
    plain = seconds["plain, by hand"]
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, plain, strict=True)]
        middle, spent = statistics.median(ratios), statistics.median(own)
        told = f"{min(ratios):.2f} to {max(ratios):.2f}"
        hours = f"{spent * STEPS / 3600:.0f} h"
        print(
            f"  {name:<22} {spent:9.3f} {statistics.median(clock[name]):13.3f} {middle:9.2f} {told:>14}   {hours:>10}"
        )
        if name.startswith(options.method):
            print(f"    target {TARGET} {'met' if middle <= TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
