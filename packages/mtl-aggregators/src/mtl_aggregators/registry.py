"""Methods by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mtl_aggregators.aligned_mtl import AlignedMTL
from mtl_aggregators.bilevel.marigold import MARIGOLD
from mtl_aggregators.cagrad import CAGrad
from mtl_aggregators.config import ConFIG
from mtl_aggregators.cosmos import COSMOS
from mtl_aggregators.cr_mogm import CRMOGM
from mtl_aggregators.db_mtl import DBMTL
from mtl_aggregators.dualproj import DualProj
from mtl_aggregators.dwa import DWA
from mtl_aggregators.excess_mtl import ExcessMTL
from mtl_aggregators.fairgrad import FairGrad
from mtl_aggregators.famo import FAMO
from mtl_aggregators.grad_norm import GradNorm
from mtl_aggregators.graddrop import GradDrop
from mtl_aggregators.gradvac import GradVac
from mtl_aggregators.imgrad import IMGrad
from mtl_aggregators.imtl import IMTL
from mtl_aggregators.imtl_g import IMTLG
from mtl_aggregators.imtl_l import IMTLL
from mtl_aggregators.krum import Krum
from mtl_aggregators.mgda import MGDA
from mtl_aggregators.moco import MoCo
from mtl_aggregators.modo import MoDo
from mtl_aggregators.nash_mtl import NashMTL
from mtl_aggregators.pbi import PBI
from mtl_aggregators.pcd import PCD
from mtl_aggregators.pcgrad import PCGrad
from mtl_aggregators.scalar import GLS, LS, RLW, SI
from mtl_aggregators.sdmgrad import SDMGrad
from mtl_aggregators.stch import STCH
from mtl_aggregators.trimmed_mean import TrimmedMean
from mtl_aggregators.upgrad import UPGrad
from mtl_aggregators.uw import UW
from mtl_core import UnknownNameError

__all__ = ["available", "describe", "facts_table", "make", "method_class"]

_METHODS: dict[str, Callable[..., Any]] = {
    "alignedmtl": AlignedMTL,
    "cagrad": CAGrad,
    "config": ConFIG,
    "cosmos": COSMOS,
    "crmogm": CRMOGM,
    "dbmtl": DBMTL,
    "dualproj": DualProj,
    "dwa": DWA,
    "excessmtl": ExcessMTL,
    "fairgrad": FairGrad,
    "famo": FAMO,
    "gls": GLS,
    "graddrop": GradDrop,
    "gradnorm": GradNorm,
    "gradvac": GradVac,
    "imgrad": IMGrad,
    "imtl": IMTL,
    "imtlg": IMTLG,
    "imtll": IMTLL,
    "krum": Krum,
    "ls": LS,
    "marigold": MARIGOLD,
    "mgda": MGDA,
    "moco": MoCo,
    "modo": MoDo,
    "nashmtl": NashMTL,
    "pbi": PBI,
    "pcd": PCD,
    "pcgrad": PCGrad,
    "rlw": RLW,
    "sdmgrad": SDMGrad,
    "si": SI,
    "stch": STCH,
    "trimmedmean": TrimmedMean,
    "upgrad": UPGrad,
    "uw": UW,
}


def available() -> list[str]:
    """Names of all methods, sorted.

    Example:
        >>> "fairgrad" in available()
        True
    """
    return sorted(_METHODS)


def method_class(name: str) -> Callable[..., Any]:
    """The class of a method.

    Args:
        name: any case; hyphens, underscores and spaces are ignored.

    Raises:
        UnknownNameError: no method has that name.
    """
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    found = _METHODS.get(plain)
    if found is None:
        raise UnknownNameError("method", name, available())
    return found


def make(name: str, /, **parameters: Any) -> Any:
    """A method by name.

    Args:
        name: any case; hyphens, underscores and spaces are ignored.
        parameters: the method's own settings.

    Returns:
        the method.

    Raises:
        UnknownNameError: no method has that name, or the method has no such setting.
        InvalidParameterError: a setting is out of its range.

    Example:
        >>> make("Fair-Grad", alpha=2.0).alpha
        2.0
    """
    cls = method_class(name)
    valid = list(inspect.signature(cls).parameters)
    for parameter in parameters:
        if parameter not in valid:
            raise UnknownNameError(f"option of {cls.__name__}", parameter, valid)
    return cls(**parameters)


def describe(name: str) -> str:
    """What a method is, its settings with their defaults, and its declared facts.

    Args:
        name: as for ``make``.

    Returns:
        text of several lines.

    Raises:
        UnknownNameError: no method has that name.

    Example:
        >>> print(describe("mgda").splitlines()[0])
        MGDA: Multiple-gradient descent: the min-norm point in the convex hull of the task gradients.
    """
    cls = method_class(name)
    facts = cls().facts
    first = (inspect.getdoc(cls) or "").splitlines()[0]
    settings = [
        f"  {parameter.name}: {parameter.annotation} = {parameter.default!r}"
        for parameter in inspect.signature(cls).parameters.values()
    ]
    degree = "none" if facts.homogeneity is None else f"{facts.homogeneity:g}"
    return "\n".join(
        [
            f"{cls.__name__}: {first}",
            "settings:",
            *settings,
            f"needs: {facts.needs}",
            f"degree of homogeneity: {degree}",
            f"scale against the sum of equal unit gradients: {facts.scale.formula}",
            f"scale of the released code: {facts.paper_scale.formula}",
            f"heads in the released code: {facts.paper_heads}",
            f"laws: {', '.join(sorted(facts.laws)) or 'none'}",
            f"reference: {facts.reference}",
        ]
    )


def facts_table() -> str:
    """The facts that every method declares with its default settings, as a Markdown table of one row per method.

    Example:
        >>> facts_table().splitlines()[0]
        '| name | needs | degree | scale | scale in released code | heads in released code | laws | reference |'
    """
    heads = (
        "name",
        "needs",
        "degree",
        "scale",
        "scale in released code",
        "heads in released code",
        "laws",
        "reference",
    )
    lines = [heads, ("---",) * len(heads)]
    for name in available():
        facts = make(name).facts
        lines.append(
            (
                f"`{name}`",
                facts.needs if facts.min_tasks == 1 else f"{facts.needs}, m ≥ {facts.min_tasks}",
                "none" if facts.homogeneity is None else f"{facts.homogeneity:g}",
                facts.scale.formula,
                facts.paper_scale.formula,
                facts.paper_heads,
                ", ".join(law.replace("_", " ") for law in sorted(facts.laws)) or "—",
                facts.reference,
            )
        )
    rows = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join(rows).replace("| --- | --- | --- | --- | --- | --- | --- | --- |", "|" + "---|" * 8) + "\n"
