"""Check an environment into which one package was installed: `python -I tests/ladder/check.py mtl-core`.

The package must work, come from the environment and not from the source tree, and nothing may be there that belongs
to a rung above it. Run by `nox -s ladder`; needs nothing but the package itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

OPTIONAL = ("cvxpy", "hypothesis", "matplotlib", "pytest", "sklearn", "torch_geometric", "torchjd")
ABSENT = {
    "mtl-core": (
        *OPTIONAL,
        "scipy",
        "peft",
        "transformers",
        "rich",
        "mtl_aggregators",
        "mtl_teleport",
        "mtl_benchmarks",
    ),
    "mtl-aggregators": (*OPTIONAL, "peft", "transformers", "mtl_teleport", "mtl_benchmarks"),
    "mtl-teleport": (*OPTIONAL, "mtl_aggregators", "mtl_benchmarks"),
    "mtl-benchmarks": OPTIONAL,
}
# Importing the package may not import these, though they may be installed: they cost seconds.
LAZY = ("cvxpy", "matplotlib", "peft", "sklearn", "transformers")


def require(condition: bool, message: str) -> None:
    """Stop with a message unless the condition holds."""
    if not condition:
        raise SystemExit(f"ladder: {message}")


def use_core() -> str:
    """Take one step with the mean of two opposed gradients."""
    import torch
    from torch import nn

    from mtl_core import Problem, step

    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    problem = Problem(
        model,
        lambda net, x: torch.stack([(net(x) - 1).square().mean(), (net(x) + 3).square().mean()]),
        shared=model,
        tasks=("up", "down"),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    report = step(problem, torch.tensor([[1.0, 0.0]]), optimizer, lambda jacobian: jacobian.mean(0))
    # Gradients -2 and 6 along the first weight: their mean 2, times 0.25.
    require(torch.equal(model.weight.detach(), torch.tensor([[-0.5, 0.0]])), f"one step led to {model.weight.tolist()}")
    return f"losses {report.losses.tolist()}"


def use_aggregators() -> str:
    """Weigh two orthogonal gradients: MGDA's min-norm point has equal inner products with both."""
    import torch

    from mtl_aggregators import available, make

    direction = make("mgda")(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    inner = torch.tensor([[1.0, 0.0], [0.0, 2.0]]) @ direction
    require(bool((inner[0] - inner[1]).abs() < 1e-6), f"MGDA gave {direction.tolist()}")
    return f"{len(available())} methods"


def use_teleport() -> str:
    """Wrap plain training in COST and take one step."""
    import torch
    from torch import nn

    from mtl_core import Problem, step
    from mtl_teleport import COST

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    problem = Problem(model, lambda net, x: (net(x) - 1).square().mean(0), shared=model[0], tasks=("first", "second"))
    method = COST()
    method.start_epoch(0)
    report = step(problem, torch.randn(4, 3), torch.optim.Adam(model.parameters(), lr=1e-3), method)
    require(bool(torch.isfinite(report.losses).all()), f"losses {report.losses.tolist()}")
    return f"losses {[round(loss, 4) for loss in report.losses.tolist()]}"


def use_benchmarks() -> str:
    """Ask the command line for what it can run."""
    import subprocess

    command = Path(sys.executable).with_name("mtl-bench")
    listed = subprocess.run([command, "list"], capture_output=True, text=True, check=False)
    require(listed.returncode == 0, f"`mtl-bench list` ended with {listed.returncode}: {listed.stderr}")
    require("toy" in listed.stdout, f"`mtl-bench list` does not name the toy problem: {listed.stdout!r}")
    return "mtl-bench list"


USES: dict[str, Callable[[], str]] = {
    "mtl-core": use_core,
    "mtl-aggregators": use_aggregators,
    "mtl-teleport": use_teleport,
    "mtl-benchmarks": use_benchmarks,
}


def check(package: str) -> None:
    """Check one package as this file's first lines say."""
    name = package.replace("-", "_")
    present = [other for other in ABSENT[package] if importlib.util.find_spec(other) is not None]
    require(not present, f"{package} alone must not bring {', '.join(present)}")

    module = importlib.import_module(name)
    loaded = [other for other in LAZY if other in sys.modules]
    require(not loaded, f"`import {name}` must not import {', '.join(loaded)}")
    require(module.__file__ is not None, f"`{name}` has no file")
    place = Path(str(module.__file__)).parent
    require(place.is_relative_to(sys.prefix), f"`{name}` must come from the environment, found {place}")
    require((place / "py.typed").is_file(), f"`{name}` must ship py.typed")
    version = importlib.metadata.version(package)
    require(module.__version__ == version, f"__version__ is {module.__version__}, the metadata say {version}")
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    require(not missing, f"`{name}.__all__` names what is not there: {', '.join(missing)}")

    print(f"ladder: {package} {version} works alone ({USES[package]()})")


if __name__ == "__main__":
    check(sys.argv[1])
