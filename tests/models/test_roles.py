"""Roles by rule, in models that vlds does not know."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from vlds.models.methods.host import find_modules
from vlds.models.roles import find_roles, unclaimed
from vlds.schema import Role, TargetModules

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


def test_patterns_stand_for_all_layers() -> None:
    table = find_roles(shapes("llama", DEEP), linear_init_std=0.02)
    assert table.paths["attn_out"] == ("layers.*.self_attn.o_proj",)
    assert table.paths["ffn_in"] == ("layers.*.mlp.gate_proj", "layers.*.mlp.up_proj")
    assert table.linear_init_std == 0.02


def test_a_decoder_that_looks_at_an_encoder() -> None:
    module = shapes("bart", BART).get_decoder()  # type: ignore[operator]
    table = find_roles(module)
    assert unclaimed(module) == []
    assert table.paths["cross_attn_q"] == ("layers.*.encoder_attn.q_proj",)
    assert table.paths["attn_q"] == ("layers.*.self_attn.q_proj",)
    assert table.paths["cross_attn_out"] == ("layers.*.encoder_attn.out_proj",)
    assert table.paths["ffn_out"] == ("layers.*.fc2",)


def test_a_class_tells_attention_where_names_do_not() -> None:
    fields = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    table = find_roles(shapes("t5", fields | {"vocab_size": 30}).get_decoder())  # type: ignore[operator]
    assert table.paths["attn_q"] == ("block.*.layer.*.SelfAttention.q",)
    assert table.paths["cross_attn_out"] == ("block.*.layer.*.EncDecAttention.o",)
    assert table.paths["ffn_in"] == ("block.*.layer.*.DenseReluDense.wi",)


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


def test_wrapped_layers_have_the_roles_of_what_is_around_them() -> None:
    """As Gemma 4's, which clip what goes in and out."""
    attention = layer(q_proj=layer(linear=linear()), o_proj=layer(linear=linear()))
    module = layer(layers=nn.ModuleList([layer(self_attn=attention, linear=linear())]))
    paths = find_roles(module).paths
    assert paths["attn_q"] == ("layers.*.self_attn.q_proj.linear",)
    assert paths["attn_out"] == ("layers.*.self_attn.o_proj.linear",)
    assert unclaimed(module) == ["layers.*.linear"]


def test_a_pattern_catches_nothing_of_another_role() -> None:
    assert unclaimed(made_up()) == ["blocks.*.mixer.attn.kv_down"]
    table = find_roles(made_up())
    assert table.paths["attn_out"] == ("blocks.0.mixer.attn.out_proj",)
    assert table.paths["attn_q"] == ("blocks.*.mixer.attn.q_proj",)
    assert table.paths["ffn_in"] == ("blocks.*.fc1",)
    assert table.paths["norm"] == ("final",)


EXPERTS = {**DEEP, "head_dim": 8, "num_experts": 2, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("make", "role", "message"),
    [
        (made_up, "attn_v", r"'attn_v'.*no role of blocks\.\*\.mixer\.attn\.kv_down"),
        (
            partial(shapes, "qwen3_moe", EXPERTS),
            "ffn_out",
            r"'ffn_out'.*its roles: attn_k.*experts in one tensor",
        ),
        (partial(shapes, "phi3", DEEP), "attn_q", r"'attn_q'.*choose attn_qkv"),
    ],
    ids=["layers without a role", "experts in one tensor", "fused"],
)
def test_an_error_says_why_a_role_is_missing(
    make: Callable[[], nn.Module], role: Role, message: str
) -> None:
    module = make()
    with pytest.raises(ValueError, match=message):
        find_modules(module, find_roles(module), role)
