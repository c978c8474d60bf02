import importlib.metadata
import pickle

import pytest

from mtl_core import MissingExtraError
from mtl_core.extras import install_line

DECLARED = {
    "plain": [
        "always>=1",
        "one==1.0; extra == 'single'",
        'two >=2,<3 ; python_version < "4" and extra == "pair"',
        "three; extra == 'pair'",
        "one==1.0; extra == 'pair'",
    ],
    "above": ["plain[single,pair]<2; extra == 'both'", "absent[x]>=1; extra == 'strange'", "plain<2; extra == 'bare'"],
    "none": None,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str] | None:
        if name not in DECLARED:
            raise importlib.metadata.PackageNotFoundError(name)
        return DECLARED[name]

    monkeypatch.setattr(importlib.metadata, "requires", requires)


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("plain[single]", "pip install one==1.0"),
        ("plain[pair]", "pip install 'two >=2,<3' three one==1.0"),
        ("plain[single, pair]", "pip install one==1.0 'two >=2,<3' three"),
        ("above[both]", "pip install one==1.0 'two >=2,<3' three"),
        ("above[bare]", "pip install 'plain<2'"),
        # What the environment does not know is named as it was given.
        ("above[strange]", "pip install 'absent[x]>=1'"),
        ("absent[x]", "pip install 'absent[x]'"),
        ("plain[unknown]", "pip install 'plain[unknown]'"),
        ("none[x]", "pip install 'none[x]'"),
    ],
)
def test_the_line_names_what_the_extra_brings(extra: str, line: str) -> None:
    assert install_line(extra) == line
    assert install_line(extra, dependencies=False) == line.replace("install", "install --no-deps", 1)


def test_the_error_says_the_line_and_keeps_it() -> None:
    error = MissingExtraError("drawing", "plain[single]", dependencies=False)
    assert str(error) == "drawing needs an optional dependency. Install it with: pip install --no-deps one==1.0"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
