"""The built site in a real browser: five pages at the width of a desktop and of a phone.

Run by `nox -s docs` after the build. The pictures are kept in ``.nox/site-pictures``, for a person to look at.
"""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / ".nox" / "site"
PICTURES = ROOT / ".nox" / "site-pictures"
PAGES = ("", "choosing/", "concepts/imbalance/", "methods/fairgrad/", "reference/mtl_teleport/cost-and-its-controls/")

pytestmark = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site is not built: nox -s docs")


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site, served on a free port: search and links need more than files."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Silent, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def opened(browser: Any, address: str, page: str, width: int) -> tuple[Any, list[str]]:
    """A page at a width, and everything that went wrong or was asked of another server."""
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.set_default_timeout(180_000)
    wrong: list[str] = []
    view.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: wrong.append(str(error)))
    view.on("response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    view.on(
        "request",
        lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "data:", "blob:")) else None,
    )
    view.goto(address + page, wait_until="load")
    return view, wrong


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_is_whole(browser: Any, address: str, page: str, width: int) -> None:
    view, wrong = opened(browser, address, page, width)
    PICTURES.mkdir(parents=True, exist_ok=True)
    name = page.strip("/").replace("/", "-") or "home"
    view.screenshot(path=PICTURES / f"{name}-{width}.png", full_page=False)

    assert wrong == []
    assert view.evaluate("document.documentElement.scrollWidth") <= width, "the page overflows sideways"
    images = view.evaluate("[...document.images].map(i => [i.src, i.complete && i.naturalWidth > 0, i.alt])")
    assert all(loaded and alt for _, loaded, alt in images), images
    assert view.evaluate("document.querySelectorAll('article h1').length") == 1
    view.close()


TABLES = """() => {
    const wrong = [];
    for (const table of document.querySelectorAll("article table:not([class])")) {
        const rows = [...table.rows].map(row => row.getBoundingClientRect().width);
        if (table.clientWidth - Math.max(...rows) > 3) wrong.push("frame: " + table.rows[0].innerText);
        for (const cell of table.querySelectorAll("td")) {
            const text = document.createRange();
            text.selectNodeContents(cell);
            const lines = new Set([...text.getClientRects()].map(part => Math.round(part.top)));
            if (/^[−+-]?[\\d.,]+%?$/.test(cell.innerText.trim()) && lines.size > 1) wrong.push(cell.innerText);
        }
    }
    return wrong;
}"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", PAGES)
def test_no_number_of_a_table_is_broken_and_frames_fit(browser: Any, address: str, page: str, width: int) -> None:
    view, _ = opened(browser, address, page, width)
    assert view.evaluate(TABLES) == []
    view.close()


def test_what_a_tutorial_printed_looks_different_from_its_code(browser: Any, address: str) -> None:
    view, _ = opened(browser, address, "tutorials/02_seeing_conflict/", 1280)
    assert view.locator("article .output pre").count() > 0
    border = "element => getComputedStyle(element).borderLeftWidth"
    assert float(view.locator("article .output pre").first.evaluate(border).removesuffix("px")) >= 1.0
    view.close()


def test_formulas_are_drawn(browser: Any, address: str) -> None:
    view, _ = opened(browser, address, "methods/fairgrad/", 1280)
    assert view.locator("article math").count() > 5
    assert view.locator("article math[display=block]").first.bounding_box()["height"] > 15
    assert not re.search(r"\\[([]", view.inner_text("article"))
    view.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_search_finds_a_method(browser: Any, address: str, width: int) -> None:
    view, wrong = opened(browser, address, "", width)
    if width < 960:
        view.locator("label[for=__search]").first.click()
    box = view.get_by_role("textbox", name="Search")
    box.click()
    # The index is read by a worker; what is typed before it is ready is not looked up.
    view.get_by_text("Type to start searching").wait_for()
    box.press_sequentially("fairgrad")
    found = view.locator(".md-search-result__link").first
    found.wait_for()
    assert view.locator(".md-search-result__link", has_text="FairGrad").count() > 0
    assert wrong == []
    view.close()
