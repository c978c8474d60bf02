"""What teleports did: conflict, gradient norm and losses before and after each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtl_benchmarks.comparison import Comparison, Group
from mtl_benchmarks.figures.drawing import grid, headed, key_below, panels
from mtl_benchmarks.figures.palette import MUTED, run_styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["has_teleports", "teleport_effects"]


def _kept(group: Group) -> list[Mapping[str, Any]]:
    return [event for run in group.runs for event in run.events if event.get("accepted")]


def has_teleports(group: Group) -> bool:
    """Whether a teleport was kept in one of its runs."""
    return bool(_kept(group))


def teleport_effects(comparison: Comparison) -> Figure:
    """Conflict and gradient norm before against after, and the change of the losses, for every kept teleport.

    On the grey line nothing has changed; above it the value has grown.

    Args:
        comparison: the groups with a kept teleport are drawn.
    """
    moved = [group for group in comparison.full if has_teleports(group)]
    styles = run_styles([group.config for group in moved])
    figure, axes = panels(3, height=3.0)
    pairs = (
        ("min_cosine", "smallest cosine with the mean gradient"),
        ("mean_norm", "norm of the mean gradient"),
    )
    for panel, (name, heading) in zip(axes, pairs, strict=False):
        both: list[float] = []
        for group, style in zip(moved, styles, strict=True):
            known = [e for e in _kept(group) if e[f"{name}_before"] is not None and e[f"{name}_after"] is not None]
            before, after = ([event[f"{name}_{when}"] for event in known] for when in ("before", "after"))
            few = len(known) <= 200
            panel.scatter(
                before,
                after,
                s=22 if few else 8,
                alpha=0.8 if few else 0.4,
                color=style.colour,
                marker=style.marker,
                linewidths=0,
                label=group.label,
            )
            both += [*before, *after]
        if both:
            panel.plot([min(both), max(both)], [min(both), max(both)], color=MUTED, linewidth=0.9, label="no change")
        panel.set(title=heading, xlabel="before the teleport", ylabel="after it")
        panel.locator_params(nbins=5)
        grid(panel)
    drifts = [[100 * event["drift"] for event in _kept(group) if event["drift"] is not None] for group in moved]
    colours = [style.colour for style in styles]
    axes[2].hist(drifts, bins=15, color=colours)
    axes[2].set(title="change of the losses by a teleport", xlabel="mean relative change [%]", ylabel="teleports")
    whole_numbers(axes[2])
    grid(axes[2])
    headed(figure, f"{comparison.title}: kept teleports, before and after")
    key_below(figure, axes[:2])
    return figure


def whole_numbers(panel: Any) -> None:
    """Counts have no fractions."""
    from matplotlib.ticker import MaxNLocator

    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
