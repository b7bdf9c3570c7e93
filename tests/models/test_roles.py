"""Roles by rule, in models that vlds does not know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from tests.toys.method_cases import FAMILY_CASES, METHOD_CASES
from tests.toys.models import backbone, build
from vlds.models.backbones import T5, Bart
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Full, Method
from vlds.models.methods.host import Host, LinearExtension, find_modules
from vlds.models.roles import find_roles, optimizer_rules, unclaimed
from vlds.models.vision import ConvNet
from vlds.schema import STACKED, UNDECAYED, OptimizerRules, TargetModules

SIZES = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 30, "num_attention_heads": 2}
DEEP = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1, "pad_token_id": 0}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": DEEP,
    "qwen2": DEEP,
    "phi3": DEEP,
    "opt": {**DEEP, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "gemma3_text": {**DEEP, "head_dim": 8},
    "starcoder2": DEEP,
    "gpt_neox": DEEP,
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "vocab_size": 30},
}
BART = {
    "vocab_size": 30, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}  # fmt: skip
PLAIN = {"attn_q": 1, "attn_k": 1, "attn_v": 1, "attn_out": 1, "ffn_in": 2, "ffn_out": 1}
ONE_IN = {**PLAIN, "ffn_in": 1}
FUSED = {"attn_qkv": 1, "attn_out": 1, "ffn_in": 1, "ffn_out": 1}
PER_LAYER = {
    "llama": PLAIN, "qwen2": PLAIN, "phi3": FUSED, "opt": ONE_IN, "gemma3_text": PLAIN,
    "starcoder2": ONE_IN, "gpt_neox": FUSED, "gptj": ONE_IN,
}  # fmt: skip
NORMS = {"llama": 5, "qwen2": 5, "phi3": 5, "opt": 5, "gemma3_text": 13, "starcoder2": 5}


def shapes(kind: str, fields: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(AutoConfig.for_model(kind, **fields))
    return model


def count(module: nn.Module, table: TargetModules) -> dict[str, int]:
    """Modules that methods find for each role of a table."""
    return {role: len(find_modules(module, table, role)) for role in table.paths}


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_layer_of_a_causal_model_has_its_role(kind: str) -> None:
    module = shapes(kind, CAUSAL[kind])
    assert unclaimed(module) == []
    found = count(module, find_roles(module))
    norms = found.pop("norm")
    assert found == {role: 2 * number for role, number in PER_LAYER[kind].items()}
    assert norms == NORMS.get(kind, norms)


def test_a_decoder_that_looks_at_an_encoder() -> None:
    module = shapes("bart", BART).get_decoder()  # type: ignore[operator]
    table = find_roles(module)
    assert unclaimed(module) == []
    assert table.paths["cross_attn_q"] == ("layers.*.encoder_attn.q_proj",)
    assert table.paths["attn_q"] == ("layers.*.self_attn.q_proj",)
    assert table.paths["cross_attn_out"] == ("layers.*.encoder_attn.out_proj",)
    assert table.paths["ffn_out"] == ("layers.*.fc2",)


def layer(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def linear() -> nn.Linear:
    return nn.Linear(4, 4, device="meta")


def made_up() -> nn.Module:
    """Two layers: the first has attention; the second has a convolution's projections instead, one
    of which is called as the first one's output projection."""
    attention = layer(q_proj=linear(), kv_down=linear(), out_proj=linear())
    first = layer(mixer=layer(attn=attention), fc1=linear(), fc2=linear())
    second = layer(mixer=layer(attn=layer(out_proj=nn.Identity())), fc1=linear(), fc2=linear())
    return layer(blocks=nn.ModuleList([first, second]), head=linear(), final=nn.LayerNorm(4))


def test_a_pattern_catches_nothing_of_another_role() -> None:
    assert unclaimed(made_up()) == ["blocks.*.mixer.attn.kv_down"]
    table = find_roles(made_up())
    assert table.paths["attn_out"] == ("blocks.0.mixer.attn.out_proj",)
    assert table.paths["attn_q"] == ("blocks.*.mixer.attn.q_proj",)
    assert table.paths["ffn_in"] == ("blocks.*.fc1",)
    assert table.paths["norm"] == ("final",)


# Which weights of each method decay, and which belong to a single task.

PLACE = re.compile(r".*extensions\.method\.(stacks\.\w+\.)?(generators\.\w+\.)?")
"""The path before a tensor's name inside the method's module."""


def added(model: JointModel) -> dict[str, int]:
    """Name of a tensor inside the method's module -> 1 if it decays, else 0."""
    return {
        PLACE.sub("", name): int(rule.decays)
        for name, rule in optimizer_rules(model).items()
        if PLACE.match(name)
    }


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("family", "name"), FAMILY_CASES)
def test_what_decays_of_each_method(name: str, family: str, tmp_path: Path) -> None:
    case = METHOD_CASES[name]
    source = backbone({"T5": T5, "Bart": Bart}[family], tmp_path)
    found = added(build(source, {"method": case.method}))
    if (family, name) == ("Bart", "BitFit new"):  # BART has biases in all its layers
        assert found == {}
    elif case.decayed is not None:
        expected = dict.fromkeys(case.decayed.split(), 1)
        assert found == expected | dict.fromkeys(case.undecayed.split(), 0)


def test_norms_of_a_vision_encoder_are_known_by_their_class(tmp_path: Path) -> None:
    vision = ConvNet(image_size=12, grid=3, widths=[4, 4], add_mean=True)
    model = build(backbone(T5, tmp_path), {"full": Full(part="vision")}, vision=vision)
    rules = optimizer_rules(model)
    assert {name: int(rule.decays) for name, rule in rules.items() if "vision." in name} == {
        "vision.stages.0.weight": 1, "vision.stages.1.weight": 0, "vision.stages.1.bias": 0,
        "vision.stages.3.weight": 1, "vision.stages.4.weight": 0, "vision.stages.4.bias": 0,
        "vision.mean_projection.weight": 1, "vision.mean_projection.bias": 0,
    }  # fmt: skip


class Undeclared(LinearExtension):
    """PyTorch layers, a scalar parameter, and a list of scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(3), nn.Linear(3, 3)
        self.shift = nn.Parameter(torch.zeros(1))
        self.shifts = nn.ParameterList([torch.zeros(1)])


class Half(Undeclared):
    """The scalar has a rule."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": STACKED}


class Declared(Half):
    """All of them have a rule."""

    optimizer_rules: ClassVar[OptimizerRules] = {"shift": STACKED, "shifts.*": UNDECAYED}


@dataclass(frozen=True, kw_only=True)
class Own(Method):
    """A user's method."""

    module: type[LinearExtension]

    def attach(self, host: Host) -> list[nn.Parameter]:
        path, linear = next(iter(host.linears("ffn_out").items()))
        host.extend_linear(linear, self.module())
        return list(host.model.get_submodule(f"{path}.extensions.{host.name}").parameters())


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            Undeclared,
            r"Undeclared declares no optimizer rule for 'shift' \(backbone.*\); name it in",
        ),
        (Half, r"ParameterList declares no optimizer rule for '0' \(backbone.*method.shifts.0\)"),
    ],
)
def test_a_method_must_declare_its_own_tensors(
    module: type[LinearExtension], said: str, tmp_path: Path
) -> None:
    model = build(backbone(T5, tmp_path), {"method": Own(module=module)})
    with pytest.raises(ValueError, match=said):
        optimizer_rules(model)


def test_layers_of_a_method_have_the_rules_of_their_kind(tmp_path: Path) -> None:
    model = build(backbone(T5, tmp_path), {"method": Own(module=Declared)})
    assert added(model) == {
        "norm.weight": 0, "norm.bias": 0, "layer.weight": 1, "layer.bias": 0, "shift": 1,
        "shifts.0": 0,
    }  # fmt: skip
