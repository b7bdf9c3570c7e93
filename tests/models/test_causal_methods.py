"""Methods in a causal model: what trains, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.toys.causal import batch, build, kind_in
from vlds.methods import (
    IA3,
    Adapter,
    BitFit,
    Compacter,
    DecoderPromptTuning,
    Full,
    Hyperformer,
    LoRA,
    LowRankAdapter,
    Method,
    PrefixTuning,
    PromptTuning,
)
from vlds.methods.extended import zero_at_first
from vlds.schema import Decoding

PLAIN = ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_in", "ffn_out")
FUSED = ("attn_qkv", "attn_out", "ffn_in", "ffn_out")
METHODS: dict[str, Method] = {
    "single": Adapter(reduction=4),
    "multiple": Adapter(reduction=4, sharing="multiple"),
    "up": Adapter(reduction=4, sharing="half_shared_up", layer_norm_before=True),
    "down": Adapter(reduction=4, sharing="half_shared_down", init="identity"),
    "compacter": Compacter(reduction=4),
    "low_rank": LowRankAdapter(reduction=4, sharing="multiple"),
    "hyper": Hyperformer(task_dim=6, hidden_dim=5, projected_dim=4, reduction=4),
    "lora": LoRA(rank=2, sharing="multiple", train_biases=False, roles=list(PLAIN)),  # type: ignore[arg-type]
    "ia3": IA3(sharing="multiple"),
    "bitfit": BitFit(add_biases=True),
    "prompts": PromptTuning(length=3),
    "full": Full(),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("llama", name) for name in METHODS),
        # Whose feed-forward layers see all tokens of a batch in one line.
        *(("opt", name) for name in ("multiple", "compacter", "hyper", "lora", "ia3")),
    ],
)
def test_every_weight_of_a_method_gets_a_gradient(kind: str, name: str, saved: Path) -> None:
    chosen = kind_in(saved / kind)
    model = build(chosen, {name: METHODS[name]}).eval()
    model(batch(chosen), torch.ones(4)).loss.backward()
    mine = {n for n, part in model.trained_by.items() if part == name}
    assert mine
    named = dict(model.named_parameters())
    reached = {n for n in mine if named[n].grad is not None and named[n].grad.any()}
    # Softmax does not see a constant in all keys.
    aside = {n for n in mine if re.search(r"k_proj\.(bias|extensions)", n) and "bias" in n}
    assert mine - reached <= aside | zero_at_first(model), sorted(mine - reached)[:3]
    if getattr(METHODS[name], "sharing", "") == "multiple":
        grad = next(named[n].grad for n in mine if n in reached and "extensions" in n)
        assert grad is not None
        assert len(grad) == 3
        assert all(part.any() for part in grad)


@pytest.mark.parametrize(
    ("name", "num_beams"),
    [
        *((name, 1) for name in METHODS),
        *((name, 3) for name in ("multiple", "hyper", "ia3", "prompts")),
    ],
)
def test_methods_act_in_generation(name: str, num_beams: int, saved: Path) -> None:
    decoding = Decoding(max_new_tokens=3, num_beams=num_beams)
    chosen = kind_in(saved / "llama")
    model = build(chosen, {name: METHODS[name]}, torch.float64).eval()
    answers = model.answer(batch(chosen, evaluation=True), decoding)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if model.trained_by.get(parameter_name) == name:
                parameter.normal_(std=0.7)
    changed = model.answer(batch(chosen, evaluation=True), decoding)
    assert all(a.confidence != b.confidence for a, b in zip(answers, changed, strict=True))


def test_a_row_with_prompts_does_not_depend_on_its_batch(saved: Path) -> None:
    chosen = kind_in(saved / "llama")
    model = build(chosen, {"prompts": PromptTuning(length=3, hidden_dim=None)}).eval()
    examples = batch(chosen)
    together = model.token_nll(examples).sum(1)
    alone = [model.token_nll(examples.select(torch.tensor([row]))).sum() for row in range(4)]
    assert torch.allclose(torch.stack(alone), together, rtol=1e-5)


def test_a_fused_projection(saved: Path) -> None:
    chosen = kind_in(saved / "phi3")
    fused = LoRA(rank=2, roles=list(FUSED), sharing="multiple", train_biases=False)  # type: ignore[arg-type]
    model = build(chosen, {"lora": fused})
    assert any("qkv_proj.extensions.lora" in name for name in model.trained_by)
    with pytest.raises(ValueError, match=r"methods\.lora: .*'attn_q'.*choose attn_qkv"):
        build(chosen, {"lora": LoRA(rank=2)})


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (PrefixTuning(length=3), "cross_attn_k.*causal model has no cross-attention"),
        (PrefixTuning(length=3, cross_attention=False), "puts keys and values into attention"),
        (DecoderPromptTuning(length=3), "decoder_positions.*choose other roles, or"),
        (BitFit(), "have no bias"),
    ],
)
def test_methods_that_cannot_work_are_refused(method: Method, reason: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=rf"methods\.mine: .*{reason}"):
        build(kind_in(saved / "llama"), {"mine": method})
