"""A run of soft actor-critic that can be killed at any moment and gives the same numbers when it is started again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mtl_benchmarks.batching.randomness import seeded
from mtl_benchmarks.runs.runner import warn
from mtl_benchmarks.sac.configuration import SACConfig
from mtl_benchmarks.sac.directory import SACDirectory
from mtl_benchmarks.sac.training import Training
from mtl_benchmarks.storage.checkpoint import Checkpoint, config_digest
from mtl_benchmarks.storage.environment import Sessions
from mtl_benchmarks.storage.files import digest_of
from mtl_benchmarks.storage.tables import table
from mtl_core.checks import positive_int

__all__ = ["SACProgress", "SACResult", "train"]


@dataclass(frozen=True)
class SACProgress:
    """Where a run stands, handed to the ``progress`` callback after every episode.

    Attributes:
        done: steps taken in each environment, those before a restart included.
        total: steps of the whole run.
        success: the mean success in percent at the last evaluation; None before the first.
    """

    done: int
    total: int
    success: float | None


@dataclass(frozen=True)
class SACResult:
    """A complete run.

    Attributes:
        directory: where its files are.
        values: ``best_success``, ``best_step``, ``success`` at the end, and ``success_*`` of each task at the best
            evaluation, in percent.
        seconds: time spent in it.
    """

    directory: Path
    values: Mapping[str, float]
    seconds: float


def train(
    config: SACConfig,
    directory: str | Path,
    *,
    checkpoint_every: int = 3000,
    progress: Callable[[SACProgress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> SACResult:
    """Train once, or finish what an earlier call with the same arguments began.

    Runs are taken up where an episode ended: all environments begin anew there, so that a checkpoint holds no state of
    a simulator, but networks, targets, optimisers, the method's memory, the whole replay, the scale of the rewards and
    the generators. On the same machine and versions the numbers equal those of an unbroken run bit for bit. A
    checkpoint with a full replay of a million transitions takes 340 MB, and the one before it is kept.

    Args:
        config: the resolved configuration.
        directory: the run's own.
        checkpoint_every: steps between checkpoints, at the ends of episodes; there is one at each evaluation, too.
        progress: called after every episode.
        say: called with what a person should know; None: a warning.

    Raises:
        ResultsDirectoryError: ``directory`` holds something else, a run with another configuration, one that another
            process is working on, or a damaged file; or it cannot be read or written.
        NonFiniteLossError: the networks diverged; the last checkpoint stays.
        MissingExtraError: ``metaworld`` is not installed.
    """
    positive_int("checkpoint_every", checkpoint_every)
    files, settings = SACDirectory(directory), config.as_dict()
    if not files.refuse_other(settings) or files.read_result() is None:
        with files.working(settings) as unlocked, seeded(config.seed, threads=config.threads):
            tell = say or warn

            def told(text: str) -> None:
                tell(f"{files.path}: {text}.")

            if unlocked is not None:
                told(f"{unlocked}: see to it that no other process works on this run")
            _complete(config, files, told, checkpoint_every, progress)
    result = files.read_result()
    assert result is not None
    files.read_tables(result)
    return SACResult(files.path, result["values"], float(result["seconds"]))


def _complete(
    config: SACConfig,
    files: SACDirectory,
    say: Callable[[str], None],
    checkpoint_every: int,
    progress: Callable[[SACProgress], None] | None,
) -> None:
    found = files.checkpoints.read(config.as_dict())
    identity = uuid.uuid4().hex if found is None else found.run
    digest = config_digest(config.as_dict())
    sessions = Sessions(() if found is None else found.sessions, say=say)
    training = Training(config)
    seconds = 0.0
    if found is not None:
        seconds = float(found.state["seconds"])
        training.load_state_dict(found.state["training"])
    # As if the run had begun that long ago: its seconds go on.
    begin = time.perf_counter() - seconds

    def position() -> dict[str, int]:
        return {"epoch": training.step // config.protocol.episode, "step": training.step}

    def save() -> str:
        sessions.reached(position())
        state = {"training": training.state_dict(), "seconds": time.perf_counter() - begin}
        seal = files.checkpoints.write(Checkpoint(identity, digest, sessions.listed, state), verify=not training.step)
        files.write_table("metrics.csv", _metrics(training))
        files.write_table("environment.json", sessions.table())
        return seal

    sessions.begin(position())
    # A checkpoint before the first step, too: it tells at once whether the method's state can be read back.
    seal = save() if found is None else files.checkpoints.seal()
    while not training.is_finished:
        training.episode()
        # Steps come by episodes, whose length need not divide the distance between checkpoints.
        is_due = training.step // checkpoint_every > (training.step - config.protocol.episode) // checkpoint_every
        if config.protocol.is_evaluated(training.step) or is_due:
            seal = save()
        if progress is not None:
            last = training.rows[-1] if training.rows else None
            progress(SACProgress(training.step, config.protocol.steps, None if last is None else last["success"]))
    tables = {"metrics.csv": _metrics(training), "environment.json": sessions.table()}
    for name, content in tables.items():
        files.write_table(name, content, durable=True)
    files.write_result(
        {
            "run": identity,
            "config": digest,
            "values": training.values(),
            "seconds": time.perf_counter() - begin,
            "steps": training.step,
            "checkpoint": seal,
            "notes": sessions.notes,
            "tables": {name: digest_of(content) for name, content in tables.items()},
        }
    )


def _metrics(training: Training) -> bytes:
    rows = [(int(row["step"]), name, value) for row in training.rows for name, value in row.items() if name != "step"]
    return table(("step", "metric", "value"), rows)
