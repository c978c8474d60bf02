"""What MkDocs calls while it builds the site: generated pages come in, links and formulas are turned into theirs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docsite import computed, licences, method_page, reference, repository, tutorials  # noqa: E402
from docsite.mathematics import with_mathml  # noqa: E402

log = get_plugin_logger("docsite")
_SOURCES: dict[str, str] = {}  # page → the file of the repository that its links are relative to
_CONTENT: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Make every generated page, and put them into the navigation in the place of the words with an @."""
    began = time.monotonic()
    _SOURCES.clear()
    _CONTENT.clear()
    for source, page in repository.outside_docs().items():
        if (ROOT / source).is_file():
            _SOURCES[page] = source
            _CONTENT[page] = (ROOT / source).read_text(encoding="utf-8")
    names = method_page.methods()
    files = tutorials.tutorials(ROOT / "docs" / "tutorials")
    written = [f"tutorials/{path.stem}.md" for path in files]
    for path, page in zip(files, written, strict=True):
        _SOURCES[page] = path.relative_to(ROOT).as_posix()
    _CONTENT.update(computed.pages(files, names))
    _CONTENT["licences.md"] = licences.page()
    pages, listed = reference.reference_pages()
    _CONTENT.update(pages)
    packages = [{package: f"packages/{package}.md"} for package in repository.PACKAGES]
    changes = [{f"{package}: changes": f"packages/{package}-changes.md"} for package in repository.PACKAGES]
    docs = ROOT / "docs"
    measured = [
        *docs.glob("benchmarks*.md"),
        docs / "evidence.md",
        *docs.glob("evidence/**/*.md"),
        docs / "performance.md",
    ]
    generated = {
        "@measured": [path.relative_to(docs).as_posix() for path in measured if path.is_file()],
        "@methods": [f"methods/{name}.md" for name in names],
        "@tutorials": written,
        "@reference": listed,
        "@packages": [*packages, *changes],
    }
    config.nav = _filled(config.nav, generated)
    log.info("all pages written in %.0f s", time.monotonic() - began)
    return config


def _filled(part: Any, generated: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_filled(each, generated) for each in part]
    if isinstance(part, dict):
        return {title: _filled(each, generated) for title, each in part.items()}
    return generated.get(part, part)


def on_files(files: Files, config: Any) -> Files:
    """Bring the generated pages in."""
    for page, content in _CONTENT.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    name = page.file.src_uri
    if name == "index.md":
        page.meta["hide"] = ["navigation"]  # there is nothing beside it
    if name in _CONTENT and name not in _SOURCES:
        return markdown
    try:
        markdown = repository.rewritten(markdown, _SOURCES.get(name, f"docs/{name}"), name)
    except FileNotFoundError as error:
        raise PluginError(str(error)) from error
    return method_page.linked(markdown, name)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Turn formulas into MathML."""
    try:
        return with_mathml(output)
    except Exception as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def on_post_build(config: Any) -> None:
    """Every public name must have been documented."""
    inventory = Path(config.site_dir) / "objects.inv"
    from mkdocstrings import Inventory

    known = set(Inventory.parse_sphinx(inventory.open("rb")))
    absent = [name for name in reference.documented() if name not in known]
    if absent:
        raise PluginError(f"public names without a place in the reference: {', '.join(absent)}")
    pages = sum(1 for _ in Path(config.site_dir).rglob("*.html"))
    log.info("%d pages, %d names", pages, len(known))
    if os.environ.get("CI"):
        print(f"docs: {pages} pages, {len(known)} names in the reference")
