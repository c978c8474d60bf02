"""Task-weighting methods for multi-task optimisation, on exact and scale-free solvers."""

from mtl_aggregators.base import GramianMethod, RegularisedSolve
from mtl_aggregators.cagrad import CAGrad
from mtl_aggregators.conflict import plumbline, stationarity_gap
from mtl_aggregators.facts import Facts, Scale
from mtl_aggregators.fairgrad import FairGrad
from mtl_aggregators.mgda import MGDA
from mtl_aggregators.nash_mtl import NashMTL
from mtl_aggregators.pcgrad import PCGrad
from mtl_aggregators.registry import available, describe, make
from mtl_aggregators.scalar import LS
from mtl_aggregators.upgrad import UPGrad

__version__ = "0.1.0"

__all__ = [
    "LS",
    "MGDA",
    "CAGrad",
    "Facts",
    "FairGrad",
    "GramianMethod",
    "NashMTL",
    "PCGrad",
    "RegularisedSolve",
    "Scale",
    "UPGrad",
    "available",
    "describe",
    "make",
    "plumbline",
    "stationarity_gap",
]
