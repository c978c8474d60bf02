"""Figures of runs, with one palette for all of them. Drawing needs the extra ``[figures]``."""

from mtl_benchmarks.figures.drawing import png, save
from mtl_benchmarks.figures.gallery import Picture, draw_all, gallery, pictures_of
from mtl_benchmarks.figures.learning import learning_curves
from mtl_benchmarks.figures.outcome import delta_by_task, front, time_and_measure
from mtl_benchmarks.figures.palette import Style, method_style, task_colour
from mtl_benchmarks.figures.tasks import cosine_maps, over_time
from mtl_benchmarks.figures.teleports import teleport_effects
from mtl_benchmarks.figures.toy import by_label, toy_losses, toy_trajectories

__all__ = [
    "Picture",
    "Style",
    "by_label",
    "cosine_maps",
    "delta_by_task",
    "draw_all",
    "front",
    "gallery",
    "learning_curves",
    "method_style",
    "over_time",
    "pictures_of",
    "png",
    "save",
    "task_colour",
    "teleport_effects",
    "time_and_measure",
    "toy_losses",
    "toy_trajectories",
]
