"""What can go wrong, by cause.

Every error that this family of packages raises on purpose is one of these. The text names the argument, the rule it
broke, what was found and the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_core.extras import install_line

__all__ = [
    "DamagedFileError",
    "DetachedLossError",
    "DuplicateModuleError",
    "InvalidInputError",
    "InvalidJacobianError",
    "InvalidParameterError",
    "MissingExtraError",
    "NoLossesError",
    "NoMatchError",
    "NoSharedParametersError",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "NonFiniteStateError",
    "NonScalarLossError",
    "RankError",
    "ResultsDirectoryError",
    "SolverError",
    "UnknownNameError",
]


class InvalidInputError(ValueError):
    """An argument breaks the rule that its function states."""


class NoLossesError(InvalidInputError):
    """There is no task loss to work on."""


class NonScalarLossError(InvalidInputError):
    """A task's loss is not one number."""


class NonFiniteLossError(InvalidInputError):
    """A task's loss is NaN or infinite.

    Attributes:
        tasks: names of the tasks concerned.
    """

    def __init__(self, message: str, *, tasks: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tasks = tuple(tasks)


class DetachedLossError(InvalidInputError):
    """A task's loss does not depend on any shared parameter.

    Attributes:
        tasks: names of the tasks concerned.
    """

    def __init__(self, message: str, *, tasks: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tasks = tuple(tasks)


class NoSharedParametersError(InvalidInputError):
    """The set of shared parameters is empty or wholly frozen."""


class InvalidJacobianError(InvalidInputError):
    """A Jacobian or Gramian has the wrong rank, shape or dtype, or holds NaN or infinities."""


class NonFiniteGradientError(InvalidJacobianError):
    """A gradient is NaN or infinite though its task's loss is finite.

    Attributes:
        tasks: names of the tasks concerned, as far as they could be told apart.
    """

    def __init__(self, message: str, *, tasks: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tasks = tuple(tasks)


class InvalidParameterError(InvalidInputError):
    """A hyper-parameter lies outside the range in which its method is defined."""


class UnknownNameError(InvalidInputError):
    """A method, benchmark or option of that name does not exist.

    Attributes:
        name: the name that was asked for.
        valid: the names that exist.
    """

    def __init__(self, kind: str, name: str, valid: Iterable[str]) -> None:
        self.name = name
        self.valid = tuple(valid)
        guess = _meant(name, self.valid)
        hint = f" Did you mean {guess!r}?" if guess is not None else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(self.valid) or 'none'}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args, self.__dict__)


def _meant(name: str, valid: Sequence[str]) -> str | None:
    """The name that was mistyped, or the first that begins like this; None where nothing is as near as that.

    Near are names that one slip per three letters turns into each other. A share of common letters, which is quicker
    to compute, finds ``none`` in ``nonesuch``.
    """
    typed = name.lower()
    slips = {each: _slips(typed, each.lower()) for each in valid}
    near = [each for each in valid if slips[each] <= max(1, min(len(typed), len(each)) // 3)]
    near = [each for each in near if slips[each] < max(len(typed), len(each))]  # some letter stays
    if near:
        return min(near, key=lambda each: slips[each])
    return next((each for each in valid if len(typed) > 2 and each.lower().startswith(typed)), None)


def _slips(one: str, other: str) -> int:
    """How many letters must be added, dropped, changed or swapped with their neighbour."""
    before, row = list(range(len(other) + 1)), list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return row[-1]


class NoMatchError(InvalidInputError):
    """A pattern matches no parameter or layer."""


class DuplicateModuleError(InvalidInputError):
    """One submodule is registered under two names, which functional evaluation cannot handle."""


class ResultsDirectoryError(InvalidInputError):
    """A results directory holds something else than the run that wants to write there, or cannot be read or written."""


class DamagedFileError(ResultsDirectoryError):
    """A file of a run is not what was written to it.

    Attributes:
        path: the file.
    """

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class NonFiniteStateError(RuntimeError):
    """Training has led to parameters, buffers or optimiser state that are NaN or infinite.

    Attributes:
        epoch: in which it was found, from 0.
        step: of the run, from 0, after which it was found.
    """

    def __init__(self, message: str, *, epoch: int = 0, step: int = 0) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step


class SolverError(RuntimeError):
    """A solver did not reach its tolerance.

    Attributes:
        residual: the optimality residual that was reached.
        iterations: how many iterations were spent.
    """

    def __init__(self, message: str, *, residual: float, iterations: int) -> None:
        super().__init__(f"{message} (residual {residual:.3e} after {iterations} iterations)")
        self.residual = residual
        self.iterations = iterations

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args, self.__dict__)


class RankError(RuntimeError):
    """Another rank of the process group raised an error of a type that this process cannot make.

    The text names the rank and repeats what it said.
    """


class MissingExtraError(ImportError):
    """An optional dependency is needed and absent.

    Args:
        what: what needs it, in the reader's words.
        extra: the requirement that brings it, e.g. ``"mtl-aggregators[cvxpy]"``; the text names the packages that it
            stands for.
        dependencies: whether they need their own dependencies; not where only their files are read.
    """

    def __init__(self, what: str, extra: str, *, dependencies: bool = True) -> None:
        line = install_line(extra, dependencies=dependencies)
        super().__init__(f"{what} needs an optional dependency. Install it with: {line}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(cls: type[Exception], args: tuple[Any, ...], state: Mapping[str, Any]) -> Exception:
    """An error from another process. Its text is already whole, so the constructor that composes it is passed over."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error
