"""What a teleport costs: time per adapter step, per teleport and per epoch, and memory, beside the released procedure.

    python -m nox -s bench -- teleport [--nets cnn segnet mlp] [--rounds 5] [--skip epochs]

The released procedure is re-created here in its work, not its effect: per adapter step seven forward passes (the loss,
the loss again inside the sharpness, and five perturbed ones), five deep copies of the model with the adapter merged,
and one backward pass through two of the forwards. Its LoRA runs beside the layers it wraps, as in the library it uses.
The perturbed forwards record no graph, which favours it. Model, batch, rank and number of probes are the same on both
sides; modes take turns in one process, times are medians over rounds, and the spread is from the lowest to the highest.

A whole released teleport passes three times over the training set (reference losses, then two rounds of adapter steps):
for CityScapes 372 batches, so 372 forwards and 744 adapter steps, computed from the measured ones. Memory is the rise
of the peak resident set over its level before, each mode in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_aggregators import FairGrad
from mtl_core import Problem, collect, step
from mtl_teleport import COST, DominatedConflict, LoRA, TeleportReport
from mtl_teleport.aim import Aim
from mtl_teleport.climb import Climb, Limits
from mtl_teleport.conditions import Conditions
from mtl_teleport.double_backward import twice_differentiable
from mtl_teleport.objective import Objective, balance_weights
from mtl_teleport.search import penalty, projected
from mtl_teleport.search_context import Search
from mtl_teleport.sharpness import AscentSharpness, ExactSharpness, RandomSharpness, Sharpness
from mtl_teleport.triggers import Trigger

MiB = 2**20
PROBES, RADIUS, RANK, LR = 5, 1e-4, 5, 1e-3
CITYSCAPES_BATCHES = 372
TURN = 6  # steps of an epoch before it is the other's turn
TARGETS = {"random": 1.0, "ascent": 0.7, "teleport": 0.05, "epoch": 1.10}

Batch = tuple[Tensor, Tensor]


class SegNet(nn.Module):
    """An encoder and decoder of 3×3 convolutions with batch normalisation and remembered maxima, as SegNet's."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

        w = width
        self.down = nn.ModuleList([block(3, w), block(w, 2 * w), block(2 * w, 4 * w), block(4 * w, 8 * w)])
        self.up = nn.ModuleList([block(8 * w, 4 * w), block(4 * w, 2 * w), block(2 * w, w), block(w, w)])

    def forward(self, x: Tensor) -> Tensor:
        places = []
        for block in self.down:
            x, index = functional.max_pool2d(block(x), 2, return_indices=True)
            places.append(index)
        for block in self.up:
            x = block(functional.max_unpool2d(x, places.pop(), 2))
        return x


def cnn() -> tuple[nn.Module, Callable[[], Tensor], Callable[[], nn.Module]]:
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU()),
    )
    return trunk, lambda: torch.randn(64, 1, 28, 28), lambda: nn.Linear(128, 8)


def segnet() -> tuple[nn.Module, Callable[[], Tensor], Callable[[], nn.Module]]:
    return SegNet(), lambda: torch.randn(8, 3, 64, 96), lambda: nn.Conv2d(16, 4, 1)


def mlp() -> tuple[nn.Module, Callable[[], Tensor], Callable[[], nn.Module]]:
    layers = [layer for _ in range(3) for layer in (nn.Linear(512, 512), nn.ReLU())]
    return nn.Sequential(*layers), lambda: torch.randn(128, 512), lambda: nn.Linear(512, 8)


NETS = {"cnn": cnn, "segnet": segnet, "mlp": mlp}


class Case:
    """A trunk with two or more heads that pull in different directions: targets of a teacher, with signs and scales."""

    def __init__(self, net: str, n_tasks: int, *, seed: int = 0) -> None:
        torch.manual_seed(seed)
        trunk, draw, head = NETS[net]()
        first = head()
        self.tasks = tuple(f"task {k}" for k in range(n_tasks))
        self.model = nn.ModuleDict(
            {"trunk": trunk, "heads": nn.ModuleList(copy.deepcopy(first) for _ in range(n_tasks))}
        )
        teacher, _, teacher_head = NETS[net]()
        out = teacher_head()

        def batch() -> Batch:
            x = draw()
            with torch.no_grad():
                y = out(teacher(x))
            return x, (y - y.mean()) / y.std()

        self.draw = batch
        self.batch = batch()
        signs, scales = (1.0, -1.0, 0.3), (5.0, 1.0, 2.0)

        def losses(model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
            z = model.get_submodule("trunk")(batch[0])
            heads = list(model.get_submodule("heads").children())
            found = {
                name: scales[k] * (heads[k](z) - signs[k] * batch[1]).square().mean()
                for k, name in enumerate(self.tasks)
            }
            return found, z

        self.loss_fn = losses
        self.problem = Problem(self.model, losses, shared="trunk", tasks=self.tasks)

    def climb(self, sharpness: Sharpness, *, relative: bool, steps: int) -> Climb:
        session = LoRA(rank=RANK).attach(self.problem, generator=torch.Generator().manual_seed(0))
        found = collect(
            dict(zip(self.tasks, self.problem.losses(self.batch).outputs, strict=True)), self.problem.shared
        )
        objective = Objective(
            sharpness,
            balance_weights(found.norms, form="released"),
            drift_weight=3.0 if relative else 10.0,
            gain_weight=0.1 if relative else 0.5,
            units="relative" if relative else "absolute",
        )
        held = (self.problem.losses(self.batch).full().detach(),)
        generator = torch.Generator().manual_seed(0)
        if isinstance(sharpness, ExactSharpness):
            session.conditions = Conditions(lambda: twice_differentiable(self.model))  # as COST evaluates it
        search = Search(self.problem, (self.batch,), held, found.host_gramian, generator)
        # So short a step that no point is left again: every step costs what a step can cost.
        return Climb(session, objective, search, held, Limits(1e-6, steps, 0.02), generator)


class WrappedLayer(nn.Module):
    """A frozen layer with a low-rank branch beside it."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.scale = 8.0 / RANK
        if isinstance(layer, nn.Conv2d):
            self.down: nn.Module = nn.Conv2d(
                layer.in_channels,
                RANK,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                bias=False,  # type: ignore[arg-type]
            )
            self.up: nn.Module = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, RANK, bias=False)
            self.up = nn.Linear(RANK, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)  # type: ignore[arg-type]
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found if self.merged else found + self.scale * self.up(self.down(x))

    @torch.no_grad()
    def merge(self) -> None:
        up, down = self.up.weight.flatten(1), self.down.weight.flatten(1)  # type: ignore[operator, union-attr]
        self.layer.weight += self.scale * (up @ down).view_as(self.layer.weight)
        self.merged = True


class Released:
    """The work of the released procedure on a copy of a case's model."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = copy.deepcopy(case.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        trunk = self.model.get_submodule("trunk")
        for name, module in list(trunk.named_modules()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                parent, _, child = name.rpartition(".")
                setattr(trunk.get_submodule(parent), child, WrappedLayer(module))
        self.model.eval()
        self.adapter = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.adapter, lr=1e-6)
        self.reference = self.losses(self.model).detach()
        self.balance = torch.ones(len(case.tasks))

    def losses(self, model: nn.Module) -> Tensor:
        return torch.stack(list(self.case.loss_fn(model, self.case.batch)[0].values()))

    def step(self) -> None:
        drift = (self.losses(self.model) - self.reference).abs().mean()
        base = self.losses(self.model)
        changes = []
        for _ in range(PROBES):
            moved = copy.deepcopy(self.model)
            with torch.no_grad():
                for module in moved.modules():
                    if isinstance(module, WrappedLayer):
                        module.merge()
                for parameter in moved.parameters():
                    noise = torch.randn_like(parameter)
                    parameter += noise * (RADIUS / noise.norm())
                changes.append(self.losses(moved))
        sharpness = (torch.stack([(c - base).abs() for c in changes]).amax(0) * self.balance).mean()
        self.optimizer.zero_grad()
        (10.0 * drift - 0.5 * sharpness).backward()
        self.optimizer.step()


def our_step(case: Case, kind: str, search: str) -> Callable[[int], None]:
    makers: dict[str, Callable[[], Sharpness]] = {
        "random": lambda: RandomSharpness(PROBES, RADIUS),
        "ascent": lambda: AscentSharpness(RADIUS),
        "exact": ExactSharpness,
    }
    train = projected if search == "projected" else penalty

    def run(steps: int) -> None:
        climb = case.climb(makers[kind](), relative=search == "projected", steps=steps)
        begin.append(time.perf_counter())
        train(climb, Aim(DominatedConflict(), None))

    begin: list[float] = []
    run.begin = begin  # type: ignore[attr-defined]
    return run


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def adapter_steps(case: Case, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds per adapter step, by mode; the modes take turns."""
    case.model.eval()
    ours = {
        f"{kind}, {search}": our_step(case, kind, search)
        for kind, search in (
            ("random", "penalty"),
            ("ascent", "penalty"),
            ("ascent", "projected"),
            ("exact", "projected"),
        )
    }
    released = Released(case)
    found: dict[str, list[float]] = {"released": [], **{name: [] for name in ours}}
    for round_ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(steps):
            released.step()
        took = {"released": time.perf_counter() - start}
        for name, run in ours.items():
            run(steps)
            took[name] = time.perf_counter() - run.begin.pop()  # type: ignore[attr-defined]
        if round_:
            for name, seconds in took.items():
                # The last point of a projected search is looked at and not stepped from: counted as a step in full.
                found[name].append(seconds / steps)
    case.model.train()
    return found


def forward_seconds(case: Case, rounds: int) -> float:
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        with torch.no_grad():
            case.problem.losses(case.batch)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def teleports(net: str, n_tasks: int, wanted: int) -> list[TeleportReport]:
    """Teleports with all defaults, at states with a dominated conflict on the way of plain training."""
    found: list[TeleportReport] = []
    for seed in range(10):
        case = Case(net, n_tasks, seed=seed)
        optimizer = torch.optim.Adam(case.model.parameters(), lr=LR)
        method = COST(None, steps_per_epoch=10)
        for _ in range(40):
            events = step(case.problem, case.draw(), optimizer, method).events
            found += [event for event in events if isinstance(event, TeleportReport)]
            if len(found) >= wanted:
                return found
    return found


def has_effect(report: TeleportReport) -> bool:
    if not report.accepted or report.mean_norm_after is None or report.cosines_after is None:
        return False
    smallest = min(range(len(report.norms_before)), key=lambda i: (report.norms_after or report.norms_before)[i])
    gone = report.cosines_after[smallest] >= 0
    return gone and report.mean_norm_after >= 1.5 * report.mean_norm_before and report.drift <= 0.02


class EveryTime(Trigger):
    """Fires whenever it is asked, so that the aim is never reached and a teleport takes all its steps."""

    def __call__(self, gramian: Tensor) -> bool:
        return True


def epochs(net: str, n_tasks: int, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of an epoch with FairGrad, without and with one teleport, from the same start.

    The two epochs take turns every few steps, and swap who goes first, so that a machine that is busy for a while is
    busy for both.
    """
    without, with_cost = [], []
    for round_ in range(rounds):
        runs = []
        for wrap in (False, True):
            case = Case(net, n_tasks, seed=round_)
            optimizer = torch.optim.Adam(case.model.parameters(), lr=LR)
            batches = [case.draw() for _ in range(4)]
            method = COST(FairGrad(), trigger=EveryTime(), steps_per_epoch=steps) if wrap else FairGrad()
            step(case.problem, batches[0], torch.optim.SGD(case.model.parameters(), lr=0.0), FairGrad())  # warm-up
            runs.append((case, optimizer, batches, method))
        seconds, made = [0.0, 0.0], [0, 0]
        for first in range(0, steps, TURN):
            for i in (0, 1) if first // TURN % 2 == 0 else (1, 0):
                case, optimizer, batches, method = runs[i]
                start = time.perf_counter()
                for k in range(first, min(first + TURN, steps)):
                    made[i] += len(step(case.problem, batches[k % 4], optimizer, method).events)
                seconds[i] += time.perf_counter() - start
        assert made == [0, 1]
        without.append(seconds[0])
        with_cost.append(seconds[1])
    return without, with_cost


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak(net: str, n_tasks: int, mode: str) -> float:
    """Rise of the peak resident set during one training step, teleport or released adapter step, in bytes."""
    case = Case(net, n_tasks)
    optimizer = torch.optim.Adam(case.model.parameters(), lr=LR)
    step(case.problem, case.batch, optimizer, FairGrad())
    if mode == "training":

        def run() -> None:
            step(case.problem, case.batch, optimizer, FairGrad())

    elif mode == "released":
        optimizer.zero_grad()
        released = Released(case)
        run = released.step
    else:
        kind = mode.removeprefix("COST, ")
        method = COST(FairGrad(), trigger=EveryTime(), max_per_epoch=None, sharpness=kind)  # type: ignore[arg-type]

        def run() -> None:
            step(case.problem, case.batch, optimizer, method)

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the warm-up has freed must not be there to be used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def memory(net: str, n_tasks: int, threads: int) -> dict[str, float]:
    found = {}
    for mode in ("training", "released", "COST, ascent", "COST, random", "COST, exact"):
        command = [sys.executable, __file__, "--nets", net, "--tasks", str(n_tasks), "--peak", mode]
        command += ["--threads", str(threads)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
        found[mode] = float(json.loads(printed))
    return found


def verdict(value: float, target: float) -> str:
    return f"target {target:.2f} {'met' if value <= target else 'MISSED'}"


def report_times(case: Case, net: str, options: argparse.Namespace) -> None:
    seconds = adapter_steps(case, options.rounds, options.steps)
    print(f"  one adapter step     {'ms':>9} {'low':>9} {'high':>9} {'/ released':>11}")
    unit = statistics.median(seconds["released"])
    for mode, values in seconds.items():
        middle, low, high = summary(values)
        kind = mode.split(",")[0]
        said = verdict(middle / unit, TARGETS[kind]) if kind in TARGETS else ""
        print(f"    {mode:<18} {middle * 1e3:9.2f} {low * 1e3:9.2f} {high * 1e3:9.2f} {middle / unit:11.2f}  {said}")
    if "teleports" in options.skip:
        return
    whole = CITYSCAPES_BATCHES * (forward_seconds(case, options.rounds) + 2 * unit)
    found = teleports(net, options.tasks, options.states)
    reached = [report for report in found if has_effect(report)]
    print(f"  whole teleport: released {whole:.1f} s for {CITYSCAPES_BATCHES} batches (computed), ours at {len(found)}")
    print(f"  states with a dominated conflict; {len(reached)} reached conflict gone, norm × 1.5, drift ≤ 2 %")
    for name, members in (("all", found), ("those that reached it", reached)):
        if members:
            middle, low, high = summary([report.seconds for report in members])
            steps = statistics.median(report.adapter_steps for report in members)
            said = verdict(middle / whole, TARGETS["teleport"])
            print(
                f"    {name:<22} {middle * 1e3:7.0f} ms ({low * 1e3:.0f} to {high * 1e3:.0f}), {steps:g} steps, "
                f"{middle / whole:.4f} of released  {said}"
            )


def report_memory(case: Case, net: str, options: argparse.Namespace) -> None:
    used = memory(net, options.tasks, options.threads)
    model = sum(p.numel() * p.element_size() for p in case.model.parameters())
    session = LoRA(rank=RANK).attach(case.problem)
    adapted = sum(case.problem.named_shared[name].numel() * 4 for name in session.delta())
    adapter = sum(t.numel() * t.element_size() for t in session.trainable)
    gradients = len(case.tasks) * sum(p.numel() * 4 for p in case.problem.shared)
    activations = max(used["training"] - gradients, 0.0)
    allowed = adapted + adapter + activations
    print(f"  memory: model {model / MiB:.1f} MiB, adapted tensors {adapted / MiB:.1f}, adapter {adapter / MiB:.2f},")
    print(f"  one activation set {activations / MiB:.1f} (rise of training less the task gradients)")
    for mode, value in used.items():
        extra = value - used["training"]
        said = ""
        if mode.startswith("COST"):
            said = f"allowed {allowed / MiB:.1f}: {'met' if extra <= allowed else 'MISSED'}"
        print(f"    {mode:<18} rise {value / MiB:8.1f} MiB, over training {extra / MiB:8.1f} MiB  {said}")


def report_epochs(net: str, options: argparse.Namespace) -> None:
    without, with_cost = epochs(net, options.tasks, options.epoch_rounds, options.epoch_steps)
    ratios = [b / a for a, b in zip(without, with_cost, strict=True)]
    middle, low, high = summary(ratios)
    print(
        f"  an epoch of {options.epoch_steps} steps of FairGrad: {statistics.median(without):.2f} s without, "
        f"{statistics.median(with_cost):.2f} s with a teleport of 20 steps: {middle:.3f} ({low:.3f} to {high:.3f})  "
        f"{verdict(middle, TARGETS['epoch'])}; the paper's own figure is 1.30 on CelebA"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--tasks", type=int, choices=[2, 3], default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="adapter steps per round and mode")
    parser.add_argument("--states", type=int, default=12, help="teleports that are timed")
    parser.add_argument("--epoch-rounds", type=int, default=3)
    parser.add_argument("--epoch-steps", type=int, default=CITYSCAPES_BATCHES)
    parser.add_argument("--skip", nargs="+", choices=["steps", "teleports", "memory", "epochs"], default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(peak(options.nets[0], options.tasks, options.peak)))
        return
    for net in options.nets:
        case = Case(net, options.tasks)
        size = sum(p.numel() for p in case.problem.shared)
        print(f"\n{net}: m = {options.tasks}, d = {size:,}, torch {torch.__version__}, {options.threads} thread(s)")
        if "steps" not in options.skip:
            report_times(case, net, options)
        if "memory" not in options.skip:
            report_memory(case, net, options)
        if "epochs" not in options.skip:
            report_epochs(net, options)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
