from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_core import DuplicateModuleError, InvalidInputError, InvalidParameterError, NoMatchError, Problem
from mtl_core.extension import collect_problem
from mtl_teleport import COST, LoRA, PeftAdapter, PeftLoRA


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.Dropout(), nn.Linear(8, 2)
    )


def _problem(net: nn.Sequential) -> tuple[Problem, Tensor]:
    net[4].bias.requires_grad_(False)  # a frozen parameter stays frozen
    problem = Problem(net, lambda m, x: (m(x) - 1).square().mean(0), shared=[net[0], net[4]], tasks=("a", "b"))
    return problem, torch.randn(8, 1, 8, 8)


def _configs() -> list[tuple[str, Any]]:
    peft = pytest.importorskip("peft")
    return [
        ("LoRA", None),
        ("LoHa", peft.LoHaConfig(r=3, alpha=3)),
        ("LoKr", peft.LoKrConfig(r=3, alpha=3)),
        ("OFT", peft.OFTConfig(oft_block_size=4, r=0)),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_teleport_keeps_everything_but_the_values() -> None:
    for name, config in _configs():
        net = _net()
        problem, x = _problem(net)
        adapter = PeftLoRA(rank=2) if config is None else PeftAdapter(config, targets="4" if name == "OFT" else None)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        gradients = collect_problem(problem, problem.losses(x))
        hooks = [net[0].register_forward_hook(lambda *_: None)]
        modules, parameters = [id(m) for m in net.modules()], [id(p) for p in net.parameters()]
        names, storage = [n for n, _ in net.named_parameters()], [p.data_ptr() for p in net.parameters()]
        flags, training = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
        attributes, state, random = set(vars(net)), copy.deepcopy(net.state_dict()), torch.get_rng_state()

        report = COST(adapter=adapter, max_steps=4).teleport(problem, [x], gradients, lr=1e-2)

        assert report.accepted, (name, report.reason)
        assert report.drift <= 0.02
        assert [id(m) for m in net.modules()] == modules
        assert [id(p) for p in net.parameters()] == parameters
        assert [n for n, _ in net.named_parameters()] == names
        assert [p.data_ptr() for p in net.parameters()] == storage
        assert [p.requires_grad for p in net.parameters()] == flags
        assert [m.training for m in net.modules()] == training
        assert set(vars(net)) == attributes, "no peft_config stays behind"
        assert len(net[0]._forward_hooks) == len(hooks)
        changed = {n for n, p in net.named_parameters() if not torch.equal(p, state[n])}
        assert changed == ({"4.weight"} if name == "OFT" else {"0.weight", "4.weight"})
        assert all(torch.equal(b, state[n]) for n, b in net.named_buffers())
        assert not any(id(p) in {id(q) for q in optimizer.state} for p in net.parameters())
        torch.set_rng_state(random)


def test_merged_losses_are_the_adapted_ones() -> None:
    net = _net().eval()
    problem, x = _problem(net)
    session = PeftLoRA(rank=2).attach(problem, batch=x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(session.evaluate(x).values, _problem(_net().eval())[0].losses(x).values)
    with torch.no_grad():
        for tensor in session.trainable:
            tensor.add_(0.1)
    adapted = session.evaluate(x).values.detach()
    session.merge()
    torch.testing.assert_close(problem.losses(x).values.detach(), adapted, rtol=1e-4, atol=1e-5)


def test_initial_values_come_from_the_generator() -> None:
    found = []
    for seed in (0, 0, 1):
        problem, x = _problem(_net())
        with PeftLoRA().attach(problem, batch=x, generator=torch.Generator().manual_seed(seed)) as session:
            found.append(torch.cat([t.detach().flatten() for t in session.trainable]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_an_adapter_that_is_no_no_op_is_refused_and_taken_off() -> None:
    """Orthogonal fine-tuning of a convolution changes the model as soon as it is attached."""
    peft = pytest.importorskip("peft")
    net = _net()
    problem, x = _problem(net)
    modules = [id(m) for m in net.modules()]
    with pytest.raises(InvalidInputError, match="must start as a no-op"):
        PeftAdapter(peft.OFTConfig(oft_block_size=3, r=0), targets="0").attach(problem, batch=x)
    assert [id(m) for m in net.modules()] == modules
    assert not hasattr(net, "peft_config")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(1, 4, 3),
        nn.GRU(3, 3),
        nn.MultiheadAttention(4, 2),
    ],
)
def test_unsupported_layers_are_named(layer: nn.Module) -> None:
    problem = Problem(layer, lambda m, x: m(x).mean().view(1), shared=layer, tasks=("a",))
    with pytest.raises(NoMatchError, match=rf"got .*{type(layer).__name__}.*Use mtl_teleport\.LoRA"):
        PeftLoRA().attach(problem, batch=torch.zeros(1))


def test_a_pattern_without_a_match_lists_what_there_is() -> None:
    problem, x = _problem(_net())
    with pytest.raises(NoMatchError, match=r"'encoder' must match.*Supported: 0, 4"):
        PeftLoRA(targets="encoder").attach(problem, batch=x)


def test_a_batch_is_needed() -> None:
    problem, _ = _problem(_net())
    with pytest.raises(InvalidInputError, match="`batch` must be given"):
        PeftLoRA().attach(problem)


def test_a_module_registered_twice_is_refused() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, layer)
    problem = Problem(net, lambda m, x: m(x).square().mean(0), shared=net, tasks=("a", "b", "c"))
    with pytest.raises(DuplicateModuleError):
        PeftLoRA().attach(problem, batch=torch.ones(2, 3))


def test_something_else_than_a_configuration() -> None:
    with pytest.raises(InvalidInputError, match="`config` must be a"):
        PeftAdapter({"r": 4})


def test_bad_rank() -> None:
    with pytest.raises(InvalidParameterError, match="rank"):
        PeftLoRA(rank=0)


class TestWhatPeftCannotDo:
    """One error in our words, with the layers, flags and values as before; they were PEFT's own, of seven types."""

    @staticmethod
    def _configs() -> dict[str, Any]:
        peft = pytest.importorskip("peft")
        return {
            "an initial value for other dtypes": peft.LoraConfig(init_lora_weights="pissa", target_modules=[]),
            "state that layers share": peft.VeraConfig(r=2, target_modules=[]),
            "a size that does not divide": peft.RoadConfig(target_modules=[]),
            "a forward pass with more arguments": peft.PolyConfig(target_modules=[]),
            "a merge without a bias": peft.LoraConfig(lora_bias=True, target_modules=[]),
        }

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("name", _configs())
    def test_it_is_told_in_our_words(self, name: str) -> None:
        config = self._configs()[name]
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 2)).double()
        problem, x = Problem(model, _two_losses, shared=model, tasks=("a", "b")), torch.randn(8, 4).double()
        modules, before = [id(m) for m in model.modules()], copy.deepcopy(model.state_dict())
        says = rf"`config` must be one by which PEFT can.*got {type(config).__name__}: .*mtl_teleport\.LoRA"
        with pytest.raises(InvalidInputError, match=says):
            PeftAdapter(config).attach(problem, batch=x).delta()
        if name != "a merge without a bias":  # of which the session is still open
            assert [id(m) for m in model.modules()] == modules
            for key, value in model.state_dict().items():
                assert torch.equal(value, before[key])
        assert all(p.requires_grad for p in problem.shared)

    @pytest.mark.parametrize("kind", ["the model itself", "a computed weight"])
    def test_a_layer_that_is_in_nobody_or_computes_its_weight(self, kind: str) -> None:
        model: nn.Module = nn.Linear(4, 2)
        if kind == "a computed weight":
            model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(model))
        problem = Problem(model, _two_losses, shared=model, tasks=("a", "b"))
        with pytest.raises(NoMatchError, match=r"within the model and with a parameter as its weight, got"):
            PeftLoRA().attach(problem, batch=torch.randn(8, 4))


class TestAModelWithAnAdapterOfItsOwn:
    @staticmethod
    def _wrapped(where: str) -> tuple[Problem, Tensor]:
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        trunk: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
        head = nn.Linear(6, 2)
        config = peft.LoraConfig(r=2, target_modules=["0", "2"])
        if where == "inside":
            model: nn.Module = nn.Sequential(peft.get_peft_model(trunk, config), head)
        elif where == "injected":
            model = nn.Sequential(peft.inject_adapter_in_model(config, trunk), head)
            del trunk.peft_config  # what is left are the layers
        else:
            model = peft.get_peft_model(nn.Sequential(*trunk, head), config)
        shared = model if where == "around" else model[0]  # type: ignore[index]
        return Problem(model, _two_losses, shared=shared, tasks=("a", "b")), torch.randn(8, 4)

    @pytest.mark.parametrize("where", ["around", "inside", "injected"])
    def test_it_is_refused_with_the_way_out(self, where: str) -> None:
        problem, x = self._wrapped(where)
        modules = [id(m) for m in problem.model.modules()]
        with pytest.raises(InvalidInputError, match=r"no PEFT adapter of its own.*mtl_teleport\.LoRA\(\)"):
            PeftLoRA().attach(problem, batch=x)
        assert [id(m) for m in problem.model.modules()] == modules

    @pytest.mark.parametrize("where", ["around", "inside", "injected"])
    def test_the_first_way_out(self, where: str) -> None:
        problem, x = self._wrapped(where)
        gradients = collect_problem(problem, problem.losses(x))
        report = COST(adapter=LoRA(rank=2), max_steps=3).teleport(problem, [x], gradients, lr=1e-2)
        assert report.accepted
        assert report.length > 0

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("where", ["around", "inside"])
    def test_the_second_way_out(self, where: str) -> None:
        problem, x = self._wrapped(where)
        wrapped: Any = problem.model if where == "around" else problem.model[0]  # type: ignore[index]
        merged = wrapped.merge_and_unload().requires_grad_(True)
        model = merged if where == "around" else nn.Sequential(merged, problem.model[1])  # type: ignore[index]
        shared = model if where == "around" else model[0]
        again = Problem(model, _two_losses, shared=shared, tasks=("a", "b"))
        gradients = collect_problem(again, again.losses(x))
        report = COST(adapter=PeftLoRA(rank=2), max_steps=3).teleport(again, [x], gradients, lr=1e-2)
        assert report.accepted
        assert report.length > 0


def _two_losses(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return torch.stack([y[:, 0].square().mean(), (y[:, 1] - 1).square().mean()])
