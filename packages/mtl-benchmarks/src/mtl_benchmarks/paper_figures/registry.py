"""Which figures there are: one row each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtl_core import UnknownNameError
from mtl_core.extension import plain_name

if TYPE_CHECKING:
    from mtl_benchmarks.paper_figures.setting import Made, Setting

__all__ = ["FIGURES", "PaperFigure", "find_figure"]

_HERE = "mtl_benchmarks.paper_figures"


@dataclass(frozen=True)
class PaperFigure:
    """A figure of a paper.

    Attributes:
        name: by which it is asked for.
        source: the paper, and the number in it.
        title: what it shows, on one line.
        words: what the command says unless told otherwise: a benchmark that a CPU trains in minutes, and for how long.
        methods: names of methods, with options as on a command line.
        printed: how the printed one looks, and what its paper says of it.
        papers_words: what to say for the paper's own benchmark.
        maker: ``module:function`` that makes it.
        teleport: the default of ``--teleport``; empty where the figure has no teleports.
        many: the default of ``--many``; empty where the figure needs one benchmark.
        on_gradients: whether its methods must look at task gradients.
    """

    name: str
    source: str
    title: str
    words: tuple[str, ...]
    methods: tuple[str, ...]
    printed: str
    papers_words: str
    maker: str
    teleport: str = ""
    many: str = ""
    on_gradients: bool = False

    @property
    def command(self) -> str:
        """The command in full, as it is without further words."""
        return " ".join(("mtl-bench figure", self.name, *self.words))

    def make(self, setting: Setting) -> Made:
        """Train what is missing, and draw."""
        module, _, function = self.maker.partition(":")
        maker: Callable[[Setting], Made] = getattr(importlib.import_module(f"{_HERE}.{module}"), function)
        return maker(setting)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_DIGITS = "--benchmark digits --benchmark.n_train 2000 --benchmark.n_test 1000"
_QM9 = "--benchmark qm9 --benchmark.n_train 600 --benchmark.n_validation 100 --benchmark.n_test 100"
_CITY = "--benchmark cityscapes --benchmark.root CITY --device cuda"
_NYU = "--benchmark nyuv2 --benchmark.root NYU --device cuda"
_CELEBA = "celeba:root=CELEBA"

_ALL = (
    PaperFigure(
        "cost-3",
        "COST, figure 3",
        "dominated conflict against loss, a dot per step",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("cagrad", "fairgrad:alpha=2"),
        "points with and without conflict at the same losses, and a dashed line from one with to one without; the "
        "paper says that a loss-equivalent point without conflict can often be found",
        f"{_CITY} --teleport cost:start_after=50 --seeds 1",
        "cost:loss_against_conflict",
        teleport="cost:max_per_epoch=none",
        on_gradients=True,
    ),
    PaperFigure(
        "cost-5a",
        "COST, figure 5a",
        "share of the steps of an epoch with conflict, many tasks beside few",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("fairgrad",),
        "conflict with the mean at up to 97 % of an epoch's steps on CelebA (40 tasks), at far fewer on NYUv2 (3), and "
        "at far fewer on CelebA too where half of the tasks must conflict",
        f"{_NYU} --many {_CELEBA} --seeds 1",
        "cost:conflict_by_epoch",
        many="qm9:n_train=1000,n_validation=200,n_test=200",
        on_gradients=True,
    ),
    PaperFigure(
        "cost-5b",
        "COST, figure 5b",
        "the two terms of the objective at every step of one teleport",
        _words(f"{_DIGITS} --epochs 2 --seeds 1"),
        ("fairgrad",),
        "L_t falls largely while L_g rises, over the steps of one teleport",
        f"{_CITY} --teleport cost:search=penalty,reference=loader,aim=none,start_after=50 --seeds 1",
        "teleports:inside_one",
        teleport="cost:search=penalty,reference=loader,rounds=6,max_steps=none,aim=none,max_drift=none",
    ),
    PaperFigure(
        "cost-6",
        "COST, figure 6",
        "paths on the toy problem with and without teleports",
        _words("--benchmark toy --benchmark.start cagrad --epochs 10 --lr 0.005 --seeds 1"),
        ("ls",),
        "equal weights stop short of the Pareto front from some starts; with COST they go on and reach it",
        "--benchmark toy --benchmark.start cagrad --seeds 1",
        "toy:paths",
        teleport="cost",
    ),
    PaperFigure(
        "cost-8",
        "COST, figure 8",
        "cosines and gradient norms of the tasks before and after teleports",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("fairgrad",),
        "after a teleport tasks are positively correlated in most cases, and gradient norms are greater",
        f"{_CITY} --teleport cost:start_after=50 --seeds 1",
        "teleports:before_and_after",
        teleport="cost:max_per_epoch=none",
    ),
    PaperFigure(
        "cost-a1",
        "COST, appendix figure 1",
        "the same as figure 8 at other steps: those of the second half of training",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("fairgrad",),
        "as figure 8: positively correlated tasks in most cases, and greater norms",
        f"{_CITY} --teleport cost:start_after=50 --seeds 1",
        "teleports:before_and_after_later",
        teleport="cost:max_per_epoch=none",
    ),
    PaperFigure(
        "cost-a2",
        "COST, appendix figure 2",
        "dominated conflict against loss under Nash-MTL",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("nashmtl",),
        "fewer points in conflict than under CAGrad and FairGrad, still a good many, and points without at the same "
        "losses",
        f"{_CITY} --teleport cost:start_after=50 --seeds 1",
        "cost:loss_against_conflict",
        teleport="cost:max_per_epoch=none",
        on_gradients=True,
    ),
    PaperFigure(
        "cost-a3",
        "COST, appendix figure 3",
        "what is reached and what an epoch costs, by the fraction of tasks that must conflict",
        _words("--benchmark yeast --epochs 6 --seeds 3"),
        ("fairgrad",),
        "Δm falls slowly as the condition is relaxed, and the time of an epoch rises about linearly",
        "--benchmark celeba --benchmark.root CELEBA --device cuda --teleport cost:max_per_epoch=none --seeds 3",
        "teleports:trigger_fractions",
        teleport="cost:max_per_epoch=8",
    ),
    PaperFigure(
        "cost-a4",
        "COST, appendix figure 4",
        "time of an epoch of each method with and without teleports",
        _words("--benchmark digits --epochs 5 --seeds 1"),
        ("cagrad", "nashmtl", "fairgrad"),
        "one teleport per epoch adds about 30 % to the time of an epoch on CelebA",
        "--benchmark celeba --benchmark.root CELEBA --device cuda --teleport cost --epochs 5 --seeds 1",
        "timing:time_with_teleports",
        teleport="cost:trigger=always",
    ),
    PaperFigure(
        "imgrad-a1",
        "IMGrad, appendix figure 1",
        "how the balance κ of the tasks is distributed over the steps",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("imgrad",),
        "κ takes a wide range of values on NYUv2 and CityScapes",
        f"{_NYU} --seeds 1",
        "imgrad:distribution_of_balance",
        on_gradients=True,
    ),
    PaperFigure(
        "imgrad-a2",
        "IMGrad, appendix figure 2",
        "the balance κ against the imbalance ratio of the gradients",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("cagrad",),
        "the more the norms differ the lower κ, which stays in [0, 1] while the ratio varies widely, with two tasks "
        "and with three",
        f"{_NYU} --seeds 1",
        "imgrad:balance_and_imbalance",
        on_gradients=True,
    ),
    PaperFigure(
        "imgrad-a3",
        "IMGrad, appendix figure 3 and table 1",
        "the three measures of balance: plumbline (PM), least (LM), direct (DC)",
        _words(f"{_DIGITS} --epochs 6 --seeds 3"),
        ("cagrad", "imgrad:measure=dc", "imgrad:measure=lm", "imgrad:measure=pm"),
        "the figure explains PM and LM; the table has Δm 11.58 for CAGrad, 7.23 for DC, 8.83 for LM and 6.58 for PM on "
        "CityScapes, and GPU time growing in that order",
        f"{_CITY} --seeds 3",
        "imgrad:measures_of_balance",
        on_gradients=True,
    ),
    PaperFigure(
        "imgrad-a4",
        "IMGrad, appendix figure 4",
        "what is reached where weights are computed in every k-th step only",
        _words(f"{_DIGITS} --epochs 6 --seeds 3"),
        ("imgrad", "cagrad"),
        "Δm gets worse as the interval grows, stays better than CAGrad, and is better at 16 than at 4 and 8",
        f"{_CITY} --seeds 3",
        "imgrad:update_intervals",
    ),
    PaperFigure(
        "imgrad-a5",
        "IMGrad, appendix figure 5",
        "progress of each task along the update, and steps that make a task worse",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("mgda", "graddrop", "imgrad"),
        "MGDA and GradDrop progress in an imbalanced way by their gradients' similarity with the update; the text has "
        "IMGrad lower Nash-MTL's Pareto failures from 249 to 161",
        f"{_CITY} --seeds 1",
        "imgrad:progress_and_failures",
        on_gradients=True,
    ),
    PaperFigure(
        "imgrad-table2",
        "IMGrad, appendix table 2",
        "five starts and six methods on the toy problem",
        _words("--benchmark toy --benchmark.start nash --epochs 5 --lr 0.01 --seeds 1"),
        ("ls", "pcgrad", "cagrad", "imtlg", "nashmtl", "imgrad"),
        "LS, PCGrad and CAGrad fail from nearly every start, IMTL and Nash-MTL end on the Pareto set and not at the "
        "optimum, IMGrad reaches that from all",
        "--benchmark toy --benchmark.start nash --seeds 1",
        "toy:grid_of_paths",
    ),
    PaperFigure(
        "marigold-table3",
        "MARIGOLD, table 3",
        "time of an epoch and memory of every method",
        _words(f"{_QM9} --epochs 3 --seeds 1"),
        (
            *("ls", "si", "rlw", "dwa", "uw", "famo", "marigold", "marigold:lookahead=fused"),
            *("mgda", "pcgrad", "graddrop", "cagrad", "imtlg", "nashmtl", "fairgrad", "imgrad"),
        ),
        "152, 182 and 375 seconds for MARIGOLD, FAMO and MGDA on NYUv2 (three tasks), 100, 126 and 163 on CityScapes "
        "(two); no memory",
        f"{_NYU} --epochs 3 --seeds 1",
        "timing:times_of_methods",
    ),
    PaperFigure(
        "marigold-sensitivity",
        "MARIGOLD, appendix C",
        "what is reached against β, the radius and the learning rate of the weights",
        _words(f"{_DIGITS} --epochs 6 --seeds 3 --heads weighted"),
        ("marigold", "ls"),
        "no figure is printed: the text tunes β over 0.01 to 3, takes 0.03 on CityScapes and 1 on NYUv2, r = 1e-3 and "
        "lr = 1e-4",
        f"{_CITY} --heads weighted --seeds 3",
        "marigold:sensitivity",
    ),
)

FIGURES: Mapping[str, PaperFigure] = {figure.name: figure for figure in _ALL}
"""Name → figure, in the order of the papers."""


def find_figure(name: str) -> PaperFigure:
    """The figure of a name in any spelling.

    Raises:
        UnknownNameError: there is none; lists those that exist.

    Example:
        >>> find_figure("COST-3").source
        'COST, figure 3'
    """
    for known, figure in FIGURES.items():
        if plain_name(known) == plain_name(name):
            return figure
    raise UnknownNameError("figure", name, FIGURES)
