"""Loading, the joint encoder beside Hugging Face's own, roles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.toys.models import backbone, hf_config, saved_backbone
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.backbones.attention import CPU_ATTENTION, EXTENDED_ATTENTION, set_attention
from vlds.models.methods.host import pattern_of
from vlds.recipe.build import build as built

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])


@FAMILIES
def test_order_of_visual_tokens_has_no_meaning_of_its_own(
    family: type[Backbone], tmp_path: Path
) -> None:
    """No position reaches them: permuting visual tokens permutes their states and leaves the
    text's."""
    source = backbone(family, tmp_path)
    model = source.load(60, torch.float64).model.eval()
    ids, text = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    visual, seen = torch.randn(1, 5, 16).double(), torch.ones(1, 5, dtype=torch.bool)
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.no_grad():
        whole = torch.cat([text, seen], 1)
        states = source.encode(model, ids, visual, whole, None)
        permuted = source.encode(model, ids, visual[:, order], whole, None)
        two = torch.cat([text, seen & (torch.arange(5) < 2)], 1)
        hidden = source.encode(model, ids, visual, two, None)
        fewer = source.encode(model, ids, visual[:, :2], whole[:, :5], None)
    assert torch.allclose(permuted[:, :3], states[:, :3], atol=1e-12)
    assert torch.allclose(permuted[:, 3:], states[:, 3:][:, order], atol=1e-12)
    assert torch.allclose(hidden[:, :5], fewer, atol=1e-12)


@FAMILIES
def test_dropout_is_everywhere_or_nowhere(family: type[Backbone], tmp_path: Path) -> None:
    for rate in (0.0, 0.5):
        source = backbone(family, tmp_path, dropout=rate)
        model = source.load(60, torch.float32).model.train()
        rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        config = model.config.to_dict()
        names = [n for n in config if n.endswith("dropout") or n == "dropout_rate"]
        rates += [config[n] for n in names if n != "classifier_dropout"]
        assert set(rates) == {rate}


@FAMILIES
def test_every_role_is_played(family: type[Backbone], tmp_path: Path) -> None:
    source = backbone(family, tmp_path)
    model = source.load(60, torch.float32).model
    modules = dict(model.named_modules())
    for role, paths in source.target_modules.paths.items():
        wanted = {
            path
            for path in modules
            if any(pattern_of(pattern).fullmatch(path) for pattern in paths)
        }
        kinds = {type(modules[path]).__name__ for path in wanted}
        others = {
            "norm": {"LayerNorm" if family is Bart else "T5LayerNorm"},
            "decoder_positions": {"BartLearnedPositionalEmbedding"},
            # T5's residual connection carries what a norm reads.
            "attn_residual": {"Linear" if family is Bart else "T5LayerNorm"},
            "ffn_residual": {"Linear" if family is Bart else "T5LayerNorm"},
            "layer": {"BartEncoderLayer", "BartDecoderLayer"} if family is Bart else {"T5Block"},
        }
        assert kinds == others.get(role, {"Linear"})
    norms = {p for p, m in modules.items() if "Norm" in type(m).__name__}
    found = source.target_modules.paths["norm"]
    assert norms == {p for p in norms if any(pattern_of(pattern).fullmatch(p) for pattern in found)}


def test_gated_feed_forward_layers_have_roles_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({**hf_config(T5), "feed_forward_proj": "gated-gelu"}), encoding="utf-8"
    )
    source = T5(config=str(file))
    model = source.load(260, torch.float32).model
    patterns = [pattern_of(path) for path in source.target_modules.paths["ffn_in"]]
    found = [
        p for p, _ in model.named_modules() if any(pattern.fullmatch(p) for pattern in patterns)
    ]
    assert len(found) == 8


@FAMILIES
def test_new_rows_and_kept_rows(family: type[Backbone], tmp_path: Path) -> None:
    source = saved_backbone(family, tmp_path, vocabulary=50)
    old = family.model_class.from_pretrained(tmp_path).get_input_embeddings().weight
    for size in (50, 58, 45):
        loaded = source.load(size, torch.float32)
        table = loaded.model.get_input_embeddings().weight
        assert len(table) == size
        assert loaded.model.get_output_embeddings().weight is table
        kept = min(size, 50)
        assert torch.equal(table[:kept], old[:kept])
        assert list(loaded.source_rows.values()) == ([] if size == 50 else [kept])


def test_unknown_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give exactly one of them"):
        T5()
    with pytest.raises(ValueError, match="give exactly one of them"):
        T5(path="t5-base", config="x.json")
    with pytest.raises(ValueError, match=r"no such file: .*nowhere\.json"):
        T5(config=str(tmp_path / "nowhere.json")).load(60, torch.float32)
    with pytest.raises(ValueError, match="is the config of a bart model, not of T5"):
        T5(config=saved_config(Bart, tmp_path)).load(60, torch.float32)
    with pytest.raises(ValueError, match="needs the tokenizer's folder or file"):
        T5(config=saved_config(T5, tmp_path)).load_tokenizer()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="path: cannot read the model's config"):
        T5(path=str(empty)).load(60, torch.float32)
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere; check"):
        T5(path=str(tmp_path / "nowhere")).load(60, torch.float32)


def saved_config(family: type[Backbone], folder: Path) -> str:
    """A config.json."""
    file = folder / f"{family.__name__}.json"
    file.write_text(json.dumps(hf_config(family)), encoding="utf-8")
    return str(file)


def test_the_token_table_of_a_random_t5_has_the_asked_spread(tmp_path: Path) -> None:
    plain = backbone(T5, tmp_path)
    small = replace(plain, embedding_std=0.1).load(900, torch.float32).model
    assert small.shared.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert small.lm_head.weight is small.shared.weight
    assert plain.load(900, torch.float32).model.shared.weight.std().item() > 0.9


@pytest.mark.parametrize(
    ("fields", "cure"),
    [
        ({"path": "t5-base", "embedding_std": 0.1}, "got 0.1; give it only with `config`"),
        ({"config": "c.json", "embedding_std": 0.0}, "got 0.0; give a number above 0"),
    ],
)
def test_a_spread_that_cannot_be(fields: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValueError, match=f"embedding_std: {cure}"):
        built(T5, fields)


# Choosing the attention function of a whole model.


class OldT5(T5.model_class):
    """T5 as in transformers below 5.20, where its stacks keep the function they were made with."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        self.config._attn_implementation_internal = attn_implementation


@pytest.mark.parametrize("family", [T5, Bart])
def test_every_layer_changes(family: type[Backbone], tmp_path: Path) -> None:
    model = backbone(family, tmp_path).load(60, torch.float32).model
    for name in (EXTENDED_ATTENTION, "sdpa", CPU_ATTENTION):
        set_attention(model, name)
        layers = [module for module in model.modules() if hasattr(module, "layer_idx")]
        assert len(layers) >= 4
        assert {layer.config._attn_implementation for layer in layers} == {name}


def test_a_library_that_leaves_layers_as_they_were_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = backbone(T5, tmp_path)
    monkeypatch.setattr(T5, "model_class", OldT5)
    with pytest.raises(ValueError, match="all layers of OldT5 use another attention function; ins"):
        source.load(60, torch.float32)
