import pickle

import pytest

from mtl_core import (
    DamagedFileError,
    MissingExtraError,
    NonFiniteLossError,
    NonFiniteStateError,
    SolverError,
    UnknownNameError,
    errors,
)

ONES_WITH_MORE = [
    DamagedFileError("damaged"),
    MissingExtraError("drawing", "mtl-benchmarks[figures]"),
    NonFiniteLossError("nan", tasks=["left"]),
    NonFiniteStateError("nan", epoch=1, step=2),
    SolverError("no point was found", residual=0.5, iterations=3),
    UnknownNameError("method", "fairgard", ["fairgrad"]),
]


@pytest.mark.parametrize("error", ONES_WITH_MORE, ids=lambda error: type(error).__name__)
def test_errors_come_whole_through_a_pickle(error: Exception) -> None:
    error.add_note("from elsewhere")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args, vars(again)) == (type(error), str(error), error.args, vars(error))


def test_every_error_does() -> None:
    covered = {type(error).__name__ for error in ONES_WITH_MORE}
    for name in set(errors.__all__) - covered:
        error = getattr(errors, name)("text")
        assert str(pickle.loads(pickle.dumps(error))) == "text"
