"""The page of a method: one template for all, filled from the registry, docs/ and what is measured at build time."""

from __future__ import annotations

import functools
import importlib
import inspect
import re

from docsite.docstrings import as_markdown, public_modules
from docsite.measured import N_DRAWS, Behaviour, behaviour, passes, remembers
from docsite.repository import CODE, ROOT
from mtl_aggregators import available, make
from mtl_aggregators.registry import method_class

__all__ = ["cells", "linked", "method_page", "methods"]

_ROUTE = {
    "losses": "the losses alone",
    "gramian": "inner products of the task gradients, `[m, m]`",
    "jacobian": "the task gradients themselves, `[m, d]`",
    "batches": "the task gradients of three batches",
}
_COMMANDS = """## On the command line

```console
$ mtl-bench describe {name}
$ mtl-bench run digits --method {name} --seeds 3
```"""
_CAPTION = (
    "*Two quadratic losses in two variables, from three starts: the way through the parameters, and the same way in "
    "the plane of the losses, with the Pareto front in grey. Plain gradient descent at a learning rate that makes up "
    "for the method's scale.*"
)
_COST = {
    "losses": "Independent of the number of tasks: no gradient of a single task is formed.",
    "gramian": (
        "One backward pass per task through the shared part; the heads are differentiated once where the features are "
        'known. `keep="gramian"` needs no memory for `m` gradients.'
    ),
    "jacobian": "One backward pass per task through the shared part, and memory for `m` gradients.",
    "batches": (
        "Backward passes per task on two batches for the weights, and the update on a third; memory for two times `m` "
        "gradients."
    ),
}


def methods() -> list[str]:
    """Names of the methods that have a page, in the order of the registry."""
    return available()


@functools.cache
def cells(page: str, table: int) -> dict[str, list[str]]:
    """The rows of a table of a page in ``docs/``: name → the cells beside it, with links as a page below needs them."""
    text = links_from_below((ROOT / "docs" / page).read_text(encoding="utf-8"), page)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in tables[table].splitlines()[2:]]
    return {row[0].strip("` "): row[1:] for row in rows}


def links_from_below(markdown: str, page: str) -> str:
    """What a page in ``docs/`` says, for a page in a folder of it: relative links lead to the same places.

    Example:
        >>> links_from_below("[a](evidence/b.md#c), [d](#e), [f](https://g.org)", "choosing.md")
        '[a](../evidence/b.md#c), [d](../choosing.md#e), [f](https://g.org)'
    """
    own = re.sub(r"\]\(#", f"]({page}#", markdown)
    return re.sub(r"\]\((?![a-z]+:|/)", "](../", own)


def method_page(name: str) -> str:
    """The Markdown of a method's page.

    Raises:
        KeyError: the method has no row in docs/methods.md or docs/when_methods_fail.md.
    """
    cls = method_class(name)
    facts = make(name).facts
    good, bad = cells("when_methods_fail.md", 0)[name]
    update, paper = cells("methods.md", 0)[name][1:3]
    first = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
    degree = "none" if facts.homogeneity is None else f"{facts.homogeneity:.3g}"
    laws = ", ".join(law.replace("_", " ") for law in sorted(facts.laws)) or "none that hold for every input"
    few, many = passes(name, 3), passes(name, 8)
    rows = [
        ("In the registry", f'`make("{name}")`, `--method {name}`'),
        ("Paper", paper),
        ("Sees", _ROUTE[facts.needs] + (f"; at least {facts.min_tasks} tasks" if facts.min_tasks > 1 else "")),
        ("Forward passes per step", f"{few.forward:.3g}"),
        ("Backward passes per step", f"{few.backward:.3g} for 3 tasks, {many.backward:.3g} for 8"),
        ("Remembers between steps", "yes, in `state_dict()`" if remembers(name) else "nothing"),
        ("[Degree](../concepts/degree.md)", degree),
        ("[Scale](../concepts/scale.md)", f"{facts.scale.formula}; released code: {facts.paper_scale.formula}"),
        ("[Heads](../concepts/heads.md) in released code", facts.paper_heads),
        ("Laws", laws),
    ]
    parts = [
        f"# {cls.__name__}",
        as_markdown(first, itself=cls.__name__),
        _formula(cls),
        f"**The update**: {update}.",
        '<div class="facts" markdown>\n\n| | |\n|---|---|\n'
        + "\n".join(f"| {key} | {value} |" for key, value in rows)
        + "\n\n</div>",
        "Passes are counted while this page is built, in steps of a network with one head per task.",
        f"![Paths of {cls.__name__} on two quadratic losses](../pictures/methods/{name}.svg){{ .wide }}",
        _CAPTION,
        f"## When to take it\n\n{_sentence(good)}",
        f"## When it fails\n\n{_sentence(bad)}",
        _measured(behaviour(name), behaviour("pcgrad"), cls.__name__),
        f"## What it costs\n\n{_COST[facts.needs]} Times: [performance](../performance.md).",
        f"## A step\n\n{_example(name)}",
        _by_hand(name),
        _COMMANDS.format(name=name),
        _difference(name),
        f"## Reference\n\n::: mtl_aggregators.{cls.__name__}\n    options:\n      heading_level: 3",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


@functools.cache
def _by_class() -> dict[str, str]:
    return {f"`{method_class(name).__name__}`": name for name in methods()} | {f"`{name}`": name for name in methods()}


@functools.cache
def _documented() -> frozenset[str]:
    """Every public name that has an anchor in the reference; a module has a page, and none."""
    return frozenset(
        f"{module}.{name}"
        for module, names in public_modules().items()
        for name in names
        if not inspect.ismodule(getattr(importlib.import_module(module), name))
    )


def linked(markdown: str, page: str) -> str:
    """A page whose names in code are links: methods to their pages, dotted names to the reference.

    Example:
        >>> linked("`FAMO` and `mtl_core.step`", "concepts/scale.md")
        '[`FAMO`](../methods/famo.md) and [`mtl_core.step`][mtl_core.step]'
    """
    up = "../" * page.count("/")

    def link(match: re.Match[str]) -> str:
        before, after = match.string[: match.start()], match.string[match.end() :]
        heading = before.rpartition("\n")[2].startswith("#")
        in_link = before.endswith("[") or re.match(r"[^\[\]\n]*\]\(", after) is not None
        dotted = match[0].strip("`").partition("(")[0]
        if heading or in_link:
            return match[0]
        if match[0] in _by_class():
            return f"[{match[0]}]({up}methods/{_by_class()[match[0]]}.md)"
        return f"[{match[0]}][{dotted}]" if dotted in _documented() and "\n" not in match[0] else match[0]

    return CODE.sub(link, markdown)


def _formula(cls: type) -> str:
    """The first displayed formula of a class's docstring, whose symbols the docstring explains; or nothing."""
    found = re.search(r"^\\\[.*?\\\]$", as_markdown(inspect.getdoc(cls) or ""), flags=re.M | re.S)
    return "" if found is None else found[0]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _measured(found: Behaviour | None, other: Behaviour | None, title: str) -> str:
    if found is None or other is None:
        return ""
    beside = "" if title == "PCGrad" else f" (PCGrad: {other.harm:.0%})"
    return (
        f"Measured at build time on {N_DRAWS} drawn Jacobians of four tasks whose gradients are up to a hundred times "
        f"as long as each other, one fresh method each: **{found.harm:.0%}** of the updates raise some task's loss to "
        f"first order{beside}. Median cosine of the update with the shortest gradient **{found.shortest:.2f}**, with "
        f"the longest **{found.longest:.2f}**, with the worst served **{found.worst:.2f}**."
    )


def _example(name: str) -> str:
    title = method_class(name).__name__
    epochs = name == "dwa" or (name == "stch")
    loop = (
        "for epoch in range(2):\n    method.start_epoch(epoch)\n    for _ in range(3):\n"
        "        report = mtl_core.step(problem, torch.randn(32, 6), optimizer, method)"
        if epochs
        else "for _ in range(5):\n    report = mtl_core.step(problem, torch.randn(32, 6), optimizer, method)"
    )
    said = (
        "`SDMGrad` and `MoDo` step on three batches: a batch is cut into three, or "
        "`mtl_aggregators.in_threes(loader)` groups those of a loader.\n\n"
        if make(name).facts.needs == "batches"
        else ""
    )
    return f"""{said}```python
import torch
from torch import nn

import mtl_core
from mtl_aggregators import {title}

torch.manual_seed(0)
trunk = nn.Sequential(nn.Linear(6, 32), nn.Tanh())
model = nn.ModuleDict({{"trunk": trunk, "heads": nn.Linear(32, 3)}})


def losses_fn(model, x):
    wanted = torch.stack([x[:, 0], x[:, 1] * x[:, 2], -x[:, 0]], dim=1)
    return (model["heads"](model["trunk"](x)) - wanted).square().mean(0)


problem = mtl_core.Problem(model, losses_fn, shared="trunk", tasks=("a", "b", "c"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
method = {title}()

{loop}
print(dict(zip(report.tasks, report.losses.tolist(), strict=True)))
```"""


def _by_hand(name: str) -> str:
    if behaviour(name) is None:
        return ""
    title = method_class(name).__name__
    weights = hasattr(method_class(name), "weights")
    more = "\nprint(method.weights(jacobian @ jacobian.T))  # one number per task" if weights else ""
    return f"""## By hand

A Jacobian with one row per task goes in, the update comes out:

```python
jacobian = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 1.0, 0.0], [0.5, 0.5, 0.5]])
method = {title}()
print(method(jacobian))  # to be descended{more}
```"""


def _difference(name: str) -> str:
    row = cells("methods.md", 2).get(name)
    if row is None:
        return ""
    there, here = row
    return f"## Where this differs\n\n*In papers and released code*: {there}.\n\n*Here*: {here}."
