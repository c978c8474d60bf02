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
_CITY = "--benchmark cityscapes --benchmark.root CITY --device cuda"
_NYU = "--benchmark nyuv2 --benchmark.root NYU --device cuda"
_CELEBA = "celeba:root=CELEBA"

_ALL = (
    PaperFigure(
        "cost-3",
        "COST, figure 3",
        "dominated conflict against loss, a dot per step",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("cagrad", "fairgrad"),
        "points with and without conflict at the same losses, and a dashed line from one with to one without; the "
        "paper says that a loss-equivalent point without conflict can often be found",
        f"{_CITY} --seeds 1",
        "cost:loss_against_conflict",
        teleport="cost:max_per_epoch=none",
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
    ),
    PaperFigure(
        "cost-5b",
        "COST, figure 5b",
        "the two terms of the objective at every step of one teleport",
        _words(f"{_DIGITS} --epochs 2 --seeds 1"),
        ("fairgrad",),
        "L_t falls largely while L_g rises, over the steps of one teleport",
        f"{_CITY} --seeds 1",
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
        f"{_CITY} --seeds 1",
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
        f"{_CITY} --seeds 1",
        "teleports:before_and_after_later",
        teleport="cost:max_per_epoch=none",
    ),
    PaperFigure(
        "cost-a2",
        "COST, appendix figure 2",
        "dominated conflict against loss under Nash-MTL",
        _words(f"{_DIGITS} --epochs 6 --seeds 1"),
        ("nashmtl",),
        "fewer points in conflict than under CAGrad and FairGrad, still a good many, and points without conflict at the "
        "same losses",
        f"{_CITY} --seeds 1",
        "cost:loss_against_conflict",
        teleport="cost:max_per_epoch=none",
    ),
    PaperFigure(
        "cost-a3",
        "COST, appendix figure 3",
        "what is reached and what an epoch costs, by the fraction of tasks that must conflict",
        _words("--benchmark yeast --epochs 6 --seeds 3"),
        ("fairgrad",),
        "Δm falls slowly as the condition is relaxed, and the time of an epoch rises about linearly",
        "--benchmark celeba --benchmark.root CELEBA --device cuda --seeds 3",
        "teleports:trigger_fractions",
        teleport="cost:max_per_epoch=none",
    ),
    PaperFigure(
        "cost-a4",
        "COST, appendix figure 4",
        "time of an epoch of each method with and without teleports",
        _words(f"{_DIGITS} --epochs 7 --seeds 1"),
        ("cagrad", "nashmtl", "fairgrad"),
        "one teleport per epoch adds about 30 % to the time of an epoch on CelebA",
        "--benchmark celeba --benchmark.root CELEBA --device cuda --teleport cost --epochs 5 --seeds 1",
        "timing:time_with_teleports",
        teleport="cost:trigger=always",
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
