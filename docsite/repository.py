"""Files of the repository as pages of the site: where each one goes, and links between them."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["CODE", "PACKAGES", "ROOT", "outside_docs", "page_of", "rewritten"]

ROOT = Path(__file__).parents[1]
PACKAGES = ("mtl-core", "mtl-aggregators", "mtl-teleport", "mtl-benchmarks")

_PAGES = {
    "README.md": "index.md",
    "docs/README.md": "contents.md",  # MkDocs would take docs/README.md for the index
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    **{f"packages/{package}/README.md": f"packages/{package}.md" for package in PACKAGES},
    **{f"packages/{package}/CHANGELOG.md": f"packages/{package}-changes.md" for package in PACKAGES},
}
# Code is left as it is: a link inside of it is an example.
CODE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+).*?^(?P=indent)(?P=fence) *$|`+[^`\n]*`+", re.M | re.S)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")


def outside_docs() -> dict[str, str]:
    """Path in the repository → page of the site, of the Markdown files that lie elsewhere there than here."""
    return dict(_PAGES)


def page_of(source: str) -> str | None:
    """The page that a file of the repository becomes, or None if it is not on the site.

    Example:
        >>> page_of("docs/concepts/scale.md"), page_of("packages/mtl-core/README.md"), page_of("noxfile.py")
        ('concepts/scale.md', 'packages/mtl-core.md', None)
        >>> page_of("docs/tutorials/pinn.py")
        'tutorials/pinn.md'
    """
    if source in _PAGES:
        return _PAGES[source]
    if source.startswith("docs/tutorials/") and source.endswith(".py"):
        return source.removeprefix("docs/").removesuffix(".py") + ".md"
    return source.removeprefix("docs/") if source.startswith("docs/") else None


def rewritten(text: str, source: str, page: str) -> str:
    """A page's Markdown with links between files of the repository turned into links between pages.

    A link to a file that is no page becomes its text and the file's path: the site knows no address of the repository.

    Args:
        text: Markdown.
        source: the path in the repository that links are relative to.
        page: the page that the text stands on.

    Raises:
        FileNotFoundError: a link leads to nothing.
    """
    code = [match.span() for match in CODE.finditer(text)]

    def new(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        inside = any(begin <= match.start() < end for begin, end in code)
        if inside or not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target)).replace(os.sep, "/")
        found = ROOT / path
        if found.is_dir():
            path, found = f"{path}/README.md", found / "README.md"
        to = page_of(path)
        if to is None:
            if not found.exists():
                raise FileNotFoundError(f"{source}: the link to {match['target']!r} leads to no file")
            return f"{match['text']} (`{path}`)" if match["text"].strip("`") != path else f"`{path}`"
        relative = os.path.relpath(to, os.path.dirname(page) or ".").replace(os.sep, "/")
        return f"{match['image']}[{match['text']}]({relative}{'#' if anchor else ''}{anchor})"

    return _LINK.sub(new, text)
