"""Prefixes are keys and values like any others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.models import backbone, batch, build
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.backbones.attention import EXTENDED_ATTENTION
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, PrefixTuning
from vlds.schema import Decoding

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])
TASKS_OF_ROWS = (0, 1, 0, 2)


def tuned(family: type[Backbone], folder: Path, **fields: object) -> JointModel:
    """A model with prefixes of each task and adapters, in float64."""
    methods = {
        "prefixes": PrefixTuning(length=3, hidden_dim=4, sharing="multiple"),
        "adapters": Adapter(reduction=4, sharing="multiple"),
    }
    return build(backbone(family, folder), methods, dtype=torch.float64).eval()


def heads(tensor: Tensor) -> Tensor:
    """(b, l, 16) -> (b, 4, l, 4)."""
    return tensor.unflatten(-1, (4, 4)).transpose(1, 2)


@torch.no_grad()
@FAMILIES
def test_attention_over_prefixes_and_states(family: type[Backbone], tmp_path: Path) -> None:
    """The encoder's first attention against its definition, prefixes written out row by row."""
    model = tuned(family, tmp_path)
    model.encode(batch(TASKS_OF_ROWS))
    made = model.backbone.extensions["prefixes"].network()  # (tasks, 3, 12 pairs of 16)
    states = torch.randn(4, 5, 16, dtype=torch.float64)
    if family is T5:
        attention = model.backbone.encoder.block[0].layer[0].SelfAttention
        bias = attention.compute_bias(5, 5, device=states.device)
        q, k, v, out, scale = attention.q, attention.k, attention.v, attention.o, 1.0
        found = attention(states, position_bias=bias)[0]
    else:
        attention = model.backbone.model.encoder.layers[0].self_attn
        bias = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
        q, k, v, scale = attention.q_proj, attention.k_proj, attention.v_proj, 4**-0.5
        out, found = attention.out_proj, attention(states)[0]
    rows = made[torch.tensor(TASKS_OF_ROWS)]
    keys = torch.cat([heads(rows[..., :16]), heads(k(states))], dim=2)
    values = torch.cat([heads(rows[..., 16:32]), heads(v(states))], dim=2)
    scores = heads(q(states)) @ keys.mT * scale + F.pad(bias, (3, 0))
    expected = out((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
    assert (found - expected).abs().max() < 1e-12


@torch.no_grad()
@FAMILIES
def test_fused_attention_computes_the_same(family: type[Backbone], tmp_path: Path) -> None:
    model = tuned(family, tmp_path)
    expected = model.logits(batch(TASKS_OF_ROWS))
    model.backbone.set_attn_implementation(EXTENDED_ATTENTION)
    assert (model.logits(batch(TASKS_OF_ROWS)) - expected).abs().max() < 1e-9


@pytest.mark.sampled(2)
@torch.no_grad()
@FAMILIES
@pytest.mark.parametrize("num_beams", [1, 2])
def test_answers_with_a_cache_are_those_without(
    num_beams: int, family: type[Backbone], tmp_path: Path
) -> None:
    """Every token of an answer is the likeliest one after those before it (greedy), and beams keep
    to their own rows' prefixes: an example alone has the answer that it has among others."""
    model, examples = tuned(family, tmp_path), batch(TASKS_OF_ROWS)
    decoding = Decoding(num_beams=num_beams, max_new_tokens=6)
    ids = model.written(examples, *model.encode(examples), decoding).ids
    if num_beams == 1:
        states, mask = model.encode(examples)
        logits = model.vocabulary_logits(model.decode(states, mask, ids[:, :-1]))
        config = model.backbone.config
        over = (ids[:, :-1] == config.eos_token_id).cumsum(1) > (config.eos_token_id in ids[:, 0])
        assert torch.equal(logits.argmax(-1)[~over], ids[:, 1:][~over])
    together = model.generate(examples, decoding)[0]
    for number in range(4):
        alone = examples.select(torch.tensor([number]))
        assert model.generate(alone, decoding)[0] == [together[number]]
