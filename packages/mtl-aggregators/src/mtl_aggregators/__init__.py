"""Task-weighting methods for multi-task optimisation, on exact and scale-free solvers."""

from typing import TYPE_CHECKING, Any

from mtl_aggregators.aligned_mtl import AlignedMTL
from mtl_aggregators.bases.facts import Facts, Scale
from mtl_aggregators.bases.gramian_method import GramianMethod, RegularisedSolve
from mtl_aggregators.bases.jacobian_method import JacobianMethod, LossAwareMethod
from mtl_aggregators.bases.three_batches import ThreeBatches, in_threes
from mtl_aggregators.bilevel.hypergradient import exact_hypergradient
from mtl_aggregators.bilevel.marigold import MARIGOLD
from mtl_aggregators.bilevel.method import Bilevel
from mtl_aggregators.bilevel.objectives import MainTasks, Outcome, WorstCaseDecrement
from mtl_aggregators.bilevel.weight_models import AuxiliaryWeights, SoftmaxWeights
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
from mtl_aggregators.gradvac import GradVac, GroupedGradVac
from mtl_aggregators.imgrad import IMGrad
from mtl_aggregators.imtl import IMTL
from mtl_aggregators.imtl_g import IMTLG
from mtl_aggregators.imtl_l import IMTLL
from mtl_aggregators.krum import Krum
from mtl_aggregators.log_transform import log_transform
from mtl_aggregators.mgda import MGDA
from mtl_aggregators.moco import MoCo
from mtl_aggregators.modo import MoDo
from mtl_aggregators.nash_mtl import NashMTL
from mtl_aggregators.pbi import PBI
from mtl_aggregators.pcd import PCD
from mtl_aggregators.pcgrad import PCGrad
from mtl_aggregators.registry import available, describe, make
from mtl_aggregators.scalar import GLS, LS, RLW, SI
from mtl_aggregators.sdmgrad import SDMGrad
from mtl_aggregators.stationarity import plumbline, stationarity_gap
from mtl_aggregators.stch import STCH
from mtl_aggregators.trimmed_mean import TrimmedMean
from mtl_aggregators.upgrad import UPGrad
from mtl_aggregators.uw import UW

__version__ = "0.2.0"

__all__ = [
    "COSMOS",
    "CRMOGM",
    "DBMTL",
    "DWA",
    "FAMO",
    "GLS",
    "IMTL",
    "IMTLG",
    "IMTLL",
    "LS",
    "MARIGOLD",
    "MGDA",
    "PBI",
    "PCD",
    "RLW",
    "SI",
    "STCH",
    "UW",
    "AlignedMTL",
    "AuxiliaryWeights",
    "Bilevel",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "ExcessMTL",
    "Facts",
    "FairGrad",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GramianMethod",
    "GroupedGradVac",
    "IMGrad",
    "JacobianMethod",
    "Krum",
    "LossAwareMethod",
    "MainTasks",
    "MoCo",
    "MoDo",
    "NashMTL",
    "Outcome",
    "PCGrad",
    "RegularisedSolve",
    "SDMGrad",
    "Scale",
    "SoftmaxWeights",
    "ThreeBatches",
    "TrimmedMean",
    "UPGrad",
    "WorstCaseDecrement",
    "available",
    "describe",
    "exact_hypergradient",
    "in_threes",
    "log_transform",
    "make",
    "plumbline",
    "stationarity_gap",
]

if not TYPE_CHECKING:  # a type checker that saw this would take any misspelt name for a method

    def __getattr__(name: str) -> Any:
        """A method that has a file beside this one and is not imported above: the file is all that it takes."""
        # Modules' names are in lower case: asking for one must not import all methods.
        if name[:1].isupper():
            from mtl_aggregators.registry import own_methods

            found = own_methods().get(name.lower())
            if found is not None and found.__name__ == name:
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
