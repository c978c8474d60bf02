"""The configuration of a run out of the file behind ``--config``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_core import InvalidInputError, InvalidParameterError, ResultsDirectoryError

__all__ = ["read_config"]


def read_config(path: str | Path) -> RunConfig:
    """The configuration of a run, from its ``config.json`` or its directory.

    Raises:
        ResultsDirectoryError: there is no such file, or it holds something else.
        InvalidInputError: a name or value in it is not known here.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    way_out = "Give the config.json of a run, or the run's directory."
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
        return RunConfig.from_dict(data)
    except json.JSONDecodeError as error:
        said = f"line {error.lineno}, column {error.colno}, is no JSON ({error.msg})"
    except UnicodeDecodeError as error:
        said = f"byte {error.start} is no text in UTF-8"
    except RecursionError:
        said = "entries within entries without end"
    except OSError as error:
        raise ResultsDirectoryError(
            f"`--config` must be a file, got {str(path)!r}: {error.strerror}. {way_out}"
        ) from None
    except InvalidInputError as error:
        raise InvalidInputError(f"`--config` {str(path)!r}: {error}") from None
    except ValueError as error:  # a number of more digits than Python reads, or a name that no file can have
        said = f"{error}"
    raise ResultsDirectoryError(f"`--config` must hold a run, got {str(path)!r}: {said}. {way_out}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, which takes the last of several entries of one name without a word."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidParameterError(f"`{twice}` must be one entry, got several of that name in one mapping.")
    return dict(pairs)
