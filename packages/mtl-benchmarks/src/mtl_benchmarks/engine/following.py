"""What all processes but the first do in a run: as they hear."""

from __future__ import annotations

from typing import Any

from mtl_benchmarks.batching.loading import Loading
from mtl_benchmarks.batching.randomness import seeded
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.engine.precision import arithmetic
from mtl_benchmarks.engine.trainer import Trainer
from mtl_benchmarks.ranks import Ranks

__all__ = ["follow"]


def follow(config: RunConfig, ranks: Ranks, loading: Loading) -> Any:
    """Take part in a run that the first process leads.

    Args:
        config: the resolved configuration.
        ranks: the processes.
        loading: how data is read ahead.

    Returns:
        what the first process shares at the end.

    Raises:
        Exception: whatever ended the run on any process.
    """
    trainer: Trainer | None = None
    with seeded(config.seed, threads=config.threads), arithmetic(config.training.precision, device=config.device):
        try:
            while True:
                word = ranks.hear()
                if word == "make":
                    trainer = Trainer(config, loading=loading, ranks=ranks)
                elif word == "end":
                    return ranks.share(None)
                elif word == "fail":
                    with ranks.together():
                        pass  # raises here what the first process raised
                else:
                    assert trainer is not None
                    _do(trainer, word)
        finally:
            if trainer is not None:
                trainer.close()


def _do(trainer: Trainer, word: str) -> None:
    match word:
        # Without a word to anybody: only the first process says what comes next.
        case "step":
            trainer.take_step()
        case "evaluate":
            trainer.evaluate()
        case "state":
            trainer.gather_state()
        case "load":
            trainer.spread_state(None)
        case _:
            raise AssertionError(word)
