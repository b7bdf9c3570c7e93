"""What methods meet in causal models alone. `tests/methods/test_kinds.py` has all methods."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from tests.toys.causal import batch, build, kind_in, save_model
from vlds.models.kinds.causal import Causal
from vlds.models.methods import HyperPELT, LoRA, Method, PrefixTuning
from vlds.models.methods.host import NoteInput

FUSED = ("attn_qkv", "attn_out", "ffn_in", "ffn_out")


def test_a_fused_projection(saved: Path) -> None:
    chosen = kind_in(saved / "phi3")
    fused = LoRA(rank=2, roles=list(FUSED), sharing="multiple", train_biases=False)  # type: ignore[arg-type]
    model = build(chosen, {"lora": fused})
    assert any("qkv_proj.extensions.lora" in name for name in model.trained_by)
    with pytest.raises(ValueError, match=r"methods\.lora: .*'attn_q'.*choose attn_qkv"):
        build(chosen, {"lora": LoRA(rank=2)})


@pytest.mark.parametrize(
    ("kind", "method", "reason"),
    [
        ("gemma2", PrefixTuning(), r"computes these by itself \(eager\); .*use LoRA or Adapter"),
        ("gemma2", HyperPELT(), r"computes these by itself .*HyperPELT's prefix_length: 0"),
        ("phi3", HyperPELT(), "prefix_length: got 20, and no layer .*'attn_k'.*prefix_length: 0"),
        ("phi3", PrefixTuning(), "'attn_k'.*values come from one layer"),
    ],
)
def test_prefixes_that_attention_would_not_read_are_refused(
    kind: str, method: Method, reason: str, saved: Path
) -> None:
    chosen = kind_in(saved / kind)
    usual = build(chosen, {}).backbone.config._attn_implementation
    if kind == "gemma2" and usual != "eager":
        pytest.skip(f"this version of transformers computes Gemma 2's attention by {usual}")
    with pytest.raises(ValueError, match=f"methods.mine: .*{reason}"):
        build(chosen, {"mine": method})


@pytest.mark.sampled(2)
@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt"])
def test_prefixes_are_keys_and_values_that_stand_before_all_others(kind: str, saved: Path) -> None:
    """Hugging Face's model computes the same from a cache that holds them, with positions that
    count from the first token of its input."""
    chosen = kind_in(saved / kind)
    method = PrefixTuning(length=3, hidden_dim=None)
    model = build(chosen, {"prefixes": method}, torch.float64).eval()
    plain = build(chosen, {}, torch.float64).eval()
    examples = batch(chosen).select(torch.tensor([0]))
    sequences = model.sequences(examples, model.visual_tokens(examples))
    length, head_dim = sequences.embeds.shape[1], 8
    assert sequences.mask.all()
    pieces = model.backbone.extensions["prefixes"].pieces.value
    heads = [piece.unflatten(-1, (-1, head_dim)).transpose(1, 2) for piece in pieces]
    cache = DynamicCache(list(zip(heads[::2], heads[1::2], strict=True)))
    # Versions of transformers differ in the cache's name.
    parameters = inspect.signature(type(plain.backbone).forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"
    expected = plain.backbone(
        inputs_embeds=sequences.embeds,
        attention_mask=torch.ones(1, method.length + length, dtype=torch.long),
        position_ids=torch.arange(length)[None],
        **{name: cache},
    ).logits
    found = model.backbone(inputs_embeds=sequences.embeds, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-10)
    assert not torch.allclose(found, plain.backbone(inputs_embeds=sequences.embeds).logits)


def test_what_adapters_beside_layers_read_is_let_go(llama: Causal) -> None:
    """Of a gated layer's two inputs, which are one, one is kept until the adapter has run."""
    model = build(llama, {"pelt": HyperPELT(reduction=4)})
    model(batch(llama), torch.ones(4)).loss.backward()
    notes = [module for module in model.modules() if isinstance(module, NoteInput)]
    assert len(notes) == 2
    assert all(note.noted.value is None for note in notes)


def test_visual_tokens_may_be_narrower_than_layers(tmp_path: Path) -> None:
    save_model(tmp_path / "opt", "opt", word_embed_proj_dim=8)
    chosen = kind_in(tmp_path / "opt")
    model = build(chosen, {"pelt": HyperPELT(reduction=4, prefix_length=2)})
    model(batch(chosen), torch.ones(4)).loss.backward()
    look = model.backbone.extensions["pelt"].look
    assert look.in_features == 8
    assert look.weight.grad.any()
