"""SegNet and its kin: parameter counts of the released networks, and the wiring against a computation of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtl_benchmarks.models import (
    CITYSCAPES_OUTPUTS,
    NYUV2_OUTPUTS,
    DenseOutput,
    SegNetCrossStitch,
    SegNetMTAN,
    SegNetSplit,
)
from mtl_benchmarks.models.declaration import count
from mtl_core import InvalidInputError, InvalidParameterError, Problem
from mtl_teleport import LoRA

OUTPUTS = {"nyu": NYUV2_OUTPUTS, "city": CITYSCAPES_OUTPUTS}
WIDTH = 1 / 16
State = Mapping[str, Tensor]


@pytest.fixture
def unfilled() -> Iterator[None]:
    """Models of full size without their numbers, which take seconds to draw."""
    with torch.device("meta"):
        yield


def sizes(model: nn.Module) -> tuple[int, int]:
    total = count(model.parameters())
    return total, count(model.shared_parameters())  # type: ignore[operator]


# --- counts, as in the released networks ---------------------------------------------------------------------------


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize(
    ("data", "variant", "total"),
    [
        ("nyu", "standard", 25_055_185),
        ("city", "standard", 25_017_672),
        ("nyu", "wide", 43_934_161),
        ("city", "wide", 43_896_648),
        ("nyu", "deep", 50_807_761),
        ("city", "deep", 50_770_248),
    ],
)
def test_counts_of_the_split_network(data: str, variant: str, total: int) -> None:
    model = SegNetSplit(OUTPUTS[data], variant=variant)  # type: ignore[arg-type]
    heads = {"nyu": 111_889, "city": 74_376}[data]
    assert sizes(model) == (total, total - heads)
    if variant == "standard":
        assert sizes(model)[1] == 24_943_296
        assert count(model.last_shared_parameters()) == 37_056


@pytest.mark.usefixtures("unfilled")
def test_counts_of_mtan() -> None:
    nyu = SegNetMTAN()
    assert sizes(nyu) == (44_229_073, 44_117_184)
    assert sizes(SegNetMTAN(attention="task")) == (44_229_073, 35_163_456)
    # The released network of CAGrad and IMGrad has one uncertainty per task besides.
    assert count(nyu.parameters()) + 3 == 44_229_076
    city = SegNetMTAN(CITYSCAPES_OUTPUTS)
    assert sizes(city) == (41_206_984, 41_132_608)
    assert sizes(SegNetMTAN(CITYSCAPES_OUTPUTS, attention="task"))[1] == 35_163_456
    groups = {name: count(getattr(nyu, name).parameters()) for name, _ in nyu.named_children()}
    assert groups == {
        "encoder_block": 3_913_728,
        "decoder_block": 3_947_520,
        "conv_block_enc": 10_809_408,
        "conv_block_dec": 6_272_640,
        "encoder_att": 5_506_944,
        "decoder_att": 3_446_784,
        "encoder_block_att": 6_272_640,
        "decoder_block_att": 3_947_520,
        "pred": 111_889,
    }
    assert [count(nyu.task_parameters(task)) for task in nyu.tasks] == [37_773, 36_993, 37_123]
    assert [count(city.task_parameters(task)) for task in city.tasks] == [37_383, 36_993]
    assert count(city.encoder_att.parameters()) == 3_671_296
    assert count(city.decoder_att.parameters()) == 2_297_856
    assert (len(list(nyu.parameters())), len(nyu.shared_parameters())) == (396, 384)


@pytest.mark.usefixtures("unfilled")
def test_counts_of_cross_stitch() -> None:
    # The released network has one uncertainty per task besides.
    assert sizes(SegNetCrossStitch())[0] + 3 == 74_941_807
    assert sizes(SegNetCrossStitch(CITYSCAPES_OUTPUTS))[0] + 2 == 49_960_988


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize(
    ("task", "plain", "attended"),
    [("semantic", 24_981_069, 38_185_805), ("depth", 24_980_289, 38_185_025), ("normal", 24_980_419, 38_185_155)],
)
def test_counts_of_single_tasks(task: str, plain: int, attended: int) -> None:
    outputs = {task: NYUV2_OUTPUTS[task]}
    assert sizes(SegNetSplit(outputs))[0] == plain
    assert sizes(SegNetMTAN(outputs))[0] == attended


@pytest.mark.usefixtures("unfilled")
def test_single_task_of_cityscapes() -> None:
    assert sizes(SegNetSplit({"semantic": CITYSCAPES_OUTPUTS["semantic"]}))[0] == 24_980_679


def test_low_rank_on_the_convolutions_that_cost_moves() -> None:
    model = SegNetMTAN()
    names = [
        name for name, p in model.named_parameters() if p.ndim == 4 and p.shape[-1] == 3 and not name.startswith("pred")
    ]
    assert len(names) == 36
    problem = Problem(model, lambda *_: {}, shared=model.shared_parameters(), tasks=model.tasks)
    session = LoRA(rank=5, targets=names).attach(problem, generator=torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in session.trainable) == 502_855


# --- wiring ----------------------------------------------------------------------------------------------------------


def randomised(model: nn.Module) -> nn.Module:
    """In double precision and evaluation mode; normalisation is not the identity and biases are not 0."""
    g = torch.Generator().manual_seed(1)
    model.double().eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=g))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=g))
        elif "stitch" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=g))
    return model


def images() -> Tensor:
    return torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def convolved(state: State, name: str, x: Tensor) -> Tensor:
    return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding="same")


def normalised(state: State, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / (var + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]


def block(state: State, name: str, x: Tensor) -> Tensor:
    """Every block there is under a name, one after the other."""
    k = 0
    while f"{name}.{k}.weight" in state:
        x = normalised(state, f"{name}.{k + 1}", convolved(state, f"{name}.{k}", x)).clamp(min=0)
        k += 3
    while f"{name}.{k}.0.weight" in state:
        x = block(state, f"{name}.{k}", x)
        k += 1
    return x


def mask(state: State, name: str, x: Tensor) -> Tensor:
    hidden = normalised(state, f"{name}.1", convolved(state, f"{name}.0", x)).clamp(min=0)
    return 1 / (1 + (-normalised(state, f"{name}.4", convolved(state, f"{name}.3", hidden))).exp())


def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over 2 × 2 pixels, and an image that is 1 where they were and 0 elsewhere."""
    b, c, h, w = x.shape
    windows = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 2, 4, 3, 5).flatten(4)
    best = windows.argmax(-1)
    chosen = functional.one_hot(best, 4).unflatten(-1, (2, 2)).permute(0, 1, 2, 4, 3, 5).reshape(b, c, h, w)
    return windows.amax(-1), chosen.to(x)


def put_back(x: Tensor, chosen: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) * chosen


def enlarged(x: Tensor) -> Tensor:
    """Twice as large, linearly between pixels, corner on corner."""

    def matrix(n: int) -> Tensor:
        found = torch.zeros(2 * n, n, dtype=x.dtype)
        for i in range(2 * n):
            at = i * (n - 1) / (2 * n - 1)
            low = min(int(at), max(n - 2, 0))
            found[i, low] = 1 - (at - low)
            if n > 1:
                found[i, low + 1] = at - low
        return found

    return torch.einsum("ih,jw,bchw->bcij", matrix(x.shape[2]), matrix(x.shape[3]), x)


def predicted(state: State, task: str, x: Tensor) -> Tensor:
    raw = convolved(state, f"pred.{task}.1", convolved(state, f"pred.{task}.0", x))
    if task == "semantic":
        return raw - raw.exp().sum(1, keepdim=True).log()
    return raw / raw.square().sum(1, keepdim=True).sqrt() if task == "normal" else raw


def trunk(state: State, x: Tensor) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {key: [] for key in ("u", "v", "chosen", "U", "D")}
    for s in range(5):
        u = block(state, f"encoder_block.{s}", x)
        v = block(state, f"conv_block_enc.{s}", u)
        x, chosen = pooled(v)
        for key, value in (("u", u), ("v", v), ("chosen", chosen)):
            found[key].append(value)
    found["p"] = [x]
    for s in (4, 3, 2, 1, 0):
        unpooled = put_back(x, found["chosen"][s])
        x = block(state, f"conv_block_dec.{s}", block(state, f"decoder_block.{s}", unpooled))
        found["U"].insert(0, unpooled)
        found["D"].insert(0, x)
    return found


@pytest.mark.parametrize("variant", ["standard", "wide", "deep"])
@torch.no_grad()
def test_split_network_by_hand(variant: str) -> None:
    model = randomised(SegNetSplit(width=WIDTH, variant=variant))  # type: ignore[arg-type]
    state = model.state_dict()
    features = trunk(state, images())["D"][0]
    for task, output in model(images()).items():
        torch.testing.assert_close(output, predicted(state, task, features))


@torch.no_grad()
def test_mtan_by_hand() -> None:
    model = randomised(SegNetMTAN(width=WIDTH))
    state = model.state_dict()
    shared = trunk(state, images())
    for task, output in model(images()).items():
        e = torch.empty(0)
        for s in range(5):
            u = shared["u"][s] if s == 0 else torch.cat([shared["u"][s], e], 1)
            attended = mask(state, f"encoder_att.{task}.{s}", u) * shared["v"][s]
            e, _ = pooled(block(state, f"encoder_block_att.{s}", attended))
        for s in (4, 3, 2, 1, 0):
            b = block(state, f"decoder_block_att.{s}", enlarged(e))
            e = mask(state, f"decoder_att.{task}.{s}", torch.cat([shared["U"][s], b], 1)) * shared["D"][s]
        torch.testing.assert_close(output, predicted(state, task, e))


@torch.no_grad()
def test_cross_stitch_by_hand() -> None:
    model = randomised(SegNetCrossStitch(width=WIDTH))
    state, tasks = model.state_dict(), list(NYUV2_OUTPUTS)
    x = dict.fromkeys(tasks, images())
    chosen: dict[str, list[Tensor]] = {task: [] for task in tasks}
    for s in range(5):
        if s:
            x = dict.fromkeys(tasks, sum(state["encoder_stitch"][s - 1, k] * x[t] for k, t in enumerate(tasks)))
        for task in tasks:
            x[task], places = pooled(block(state, f"encoder_block.{task}.{s}", x[task]))
            chosen[task].append(places)
    for d in range(5):
        mixed = sum(state["decoder_stitch"][d, k] * x[t] for k, t in enumerate(tasks))
        for task in tasks:
            x[task] = block(state, f"decoder_block.{task}.{4 - d}", put_back(mixed, chosen[task][4 - d]))
    for task, output in model(images()).items():
        torch.testing.assert_close(output, predicted(state, task, x[task]))


def test_cross_stitch_has_two_and_three_blocks_per_stage() -> None:
    model = SegNetCrossStitch(width=WIDTH)
    for part in (model.encoder_block, model.decoder_block):
        for stages in part.values():
            assert [len(stage) for stage in stages.children()] == [2, 2, 3, 3, 3]  # type: ignore[arg-type]
    assert torch.equal(model.encoder_stitch, torch.ones(4, 3))
    assert torch.equal(model.decoder_stitch, torch.ones(5, 3))


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = SegNetSplit(width=1 / 4)
    weight = model.conv_block_enc[4][0][0].weight.detach()  # type: ignore[index]
    fan = 128 * 9 + 128 * 9
    assert abs(weight.std().item() / (2 / fan) ** 0.5 - 1) < 0.02
    assert weight.abs().max() > 3 * weight.std()  # normal, not uniform
    uniform = SegNetCrossStitch(width=1 / 4).encoder_block["depth"][4][0][0].weight.detach()  # type: ignore[index]
    assert uniform.abs().max() <= (6 / fan) ** 0.5
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.detach().any()


def test_a_task_does_not_reach_anothers_attention() -> None:
    model = SegNetMTAN(width=1 / 32)
    loss = model(images().float())["depth"].sum()
    others = [p for task in ("semantic", "normal") for p in model.encoder_att[task].parameters()]
    assert all(g is None for g in torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True))
    own = list(model.encoder_att["depth"].parameters())
    assert all(g is not None for g in torch.autograd.grad(loss, own, allow_unused=True))


# --- outputs and bad input -------------------------------------------------------------------------------------------


def test_outputs() -> None:
    raw = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])[..., None, None].requires_grad_()
    unit = DenseOutput(3, "unit_length").activate(raw)
    torch.testing.assert_close(unit[:, :, 0, 0], torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(unit.sum(), raw, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), raw)
    assert bool(torch.isfinite(gradient).all())
    assert bool(torch.isfinite(second).all())
    assert torch.equal(DenseOutput(3).activate(raw), raw)
    torch.testing.assert_close(DenseOutput(3, "log_softmax").activate(raw).exp().sum(1), torch.ones(2, 1, 1))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"divisible by 32, got \(1, 3, 40, 64\)"):
        SegNetSplit(width=WIDTH)(torch.zeros(1, 3, 40, 64))
    with pytest.raises(InvalidInputError, match=r"got \(3, 32, 64\)"):
        SegNetCrossStitch(width=WIDTH)(torch.zeros(3, 32, 64))
    with pytest.raises(InvalidParameterError, match=r"whole number of channels, got 0\.3"):
        SegNetMTAN(width=0.3)
    with pytest.raises(InvalidParameterError, match="`activation` must be one of"):
        DenseOutput(3, "softmax")  # type: ignore[arg-type]
