"""How help is set: what to type first, then the options, one line each."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from mtl_benchmarks.command_line.option import Option
from mtl_benchmarks.components.signatures import REQUIRED

__all__ = ["EXIT_CODES", "layout"]

EXIT_CODES = "exit codes: 0 done, 1 failed computation, 2 bad input, 130 Ctrl-C, 143 SIGTERM"
_WIDEST_USAGE = 38
_DEFAULT = re.compile(r"\(default:[^)]*\)")  # torch's docstrings repeat what stands at the end of the line


def layout(
    usage: str,
    *,
    about: str,
    examples: Sequence[str] = (),
    groups: Mapping[str, Sequence[Option]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The text of ``--help``.

    Args:
        usage: the command line in short.
        about: what it does.
        examples: whole command lines.
        groups: heading → options. A group without options is left out.
        notes: lines at the end.
    """
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 130))
    lines = [f"usage: {usage}", "", *textwrap.wrap(about, width)]
    if examples:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    for heading, options in (groups or {}).items():
        shown = [_line(option, width) for option in options if not option.hidden]
        if shown:
            lines += ["", f"{heading}:", *shown]
    if notes:
        lines += ["", *notes]
    return "\n".join([*lines, EXIT_CODES]) + "\n"


def _line(option: Option, width: int) -> str:
    head = f"  {option.usage:<{_WIDEST_USAGE}}"
    default = "required" if option.default is REQUIRED else "" if option.default is None else _shown(option.default)
    said = _DEFAULT.sub("", option.help).strip().rstrip(".")
    text = f"{said}{f' ({default})' if default else ''}"
    room = width - len(head) - 1
    if len(text) > room:
        # The default is what a reader looks for; the rest of the sentence is in `mtl-bench describe`.
        tail = f" ({default})" if default else ""
        text = said[: max(0, room - len(tail) - 1)].rstrip(" ,;:.") + "…" + tail
    return f"{head} {text}".rstrip()


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
