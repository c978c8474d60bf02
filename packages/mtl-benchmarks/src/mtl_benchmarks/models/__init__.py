"""Models, one file each, usable without the rest of this package; each declares what its tasks share."""

from mtl_benchmarks.models.cnn9 import CNN9
from mtl_benchmarks.models.cross_stitch import CrossStitch
from mtl_benchmarks.models.declaration import MultiTaskModel, TaskModel, check_declaration
from mtl_benchmarks.models.dselect_k import DSelectK, DSelectKGate
from mtl_benchmarks.models.edge_convolution import EdgeConvolution
from mtl_benchmarks.models.graph_mpnn import GraphMPNN
from mtl_benchmarks.models.grouped_molecules import Graphs, GroupedMolecules, MoleculeGroup
from mtl_benchmarks.models.hard_sharing import HardSharing
from mtl_benchmarks.models.message_passing import QM9_TARGETS
from mtl_benchmarks.models.mmoe import MMoE
from mtl_benchmarks.models.mpnn import MPNN
from mtl_benchmarks.models.mtan import MTAN
from mtl_benchmarks.models.overlay_cnn import OverlayCNN
from mtl_benchmarks.models.ple import CGC, PLE
from mtl_benchmarks.models.policy import ClonedPolicy
from mtl_benchmarks.models.sac import GaussianActor, TwinCritic
from mtl_benchmarks.models.segnet import CITYSCAPES_OUTPUTS, NYUV2_OUTPUTS, DenseOutput, SegNetSplit
from mtl_benchmarks.models.segnet_cross_stitch import SegNetCrossStitch
from mtl_benchmarks.models.segnet_mtan import SegNetMTAN
from mtl_benchmarks.models.set_to_set import SetToSet
from mtl_benchmarks.models.shared_tower import SharedTower
from mtl_benchmarks.models.vector_network import VECTOR_PARTS, vector_network

__all__ = [
    "CGC",
    "CITYSCAPES_OUTPUTS",
    "CNN9",
    "MPNN",
    "MTAN",
    "NYUV2_OUTPUTS",
    "PLE",
    "QM9_TARGETS",
    "VECTOR_PARTS",
    "ClonedPolicy",
    "CrossStitch",
    "DSelectK",
    "DSelectKGate",
    "DenseOutput",
    "EdgeConvolution",
    "GaussianActor",
    "GraphMPNN",
    "Graphs",
    "GroupedMolecules",
    "HardSharing",
    "MMoE",
    "MoleculeGroup",
    "MultiTaskModel",
    "OverlayCNN",
    "SegNetCrossStitch",
    "SegNetMTAN",
    "SegNetSplit",
    "SetToSet",
    "SharedTower",
    "TaskModel",
    "TwinCritic",
    "check_declaration",
    "vector_network",
]
