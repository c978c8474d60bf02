"""Hard sharing, cross-stitch, MTAN, mixtures of experts: what must hold whatever the experts are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtl_benchmarks.models import CGC, MTAN, PLE, CrossStitch, DSelectK, DSelectKGate, HardSharing, MMoE
from mtl_benchmarks.models.dselect_k import smooth_step
from mtl_benchmarks.models.gating import SoftmaxGate
from mtl_core import InvalidInputError, InvalidParameterError

TASKS = ("a", "b", "c")
Maker = Callable[[], nn.Module]


def vector_expert() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh()).double()


def image_expert() -> nn.Module:
    return nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.Tanh()).double()


def vector_heads() -> dict[str, nn.Module]:
    return {task: nn.Linear(6, k + 1).double() for k, task in enumerate(TASKS)}


def image_heads() -> dict[str, nn.Module]:
    return {task: nn.Conv2d(6, k + 1, 1).double() for k, task in enumerate(TASKS)}


def inputs(kind: str) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn((4, 5) if kind == "vectors" else (4, 5, 7, 3), generator=g, dtype=torch.float64)


EXPERTS: dict[str, Maker] = {"vectors": vector_expert, "images": image_expert}
HEADS = {"vectors": vector_heads, "images": image_heads}
both = pytest.mark.parametrize("kind", ["vectors", "images"])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def mixtures(kind: str) -> dict[str, nn.Module]:
    expert, heads = EXPERTS[kind], HEADS[kind]
    return {
        "mmoe": MMoE(expert, heads(), n_experts=3, gate_inputs=5).double(),
        "cgc": CGC(expert, heads(), gate_inputs=5, n_shared=2, n_own=2).double(),
        "dselect-k": DSelectK(expert, heads(), n_experts=4, k=2, gate_inputs=5).double(),
        "dselect-k, static": DSelectK(expert, heads(), n_experts=4, k=2).double(),
    }


@both
def test_weights_of_every_gate_sum_to_one(kind: str) -> None:
    x = inputs(kind)
    for name, model in mixtures(kind).items():
        for weights in model.gate_weights(x).values():  # type: ignore[operator]
            assert weights.shape[0] == 4
            assert bool((weights >= 0).all()), name
            torch.testing.assert_close(weights.sum(1), torch.ones(4).double())


@both
def test_equal_experts_make_the_gates_irrelevant(kind: str) -> None:
    one = EXPERTS[kind]()

    def same() -> nn.Module:
        copy = EXPERTS[kind]()
        copy.load_state_dict(one.state_dict())
        return copy

    heads = HEADS[kind]()
    x = inputs(kind)
    expected = {task: head(one(x)) for task, head in heads.items()}
    for model in (
        MMoE(same, heads, n_experts=3, gate_inputs=5).double(),
        CGC(same, heads, gate_inputs=5, n_shared=2, n_own=1).double(),
        DSelectK(same, heads, n_experts=4, k=3, gate_inputs=5).double(),
    ):
        for task, output in model(x).items():
            torch.testing.assert_close(output, expected[task])


@both
def test_one_expert_is_hard_sharing(kind: str) -> None:
    expert, heads, x = EXPERTS[kind](), HEADS[kind](), inputs(kind)
    expected = HardSharing(expert, heads)(x)
    for model in (
        MMoE(lambda: expert, heads, n_experts=1, gate_inputs=5).double(),
        CGC(lambda: expert, heads, gate_inputs=5, n_shared=1, n_own=0).double(),
        DSelectK(lambda: expert, heads, n_experts=1, k=1).double(),
    ):
        for task, output in model(x).items():
            torch.testing.assert_close(output, expected[task])


@both
def test_without_shared_experts_ple_is_separate_networks(kind: str) -> None:
    last: Maker = (lambda: nn.Linear(6, 6).double()) if kind == "vectors" else (lambda: nn.Conv2d(6, 6, 1).double())
    model = PLE([EXPERTS[kind], last], HEADS[kind](), gate_inputs=(5, 6), n_shared=0, n_own=1).double()
    assert not model.shared_parameters()
    x = inputs(kind)
    for task, output in model(x).items():
        alone = x
        for level in model.levels:
            (expert,) = level.own_experts[task]  # type: ignore[index]
            alone = expert(alone)
        torch.testing.assert_close(output, model.heads[task](alone))


def test_a_level_of_ple_by_hand() -> None:
    levels: list[Maker] = [vector_expert, lambda: nn.Linear(6, 6).double()]
    model = PLE(levels, vector_heads(), gate_inputs=(5, 6), n_shared=1, n_own=2).double()
    x = inputs("vectors")
    first, second = model.levels
    own = {task: [expert(x) for expert in first.own_experts[task]] for task in TASKS}  # type: ignore[index]
    (common,) = [expert(x) for expert in first.shared_experts]  # type: ignore[operator]

    def weighed(gate: SoftmaxGate, at: Tensor, outputs: list[Tensor]) -> Tensor:
        weights = gate.linear(at).softmax(1)
        return sum((weights[:, [k]] * output for k, output in enumerate(outputs)), torch.zeros(()))

    shared = weighed(first.shared_gate, x, [*own["a"], *own["b"], *own["c"], common])  # type: ignore[arg-type]
    (common,) = [expert(shared) for expert in second.shared_experts]  # type: ignore[operator]
    for task, output in model(x).items():
        path = weighed(first.gates[task], x, [*own[task], first.shared_experts[0](x)])  # type: ignore[index, operator]
        mine = [expert(path) for expert in second.own_experts[task]]  # type: ignore[index]
        expected = weighed(second.gates[task], path, [*mine, common])  # type: ignore[index]
        torch.testing.assert_close(output, model.heads[task](expected))


def test_ple_declares_early_experts_shared_because_they_are() -> None:
    levels: list[Maker] = [vector_expert, lambda: nn.Linear(6, 6).double()]
    model = PLE(levels, vector_heads(), gate_inputs=(5, 6), n_shared=1, n_own=1).double()
    early = next(model.levels[0].own_experts["a"].parameters())  # type: ignore[index, union-attr]
    (gradient,) = torch.autograd.grad(model(inputs("vectors"))["b"].sum(), early)
    assert gradient.abs().sum() > 0
    assert any(early is p for p in model.shared_parameters())


# --- cross-stitch and attention --------------------------------------------------------------------------------------


def stages(kind: str) -> list[nn.Module]:
    if kind == "vectors":
        return [vector_expert(), nn.Linear(6, 6).double(), nn.Tanh()]
    return [image_expert(), nn.Conv2d(6, 6, 3, padding=1, stride=2).double(), nn.Tanh()]


@both
def test_cross_stitch_by_hand_and_apart(kind: str) -> None:
    model = CrossStitch(lambda: stages(kind), HEADS[kind](), own=0.8).double()
    expected = torch.full((2, 3, 3), 0.1).double()
    expected.diagonal(dim1=1, dim2=2).fill_(0.8)
    torch.testing.assert_close(model.units.detach(), expected)
    nn.init.normal_(model.units)
    x = inputs(kind)
    values = {task: model.towers[task][0](x) for task in TASKS}  # type: ignore[index]
    for s in (1, 2):
        mixed = {
            task: sum((model.units[s - 1, i, j] * values[other] for j, other in enumerate(TASKS)), torch.zeros(()))
            for i, task in enumerate(TASKS)
        }
        values = {task: model.towers[task][s](mixed[task]) for task in TASKS}  # type: ignore[index]
    for task, output in model(x).items():
        torch.testing.assert_close(output, model.heads[task](values[task]))
    with torch.no_grad():
        model.units.copy_(torch.eye(3).double().expand(2, 3, 3))
    for task, output in model(x).items():  # units that let nothing across leave separate networks
        torch.testing.assert_close(output, model.heads[task](nn.Sequential(*model.towers[task])(x)))  # type: ignore[misc]


def test_one_sum_for_all_gives_equal_towers_equal_values() -> None:
    first = stages("vectors")

    def same() -> list[nn.Module]:
        found = nn.Sequential(*stages("vectors"))
        found.load_state_dict(nn.Sequential(*first).state_dict())
        return list(found)

    model = CrossStitch(same, vector_heads(), mixing="sum").double()
    assert torch.equal(model.units, torch.ones(2, 3).double())
    x = inputs("vectors")
    expected = first[2](3 * first[1](3 * first[0](x)))
    for value in model.features(x).values():
        torch.testing.assert_close(value, expected)


def test_towers_of_different_lengths_are_refused() -> None:
    lengths = iter((2, 2, 3))
    with pytest.raises(InvalidInputError, match=r"equally many stages at each call, got \[2, 3\]"):
        CrossStitch(lambda: [nn.Linear(2, 2) for _ in range(next(lengths))], vector_heads())


@both
def test_mtan_by_hand(kind: str) -> None:
    trunk = stages(kind)[:2]
    change: nn.Module = nn.Linear(6, 6) if kind == "vectors" else nn.Conv2d(6, 6, 3, padding=1, stride=2)
    model = MTAN(trunk, [change], channels=(6, 6), heads=HEADS[kind](), kind=kind)  # type: ignore[arg-type]
    model.double().eval()
    x = inputs(kind)
    p0 = trunk[0](x)
    p1 = trunk[1](p0)
    for task, output in model(x).items():
        first, second = model.attention[task]  # type: ignore[misc]
        a0 = first(p0) * p0
        a1 = second(torch.cat([p1, change(a0)], 1)) * p1
        torch.testing.assert_close(output, model.heads[task](a1))
        weights = first(p0).detach()
        assert 0 < float(weights.min()) <= float(weights.max()) < 1


def test_mtan_with_masks_of_one_is_hard_sharing() -> None:
    trunk = stages("vectors")[:2]
    model = MTAN(trunk, [nn.Linear(6, 6)], channels=(6, 6), heads=vector_heads(), kind="vectors").double()
    for masks in model.attention.values():
        for mask in masks.children():
            last = mask[4]  # type: ignore[index]
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, 50.0)
    x = inputs("vectors")
    expected = HardSharing(nn.Sequential(*trunk), dict(model.heads.items()))(x)
    for task, output in model(x).items():
        torch.testing.assert_close(output, expected[task])


def test_mtan_with_too_few_transitions_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="got 0, 2 and 2"):
        MTAN(stages("vectors")[:2], [], channels=(6, 6), heads=vector_heads(), kind="vectors")


# --- DSelect-k -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.3, 1.0, 7.0])
def test_smooth_step(gamma: float) -> None:
    half = gamma / 2
    t = torch.tensor([-2 * half, -half, 0.0, half, 2 * half], dtype=torch.float64, requires_grad=True)
    value = smooth_step(t, gamma)
    assert value.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    (slope,) = torch.autograd.grad(value.sum(), t)
    torch.testing.assert_close(slope, torch.tensor([0, 0, 1.5 / gamma, 0, 0], dtype=torch.float64))
    near = torch.linspace(-0.6 * gamma, 0.6 * gamma, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: smooth_step(t, gamma), near)


def test_selectors_by_hand() -> None:
    gate = DSelectKGate(4, k=1).double()
    with torch.no_grad():
        gate.static_codes.copy_(torch.tensor([[0.1, -0.2]]))
    low, high = smooth_step(torch.tensor([0.1, -0.2]).double()).tolist()
    expected = [(1 - low) * (1 - high), low * (1 - high), (1 - low) * high, low * high]
    torch.testing.assert_close(gate(torch.zeros(1, 5))[0], torch.tensor(expected).double())


def test_a_decided_code_is_one_expert() -> None:
    for chosen in range(4):
        gate = DSelectKGate(4, k=1)
        with torch.no_grad():
            gate.static_codes.copy_(torch.tensor([[chosen & 1, chosen >> 1]]) * 2.0 - 1.0)
        assert gate(torch.zeros(1, 5))[0].tolist() == [float(i == chosen) for i in range(4)]
        assert gate.regulariser(torch.zeros(1, 5)).abs() < 1e-5


@pytest.mark.parametrize(("n", "inputs_"), [(8, None), (8, 5), (6, None)])
def test_after_training_a_task_uses_k_experts(n: int, inputs_: int | None) -> None:
    k = 2
    gate = DSelectKGate(n, k=k, gate_inputs=inputs_).double()
    x = inputs("vectors")
    target = torch.zeros(n).double()
    target[torch.tensor([1, 4])] = 0.5
    before = int((gate(x) > 0).sum(1).min())
    assert before == n  # at the start every expert is reached
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        ((gate(x) - target).square().sum() + 0.1 * gate.regulariser(x)).backward()
        optimizer.step()
    weights = gate(x).detach()
    assert bool(((weights > 0).sum(1) <= k).all())  # exactly zero, not small
    torch.testing.assert_close(weights.sum(1), torch.ones(4).double())


def test_codes_beyond_the_last_expert_take_weight_and_are_penalised() -> None:
    gate = DSelectKGate(3, k=1).double()
    x = torch.zeros(1, 5)
    assert gate(x).sum().item() < 0.8  # a quarter of it is with the fourth code, which is nobody's
    value = gate.regulariser(x)
    chosen = gate.selectors(x)
    entropy = -(chosen * (chosen + 1e-6).log()).sum()
    torch.testing.assert_close(value, entropy + 1 / chosen.sum())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DSelectKGate(2, k=3), "at most the number of experts, got 3 for 2"),
        (lambda: DSelectKGate(2, k=1, gamma=0.0), "`gamma` must be positive"),
        (lambda: MMoE(vector_expert, vector_heads(), n_experts=0, gate_inputs=5), "`n_experts`"),
        (lambda: CGC(vector_expert, vector_heads(), gate_inputs=5, n_shared=0, n_own=0), "at least one expert"),
    ],
)
def test_bad_numbers_are_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidParameterError, match=text):
        make()


def test_ple_needs_an_input_width_per_level() -> None:
    with pytest.raises(InvalidInputError, match="got 1 for 2 levels"):
        PLE([vector_expert, vector_expert], vector_heads(), gate_inputs=(5,))
