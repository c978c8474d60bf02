"""The figures of the papers, as ``mtl-bench figure NAME`` makes them on a benchmark of one's choice.

Each is a row of :data:`FIGURES` and a function that trains what is missing, reads the numbers from the recorded runs
and draws them. Runs are those of every other command: a stopped one goes on, a finished one is read, and figures that
need the same run share it.
"""

from mtl_benchmarks.paper_figures.registry import FIGURES, PaperFigure, find_figure

__all__ = ["FIGURES", "PaperFigure", "find_figure"]
