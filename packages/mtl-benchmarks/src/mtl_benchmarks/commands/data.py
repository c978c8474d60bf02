"""``mtl-bench data``: come by the files of a benchmark, and check them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtl_benchmarks.benchmarks import available, benchmark_class
from mtl_benchmarks.command_line.command import Command
from mtl_benchmarks.command_line.help_text import layout
from mtl_benchmarks.command_line.option import Option, read_options
from mtl_benchmarks.command_line.words import split
from mtl_benchmarks.components.options import construct, option_arguments, option_defaults
from mtl_benchmarks.components.signatures import REQUIRED, summary_of
from mtl_benchmarks.data_files import DataSource, ReadsFiles
from mtl_core import InvalidInputError, ResultsDirectoryError, UnknownNameError
from mtl_core.extension import is_spec, plain_name

__all__ = ["COMMAND"]

_ROOT = Option("--root", str, "folder of the data", shown="DIR", path=True)


def _sources(name: str) -> Mapping[str, type[DataSource]]:
    cls = benchmark_class(name)
    return cls.data_sources() if isinstance(cls, ReadsFiles) else {}


def _all_sources() -> dict[str, type[DataSource]]:
    found: dict[str, type[DataSource]] = {}
    for name in available():
        try:
            found |= _sources(name)
        except InvalidInputError:  # one broken package must not hide all other names
            continue
    return found


def _names() -> list[str]:
    return list(dict.fromkeys([*available(), *_all_sources()]))


def _find(name: str) -> type[DataSource] | None:
    """The source of that name; None for a benchmark that reads no files."""
    for known, source in _all_sources().items():
        if plain_name(known) == plain_name(name):
            return source
    if not is_spec(name) and plain_name(name) not in map(plain_name, available()):
        raise UnknownNameError("benchmark or data", name, _names())
    own = _sources(name)
    return next(iter(own.values())) if own else None


def _run(words: Sequence[str]) -> None:
    found = split(words)
    if len(found.standing) != 1:
        if found.help and not found.standing:
            print(COMMAND.help(), end="")
            return
        raise InvalidInputError(
            f"`data` must be followed by one name, got {' '.join(found.standing) or 'none'}. Valid: "
            f"{', '.join(_names())}."
        )
    name = found.standing[0]
    source = _find(name)
    options = [_ROOT, *([] if source is None else _options_of(source))]
    if found.help:
        about = COMMAND.summary if source is None else summary_of(source)
        print(layout(f"mtl-bench data {name} [--root DIR] [options]", about=about, groups={"options": options}), end="")
        return
    values = read_options(found.given, options)
    if source is None:
        print(f"{name} reads no files: there is nothing to fetch. Next: mtl-bench run {name}")
        return
    made = construct(source, {f.removeprefix("--data."): v for f, v in values.items() if f.startswith("--data.")})
    if "--root" not in values:
        print(made.instructions(Path("DIR")))
        print(f"Then: mtl-bench data {name} --root DIR")
        return
    _prepare(name, made, Path(values["--root"]))


def _options_of(source: type[DataSource]) -> list[Option]:
    defaults = option_defaults(source)
    return [
        Option(
            f"--data.{name}",
            argument.annotation,
            argument.help,
            REQUIRED if argument.default is REQUIRED else "none" if defaults[name] is None else defaults[name],
        )
        for name, argument in option_arguments(source).items()
    ]


def _prepare(name: str, source: DataSource, root: Path) -> None:
    source.write(root, lambda line: print(line, flush=True))
    wrong = list(source.problems(root))
    if not wrong:
        print(f"{root}: complete. Next: mtl-bench run BENCHMARK --benchmark.root {root}")
        return
    print(source.instructions(root))
    for problem in wrong:
        print(f"  - {problem}")
    more = f", and {len(wrong) - 1} more problems" if len(wrong) > 1 else ""
    raise ResultsDirectoryError(f"`--root` must hold the files of {name}, got {wrong[0]}{more}.")


COMMAND = Command(
    "data",
    "NAME [--root DIR] [options]",
    "what a benchmark's files are: fetch, write or check them",
    _run,
    options=(_ROOT,),
    standing=_names,
    examples=(
        "mtl-bench data digits                   # says that it reads no files",
        "mtl-bench data mine:Pictures --root DIR # says what to fetch, and checks what is there",
    ),
)
