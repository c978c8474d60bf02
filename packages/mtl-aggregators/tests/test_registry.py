from __future__ import annotations

import pytest
import torch

from mtl_aggregators import FairGrad, NashMTL, available, describe, make
from mtl_core import InvalidParameterError, UnknownNameError


def test_available() -> None:
    assert available() == [
        "alignedmtl",
        "cagrad",
        "config",
        "cosmos",
        "crmogm",
        "dbmtl",
        "dualproj",
        "dwa",
        "excessmtl",
        "fairgrad",
        "famo",
        "gls",
        "graddrop",
        "gradnorm",
        "gradvac",
        "imgrad",
        "imtl",
        "imtlg",
        "imtll",
        "krum",
        "ls",
        "marigold",
        "mgda",
        "moco",
        "modo",
        "nashmtl",
        "pbi",
        "pcd",
        "pcgrad",
        "rlw",
        "sdmgrad",
        "si",
        "stch",
        "trimmedmean",
        "upgrad",
        "uw",
    ]
    for name in available():
        assert isinstance(make(name), torch.nn.Module)


@pytest.mark.parametrize("name", ["nashmtl", "NashMTL", "Nash-MTL", "nash_mtl", "NASH MTL"])
def test_spellings(name: str) -> None:
    assert isinstance(make(name), NashMTL)


def test_parameters_reach_the_method() -> None:
    method = make("fairgrad", alpha=2)
    assert isinstance(method, FairGrad)
    assert method.alpha == 2.0
    with pytest.raises(InvalidParameterError):
        make("fairgrad", alpha=0)


def test_unknown_method() -> None:
    with pytest.raises(UnknownNameError, match="fairgrad") as caught:
        make("fairgard")
    assert caught.value.name == "fairgard"
    assert list(caught.value.valid) == available()
    assert "Did you mean 'fairgrad'" in str(caught.value)
    with pytest.raises(UnknownNameError):
        describe("nothing")


def test_unknown_option() -> None:
    with pytest.raises(UnknownNameError, match="option of FairGrad 'alhpa'") as caught:
        make("fairgrad", alhpa=2.0)
    assert list(caught.value.valid) == ["alpha", "variant", "ridge", "paper_scale", "backend"]
    assert "Did you mean 'alpha'" in str(caught.value)


def test_description() -> None:
    text = describe("Nash-MTL")
    assert text.startswith("NashMTL: ")
    for part in ("update_weights_every", "non_conflicting", "degree of homogeneity: 0", "ICML 2022"):
        assert part in text
