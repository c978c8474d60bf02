"""A log that Weights & Biases keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_benchmarks.engine.logs.log import Log, refuse_as_folder
from mtl_benchmarks.engine.observers import RunStart
from mtl_core import InvalidParameterError, MissingExtraError

__all__ = ["WandBLog"]


class WandBLog(Log):
    """A run of Weights & Biases, its files in ``log`` of the run's directory.

    Whether it is sent anywhere is for wandb's own settings to say (``WANDB_MODE=offline``, ``wandb login``).

    Args:
        every: steps between those that are written.
        project: the name of the project there.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, *, every: int = 10, project: str = "mtl-bench") -> None:
        super().__init__(every=every)
        try:
            import wandb

            # A folder of that name, as wandb makes one where it is started, is imported as an empty package.
            wandb.login  # noqa: B018
        except (ImportError, AttributeError):
            raise MissingExtraError("logging to Weights & Biases", "mtl-benchmarks[wandb]") from None
        self._wandb: Any = wandb
        self._project = project
        self._run: Any = None

    def ready(self, directory: Path) -> None:
        """Look whether there is a key, unless the mode is one that sends nothing; at a terminal wandb asks for one.

        Raises:
            InvalidParameterError: there is none, or one that wandb does not take.
        """
        super().ready(directory)
        refuse_as_folder(directory / "log" / "wandb")
        if self._wandb.setup().settings.mode in _SENDS_NOTHING:
            return
        try:
            self._wandb.login()
        except (self._wandb.Error, ValueError, TimeoutError) as error:
            raise InvalidParameterError(
                f"`log` wandb must have a key of Weights & Biases, got none that it takes ({error}). Give it by `wandb "
                "login` or WANDB_API_KEY, or keep the log on this machine with WANDB_MODE=offline."
            ) from error

    def start(self, run: RunStart) -> None:
        """Begin a run there, under the name of ours."""
        folder = run.directory / "log"
        folder.mkdir(exist_ok=True)
        self._run = self._wandb.init(
            project=self._project,
            name=run.config.name,
            group=run.config.label,
            config=run.config.as_dict(),
            dir=str(folder),
            # Several runs in one process are several runs there.
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """All values of a step together."""
        self._run.log({"epoch": epoch, **values}, step=step)

    def finish(self) -> None:
        """End the run there."""
        self._run.finish()

    def broken_off(self) -> None:
        """End the run there as one that failed."""
        if self._run is not None:
            self._run.finish(exit_code=1)


_SENDS_NOTHING = ("offline", "dryrun", "disabled")
"""Modes of wandb that need no key."""
