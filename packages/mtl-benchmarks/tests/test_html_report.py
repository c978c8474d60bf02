"""The page is opened in a real browser, and what a person would see of it is looked at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_benchmarks.cli import main
from mtl_benchmarks.comparison import find_runs, incomplete_runs, result_table
from mtl_benchmarks.comparison.groups import compare
from mtl_benchmarks.components.options import Choice
from mtl_benchmarks.configuration.run_config import RunConfig
from mtl_benchmarks.html_report import write_report
from mtl_benchmarks.html_report.sections import caveats
from mtl_benchmarks.runs.runner import run
from mtl_benchmarks.session import with_baselines
from mtl_benchmarks.storage.results import Collection
from mtl_core import MissingExtraError, ResultsDirectoryError, UnknownNameError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        out = tmp_path_factory.mktemp("report") / "runs"
        configs = [
            RunConfig.resolve("many_lines:Streets", method, seed=seed, epochs=epochs)
            for method, epochs in (("ls", 2), ("mgda", 2), ("mgda", 1))
            for seed in (0, 1)
        ]
        for config in with_baselines(configs):
            run(config, Collection(out).run_path(config.name))
        yield out


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    return write_report([runs])


def test_what_a_pattern_names_beside_the_runs_is_passed_over(runs: Path, page: Path) -> None:
    """``runs/*``, as a shell expands it: the runs, and with them the collection's marker, a page, pictures."""
    pictures = runs / "figures"
    pictures.mkdir(exist_ok=True)
    (pictures / "one.png").write_bytes(b"")
    everything = sorted(runs.iterdir())
    assert {"mtl-bench.json", page.name, "figures"} < {path.name for path in everything}

    assert len(find_runs(everything)[0]) == len(find_runs([runs])[0])
    assert incomplete_runs(everything) == []
    for path in (runs / "mtl-bench.json", pictures, runs / "nothing"):  # by themselves they are no runs
        with pytest.raises(ResultsDirectoryError, match=re.escape(str(path))):
            find_runs([path])


def test_a_collection_of_collections_says_what_lies_inside(tmp_path: Path) -> None:
    Collection(tmp_path / "runs" / "study")
    with pytest.raises(ResultsDirectoryError, match=r"got none\. Give what lies inside: \S*runs/study\."):
        find_runs([tmp_path / "runs"])


def opened(browser: Any, page: Path, width: int) -> tuple[Any, list[str]]:
    """The page at a width, and everything that went wrong or was asked of the network."""
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.set_default_timeout(180_000)
    wrong: list[str] = []
    view.on("console", lambda message: wrong.append(message.text))
    view.on("pageerror", lambda error: wrong.append(str(error)))
    view.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
    )
    view.goto(page.resolve().as_uri())
    return view, wrong


@pytest.mark.parametrize("width", [390, 1280])
def test_a_person_sees_tables_figures_and_how_to_repeat(browser: Any, page: Path, runs: Path, width: int) -> None:
    view, wrong = opened(browser, page, width)
    assert wrong == []
    text = view.inner_text("body")
    for expected in (
        "many_lines:Streets · epochs 2",
        "many_lines:Streets · epochs 1",
        "do not compare with each other",
        "as published, COST, Table 1, CityScapes",
        "minus ls, seed by seed",
        "mtl-bench run --config",
        f"torch\t{torch.__version__}",
        "Some rows are of 2 seeds",
    ):
        assert expected in text, expected
    # The first table, cell by cell, is the comparison's.
    comparisons = compare(find_runs([runs])[0])
    rows = view.locator("table.results").first.locator("tbody tr")
    shown = [row.locator("th, td").all_inner_texts() for row in rows.all()]
    longest = {comparison.title: comparison for comparison in comparisons}
    title = view.locator("section h2").first.inner_text()
    assert shown == result_table(longest[title]).with_first("delta_m", "mean_rank").texts()
    pictures = view.locator("img").all()
    assert len(pictures) >= 10
    for picture in pictures:
        width_, height, shown, alt = picture.evaluate(
            "image => [image.naturalWidth, image.naturalHeight, image.getBoundingClientRect().width, image.alt]"
        )
        assert width_ > 300
        assert height > 200
        assert (
            600 <= shown <= max(width, 680)
        )  # on a phone a figure is scrolled by itself, and its letters are readable
        assert alt
    assert view.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out sideways
    view.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A page of eleven tasks, as of QM9, with long names and several methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        out = tmp_path_factory.mktemp("many") / "runs"
        methods = ("ls", "mgda", Choice("fairgrad", {"alpha": 0.5}))
        cost = Choice("cost", {"trigger": Choice("majority", {"fraction": 0.75}), "max_steps": 1})
        configs = [
            RunConfig.resolve("many_lines:Eleven", method, move, seed=seed)
            for method, move in (*((each, None) for each in methods), ("ls", cost))
            for seed in (0, 1)
        ]
        for config in with_baselines(configs):
            run(config, Collection(out).run_path(config.name))
        yield write_report([out])


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["results", "differences"])
def test_what_sums_up_many_tasks_is_seen_without_scrolling(browser: Any, many: Path, width: int, name: str) -> None:
    view, wrong = opened(browser, many, width)
    assert wrong == []
    table = view.locator(f"table.{name}").first
    headings = [text.partition("\n")[0] for text in table.locator("thead th").all_inner_texts()]
    assert len(headings) > 12
    where = headings.index("Δm")
    for row in table.locator("tbody tr").all():
        label, *cells = row.locator("th, td").all()
        box, before = cells[where - 1].bounding_box(), label.bounding_box()
        assert before is not None
        assert box is not None
        assert before["x"] + before["width"] <= box["x"] + 0.5
        assert box["x"] + box["width"] <= width
    # Scrolled to its end, the names of the rows stay.
    view.locator(f".scroll:has(table.{name})").first.evaluate("box => box.scrollLeft = box.scrollWidth")
    label, *_, last = table.locator("tbody tr").first.locator("th, td").all()
    for each in (label, last):
        box = each.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    view.close()


def test_it_prints(browser: Any, page: Path) -> None:
    view, _ = opened(browser, page, 1280)
    view.emulate_media(media="print")
    assert not view.locator("nav").is_visible()
    assert view.locator("table.results").first.is_visible()
    assert view.pdf().startswith(b"%PDF")
    view.close()


def test_links_lead_somewhere_and_nothing_is_loaded(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    anchors = set(re.findall(r'href="#([^"]+)"', text))
    assert anchors == set(re.findall(r'<section id="([^"]+)"', text))
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "<script" not in text
    assert str(page.parent.parent) not in text  # no path of the machine


def test_the_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(runs), "--out", str(out), "--reference", "mgda"]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert "minus mgda, seed by seed" in out.read_text(encoding="utf-8")
    assert main(["report"]) == 2
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(runs), "--colour"]) == 2
    assert "--out" in capsys.readouterr().err


def test_what_is_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="unknown reference 'adam'"):
        write_report([runs], tmp_path / "page.html", reference="adam")
    with pytest.raises(ResultsDirectoryError):
        write_report([tmp_path], tmp_path / "page.html")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError):
        write_report([runs], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_unfinished_runs_and_copies_are_named(runs: Path, tmp_path: Path) -> None:
    there = tmp_path / "runs"
    shutil.copytree(runs, there)
    names = sorted(path.name for path in there.iterdir() if "mgda" in path.name)
    shutil.copytree(there / names[0], there / "again")
    (there / names[1] / "result.json").unlink()
    text = write_report([there]).read_text(encoding="utf-8")
    assert f"{names[1]} is not finished and is left out." in text
    assert f"{names[0]} in runs is a copy of again and counts once." in text


def test_caveats_of_a_comparison(runs: Path) -> None:
    found = caveats(next(each for each in compare(find_runs([runs])[0]) if "epochs 1" in each.title))
    assert any("2 seeds" in sentence for sentence in found)
    assert "Not the benchmark's own protocol: epochs were set otherwise." in found
