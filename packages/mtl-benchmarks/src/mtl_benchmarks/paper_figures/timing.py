"""Time and memory of methods, measured in turn: the COST paper's appendix figure 4 and MARIGOLD's table 3.

One epoch of the first method, one of the second and so on, then the second epoch of each: what else the machine does
falls on all of them alike, and ratios are taken within a turn.
"""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtl_benchmarks.batching.randomness import seeded
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.trainer import Trainer
from mtl_benchmarks.figures.sweeps import pairs_of_bars, time_and_memory
from mtl_benchmarks.paper_figures.setting import Made, Setting

__all__ = ["Turn", "epochs_in_turn", "peak_memory", "time_with_teleports", "times_beside", "times_of_methods"]

MiB = 2**20
_MEMORY_STEPS = 6
_FEW = 3
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Turn:
    """An epoch of one method.

    Attributes:
        seconds: on the clock, from its first batch to its last update.
        processor_seconds: of this process, to which others on the machine add nothing.
        teleports: that were kept in it.
    """

    seconds: float
    processor_seconds: float
    teleports: int


def epochs_in_turn(
    configs: Mapping[str, RunConfig], *, epochs: int, say: Callable[[str], None] | None = None
) -> dict[str, list[Turn]]:
    """Train each configuration for some epochs, one epoch of each after the other, in this process.

    A first epoch of each, in which memory is laid out, is trained and not counted. Which one begins moves on by one
    with each turn.

    Args:
        configs: name → what is trained.
        epochs: that are counted.
        say: called with a line of text after each turn.

    Returns:
        name → its epochs, in order.
    """
    first = next(iter(configs.values()))
    found: dict[str, list[Turn]] = {name: [] for name in configs}
    names = list(configs)
    with seeded(first.seed, threads=first.threads):
        trainers = {name: Trainer(config) for name, config in configs.items()}
        try:
            for turn in range(-1, epochs):
                start = max(turn, 0) % len(names)
                for name in (*names[start:], *names[:start]):
                    took = _epoch(trainers[name])
                    if turn >= 0:
                        found[name].append(took)
                if say is not None:
                    say(f"  turn {turn + 1} of {epochs}" if turn >= 0 else "  a first epoch of each, not counted")
        finally:
            for trainer in trainers.values():
                trainer.close()
    return found


def _epoch(trainer: Trainer) -> Turn:
    moved = trainer.recorder.n_events(accepted=True)
    _wait(trainer.device)
    begin, busy = time.perf_counter(), time.process_time()
    for _ in range(trainer.steps_per_epoch):
        trainer.take_step()
    _wait(trainer.device)
    took = Turn(time.perf_counter() - begin, time.process_time() - busy, 0)
    # Where an evaluation stands in a run, and what has gathered since the last one is let go.
    trainer.evaluate()
    return Turn(took.seconds, took.processor_seconds, trainer.recorder.n_events(accepted=True) - moved)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(config: RunConfig) -> float:
    """How far memory rises above that of a model that is ready to train, in bytes, over some steps.

    In a process of its own; of the device's memory on CUDA, else of the process's resident set.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure_peak, args=(config, theirs))
    process.start()
    theirs.close()
    try:
        found: float = ours.recv()
    except EOFError:
        raise RuntimeError(f"memory of {config.label} must be measured, got a process that ended early") from None
    finally:
        process.join()
    return found


def _measure_peak(config: RunConfig, connection: Any) -> None:
    with seeded(config.seed, threads=config.threads):
        trainer = Trainer(config)
        level = _level(trainer.device, peak=False)
        for _ in range(min(_MEMORY_STEPS, trainer.steps_per_epoch)):
            trainer.take_step()
        connection.send(max(0.0, _level(trainer.device, peak=True) - level))
        trainer.close()


def _level(device: str, *, peak: bool) -> float:
    """Bytes in use; with ``peak`` the most that were in use since this was last asked for without."""
    if torch.device(device).type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats(device)
            return float(torch.cuda.memory_allocated(device))
        return float(torch.cuda.max_memory_allocated(device))
    if not _STATUS.exists():
        import resource

        # No way to begin anew: what was in use once, while data were made, hides as much of the rise.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(most) if sys.platform == "darwin" else 1024.0 * most
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    wanted = "VmHWM:" if peak else "VmRSS:"
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(wanted))
    return 1024.0 * float(line.split()[1])


def _machine(config: RunConfig) -> str:
    if torch.device(config.device).type == "cuda":
        return torch.cuda.get_device_name(config.device)
    threads = f"{config.threads} thread" + ("s" if config.threads > 1 else "")
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {threads})"


def _turns(setting: Setting) -> int:
    """Epochs that are counted: those of the protocol."""
    epochs = setting.config(setting.methods[0], seed=setting.seeds[0]).training.epochs
    return max(1, epochs or 1)


def _rows(found: Mapping[str, Sequence[Turn]]) -> list[tuple[Any, ...]]:
    return [
        (name, number, turn.seconds, turn.processor_seconds, turn.teleports)
        for name, turns in found.items()
        for number, turn in enumerate(turns, start=1)
    ]


def times_beside(configs: Mapping[str, RunConfig], setting: Setting) -> tuple[dict[str, list[float]], str, str]:
    """Seconds of some epochs of each, in turn, beside figures about something else.

    Returns:
        name → seconds; the label of an axis for them; and how they were measured, in words.
    """
    config = next(iter(configs.values()))
    found = epochs_in_turn(configs, epochs=_FEW, say=setting.say)
    seconds = {name: _seconds(turns, config) for name, turns in found.items()}
    said = f"times of epochs 2 to {_FEW + 1}, in turn on {_machine(config)}"
    return seconds, f"{_time(config)} of an epoch [s]", said


_HEADER = ("method", "turn", "seconds", "processor seconds", "kept teleports")


def time_with_teleports(setting: Setting) -> Made:
    """The time of an epoch of each method, alone and with teleports, epoch by epoch in turn."""
    seed = setting.seeds[0]
    configs = {}
    for name, method in setting.labels.items():
        configs[name] = setting.config(method, seed=seed)
        configs[f"{name} + teleports"] = setting.config(method, setting.teleport, seed=seed)
    found = epochs_in_turn(configs, epochs=_turns(setting), say=setting.say)
    labels, config = list(found), next(iter(configs.values()))
    pairs = {
        labels[k]: (_seconds(found[labels[k]], config), _seconds(found[labels[k + 1]], config))
        for k in range(0, len(labels), 2)
    }
    ratios = {
        name: statistics.median(with_ / without for without, with_ in zip(*pair, strict=True))
        for name, pair in pairs.items()
    }
    moved = statistics.fmean(turn.teleports for label in labels[1::2] for turn in found[label])
    told = ", ".join(f"× {ratio:.2f} with {name}" for name, ratio in ratios.items())
    said = (
        f"{_turns(setting)} epochs in turn on {_machine(config)}, {_time(config)}, {moved:.2g} kept teleports an "
        f"epoch; median ratio of the same turn: {told}"
    )
    return Made(pairs_of_bars(pairs, ylabel=f"{_time(config)} of an epoch [s]"), _HEADER, _rows(found), said)


def _seconds(turns: Sequence[Turn], config: RunConfig) -> list[float]:
    return [turn.processor_seconds if _on_one_core(config) else turn.seconds for turn in turns]


def _on_one_core(config: RunConfig) -> bool:
    """Whether the processor's time is the time that an epoch takes where nothing else runs."""
    return torch.device(config.device).type == "cpu" and config.threads == 1


def _time(config: RunConfig) -> str:
    return "processor time" if _on_one_core(config) else "time on the clock"


def times_of_methods(setting: Setting) -> Made:
    """Time of an epoch and peak memory of every method, epoch by epoch in turn."""
    seed = setting.seeds[0]
    configs = {name: setting.config(method, seed=seed) for name, method in setting.labels.items()}
    found = epochs_in_turn(configs, epochs=_turns(setting), say=setting.say)
    memory = {}
    for name, config in configs.items():
        memory[name] = peak_memory(config) / MiB
        setting.say(f"  memory of {name}: {memory[name]:.1f} MiB")
    config = next(iter(configs.values()))
    seconds = {name: _seconds(turns, config) for name, turns in found.items()}
    rows = [(*row, memory[row[0]]) for row in _rows(found)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    told = ", ".join(f"{name} {value:.3g} s" for name, value in sorted(medians.items(), key=lambda item: item[1]))
    n = len(config.tasks)
    said = f"{n} tasks, {_turns(setting)} epochs in turn on {_machine(config)}, {_time(config)}; medians: {told}"
    figure = time_and_memory(seconds, memory, xlabel=f"{_time(config)} of an epoch [s]")
    return Made(figure, (*_HEADER, "peak memory MiB"), rows, said)
