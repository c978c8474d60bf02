"""Figures: one look for one thing, whole epochs, a title and a key; for one epoch and few or many tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtl_aggregators import available
from mtl_benchmarks.comparison import Comparison, compare, find_runs
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.figures import front, method_style, pictures_of, png, task_colour
from mtl_benchmarks.figures.drawing import key_below, panels, titled
from mtl_benchmarks.figures.palette import MANY_TASKS, run_styles
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.storage.results import Collection

HERE = Path(__file__).parent


def test_every_method_has_a_look_of_its_own() -> None:
    styles = [method_style(name, teleport) for name in available() for teleport in (None, "cost", "random")]
    assert len(set(map(str, styles))) == len(styles)
    assert len({task_colour(k) for k in range(MANY_TASKS)}) == MANY_TASKS


def test_a_look_does_not_depend_on_what_stands_beside() -> None:
    names = ("mgda", "ls", "fairgrad")
    together = dict(zip(names, run_styles([RunConfig.resolve("digits", name) for name in names]), strict=True))
    for name in names:
        assert run_styles([RunConfig.resolve("digits", name)]) == [together[name]]
    twins = run_styles([RunConfig.resolve("digits", "ls", lr=lr) for lr in (0.1, 0.2)])
    assert twins[0].colour == twins[1].colour
    assert twins[0].dash != twins[1].dash
    starts = [Choice("cost", {"start_after": k}) for k in (0, 6)]
    pairs = [("ls", starts[0]), ("ls", starts[1]), ("fairgrad", starts[1])]
    looks = run_styles([RunConfig.resolve("digits", *pair) for pair in pairs])
    assert looks[0].marker != looks[1].marker == looks[2].marker


@pytest.mark.parametrize("n", [1, 4, 10])
def test_long_labels_stay_within_their_panel_and_the_figure(n: int) -> None:
    figure, axes = panels(n)
    for k, panel in enumerate(axes):
        label = f"fairgrad (alpha={k}.0) + cost (hold_sharpness=True, conflict_weight=1.0, aim=None)"
        panel.plot([0, 1], label=label)
        titled(panel, label)
    before = figure.get_size_inches()[1]
    key_below(figure, axes)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    titles = [panel.title.get_window_extent(renderer) for panel in axes]
    assert not any(a.overlaps(b) for k, a in enumerate(titles) for b in titles[:k])
    for box in (figure.legends[0].get_window_extent(renderer), *titles):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
    assert min(panel.get_window_extent(renderer).height for panel in axes) > figure.dpi  # an inch at least
    assert bool(figure.get_size_inches()[1] > before) is (n > 2)


@pytest.mark.parametrize("name", ["pr$ice_$^", "$", "$a$", r"\\frac{$"])
def test_dollars_in_names_are_no_mathematics(name: str) -> None:
    figure, (axes,) = panels(1)
    axes.plot([0, 1], label=name)
    axes.set_yticks([0, 1], [name, "other"])
    axes.set_xlabel(r"norm of the mean gradient, $\|g_0\|$")
    titled(axes, f"accuracy {name} [{name}]")
    key_below(figure, [axes])
    assert png(figure).startswith(b"\x89PNG")
    assert axes.xaxis.label.get_parse_math()


def test_front_by_hand() -> None:
    points = [(1.0, 5.0), (2.0, 3.0), (2.5, 3.0), (3.0, 4.0), (4.0, 1.0)]
    assert front(points, higher_is_better=False) == [0, 1, 4]
    assert front(points, higher_is_better=True) == [0]


def made(path: Path, name: str, epochs: int) -> Comparison:
    for method in ("ls", "fairgrad"):
        config = RunConfig.resolve(f"many_lines:{name}", method, epochs=epochs)
        run(config, Collection(path).run_path(config.name))
    (comparison,) = compare(find_runs([path])[0])
    return comparison


@pytest.mark.parametrize(("name", "epochs"), [("Three", 1), ("Three", 9), ("Forty", 1)])
def test_every_figure_has_title_key_and_whole_epochs(
    name: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    comparison = made(tmp_path, name, epochs)
    pictures = {picture.name.rpartition("-")[2]: picture for picture in pictures_of(comparison)}
    assert set(pictures) == {"time", "learning", "weights", "norms", "cosines", "map"}
    for kind, picture in pictures.items():
        figure = picture.draw()
        assert comparison.title in figure.get_suptitle()
        assert png(figure).startswith(b"\x89PNG")  # drawn, so that the ticks stand
        bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
        assert figure.legends or bars, kind
        for axes in figure.axes:
            if axes.get_xlabel() == "epoch":
                low, high = axes.get_xlim()
                ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
                assert ticks, kind
                assert all(tick == round(tick) and 1 <= tick <= epochs for tick in ticks), (kind, ticks)
        if kind == "learning":
            drawn = [*figure.axes[0].get_lines(), *figure.axes[0].collections]
            assert drawn  # one epoch too is drawn
    labels = {text.get_text() for text in pictures["learning"].draw().legends[0].get_texts()}
    assert labels == {"ls", "fairgrad"}
