"""Layers of other classes than nn.Linear itself: extended, they still compute as they did."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toys.method_cases import METHOD_CASES, PAIRS, is_idle, methods_of_case
from tests.toys.models import TASKS, backbone, batch, build, shake
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.backbones.base import LoadedBackbone
from vlds.models.methods import IA3, Adapter, BitFit, LoRA, Peft
from vlds.models.methods.context import BatchContext
from vlds.models.methods.host import ExtendedLinear, Host
from vlds.schema import TargetModules


class PackedLinear(nn.Linear):
    """A layer whose weight is 4-bit codes, two a byte, and a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 7
        codes = (weight / scale).round().to(torch.int8).flatten() + 8
        self.weight = nn.Parameter(codes[::2] + 16 * (codes[1::2] - 8), requires_grad=False)
        self.scale, self.bias = nn.Parameter(scale, requires_grad=False), linear.bias

    def unpacked(self) -> Tensor:
        """(out, in) floats."""
        codes = torch.stack([self.weight & 15, 8 + (self.weight >> 4)], -1) - 8
        return codes.view(self.out_features, self.in_features) * self.scale

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.unpacked(), self.bias)


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace all linear layers but the head."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path != "lm_head":
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, make(module))


@dataclass(frozen=True, kw_only=True)
class PackedT5(T5):
    """A T5 that is quantised when it is loaded."""

    def load(self, tokenizer_len: int, dtype: torch.dtype) -> LoadedBackbone:
        loaded = super().load(tokenizer_len, dtype)
        replace_linears(loaded.model, PackedLinear)
        return loaded


@dataclass(frozen=True, kw_only=True)
class PackedBart(Bart):
    """A Bart that is quantised when it is loaded."""

    def load(self, tokenizer_len: int, dtype: torch.dtype) -> LoadedBackbone:
        loaded = super().load(tokenizer_len, dtype)
        replace_linears(loaded.model, PackedLinear)
        return loaded


def packed(family: type[Backbone], folder: Path) -> Backbone:
    """The quantised one of a family, with random weights."""
    plain = backbone(family, folder)
    kind = PackedT5 if family is T5 else PackedBart
    return kind(config=plain.config, extra_tokens=0, visual_tokens=12)


@pytest.mark.sampled(9)
@PAIRS
def test_every_method_trains_beside_a_quantised_backbone(
    name: str, family: type[Backbone], tmp_path: Path
) -> None:
    """In the type of the model's states, with gradients, and with the quantised outputs."""
    source = packed(family, tmp_path)
    if name == "Full":
        with pytest.raises(ValueError, match=r"Full trains every weight, and .* quantised ones"):
            build(source, methods_of_case(name))
        return
    if isinstance(methods_of_case(name)["method"], Peft) and name != "Peft norms":
        with pytest.raises(ValueError, match="is quantised, and peft's layers need its weights"):
            build(source, methods_of_case(name))
        return
    model = build(source, methods_of_case(name), dtype=torch.bfloat16).eval()
    loss = model(batch(), torch.ones(4)).loss
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert loss.isfinite()
    assert {p.dtype for p in trained.values()} == {torch.bfloat16}
    assert all((p.grad is None) == is_idle(n) for n, p in trained.items())
    layers = [m for m in model.backbone.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == 32
    assert all(layer.weight.dtype == torch.int8 for layer in layers)
    extended = [n for n, m in model.named_modules() if isinstance(m, ExtendedLinear)]
    if any(not n.endswith("lm_head") for n in extended):  # Bart's other layers have biases
        assert any(isinstance(layer, ExtendedLinear) for layer in layers)


@pytest.mark.parametrize("name", ["LoRA bare", "IA3", "Compacter", "Hyperformer", "PromptTuning"])
def test_folding(name: str, tmp_path: Path) -> None:
    """Nothing is folded into packed weights; what becomes a plainer method does."""
    method = METHOD_CASES[name].method
    model = build(packed(Bart, tmp_path), {"method": method}).eval()
    if not METHOD_CASES[name].merged:
        with pytest.raises(ValueError, match="PackedLinear does not compute a plain product"):
            method.merge("method", model.backbone, TASKS)
        return
    shake(model)
    with torch.no_grad():
        before = model.logits(batch())
        method.merge("method", model.backbone, TASKS)
        after = model.logits(batch())
    assert (after - before).abs().max() < 1e-6 * before.abs().max()


def holder(linear: nn.Module) -> nn.Module:
    """A model of one layer under two names."""
    model = nn.Module()
    model.first = model.again = linear
    return model


TARGETS = TargetModules({"attn_q": ("first",), "ffn_out": ("again",), "attn_out": ("first",)})


def host_of(model: nn.Module, targets: TargetModules = TARGETS) -> Host:
    """A model to attach the method "m" to."""
    return Host("m", model, targets, TASKS, BatchContext())


def test_the_layer_stays_the_same_object() -> None:
    """With its parameters, names, hooks and class."""
    layer = PackedLinear(nn.Linear(16, 16))
    model = holder(layer)
    names, calls = list(model.state_dict()), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    inputs = torch.randn(3, 16)
    expected = layer(inputs)
    LoRA(rank=2, roles=["attn_q"]).attach(host_of(model))
    assert model.first is model.again is layer
    assert isinstance(layer, ExtendedLinear)
    assert isinstance(layer, PackedLinear)
    assert torch.equal(layer(inputs), expected)
    assert len(calls) == 2
    assert [n for n in model.state_dict() if "extensions" not in n] == names


def test_what_plays_a_role_and_cannot_be_extended() -> None:
    with pytest.raises(ValueError, match="first plays the role 'attn_q' and is a Conv1d; methods"):
        host_of(holder(nn.Conv1d(3, 3, 1))).linears("attn_q")
    peft = pytest.importorskip("peft")
    wrapped = peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules=["first"]), holder(nn.Linear(4, 4))
    )
    with pytest.raises(ValueError, match="first plays the role 'attn_q' and is a Linear; methods"):
        host_of(wrapped).linears("attn_q")
    patched = holder(nn.Linear(4, 4))
    patched.first.forward = lambda input: input
    with pytest.raises(ValueError, match="its forward was replaced on the object itself"):
        host_of(patched).linears("attn_q")


@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_layers_of_bitsandbytes(kind: str, tmp_path: Path) -> None:
    """They run on CPUs too."""
    bnb = pytest.importorskip("bitsandbytes")

    def quantised(linear: nn.Linear) -> nn.Module:
        options = {"has_fp16_weights": False} if kind == "Linear8bitLt" else {"quant_type": "nf4"}
        layer = getattr(bnb.nn, kind)(
            linear.in_features, linear.out_features, bias=linear.bias is not None, **options
        )
        layer.load_state_dict(linear.state_dict())
        return layer.to("cpu").requires_grad_(False)

    model = backbone(Bart, tmp_path, dropout=0.0).load(60, torch.float32).model.eval()
    replace_linears(model, quantised)
    model.requires_grad_(False)
    ids = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 5]])}
    before = model(**ids).logits
    targets = Bart(path="-").target_modules
    trained = []
    for number, method in enumerate((LoRA(rank=2), IA3(), BitFit(), Adapter(reduction=4))):
        host = Host(f"m{number}", model, targets, TASKS[:1], BatchContext())
        for parameter in method.attach(host):
            trained.append(parameter.requires_grad_(True))
        if not isinstance(method, Adapter):
            assert torch.allclose(model(**ids).logits, before, atol=1e-6)
    layer = model.model.encoder.layers[0].self_attn.v_proj
    assert isinstance(layer, ExtendedLinear)
    assert isinstance(layer, getattr(bnb.nn, kind))
    assert not layer.weight.is_floating_point()
    assert {p.dtype for p in trained} == {torch.float32}
    after = model(**ids).logits
    assert torch.equal(copy.deepcopy(model)(**ids).logits, after)
    after.sum().backward()
    assert all(p.grad is not None for p in trained)
    with pytest.raises(ValueError, match=f"{kind} does not compute a plain product"):
        LoRA(rank=2).merge("m0", model, TASKS)
