"""Heads that are not the token table (T5 v1.1, FLAN-T5): kept, resized, counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Tokenizer

from tests.toys.models import DIM, GRID, TASKS, batch, hf_config, save_own_head
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.backbones.base import has_own_head
from vlds.models.build import ModelSetup, build_model
from vlds.models.methods import IA3, LoRA
from vlds.models.vision import StoredFeatures
from vlds.schema import Decoding

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])
TABLES = {T5: "shared.weight", Bart: "model.shared.weight"}


def source_in(family: type[Backbone], folder: Path) -> Backbone:
    """The backbone of a folder."""
    return family(path=str(folder), extra_tokens=0, visual_tokens=12)


@torch.no_grad()
def logits_of(source: Backbone, model: Any) -> Tensor:
    """Logits of two texts, computed as JointModel does, without pictures."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    none = torch.zeros(2, 0, 16, dtype=model.dtype)
    states = source.encode(model, ids, none, ids > 0, None)
    decoded = model.get_decoder()(
        input_ids=ids[:, :3], encoder_hidden_states=states, encoder_attention_mask=ids > 0
    )
    return source.vocabulary_logits(model, decoded.last_hidden_state)


@torch.no_grad()
def logits_of_hugging_face(model: Any) -> Tensor:
    """The same by transformers alone."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    logits: Tensor = model.double().eval()(input_ids=ids, decoder_input_ids=ids[:, :3]).logits
    return logits


@FAMILIES
@pytest.mark.parametrize("size", [40, 52, 30])
def test_old_rows_give_hugging_faces_logits(
    family: type[Backbone], size: int, tmp_path: Path
) -> None:
    original = save_own_head(family, tmp_path)
    source = source_in(family, tmp_path)
    loaded = source.load(size, torch.float64)
    kept = min(size, 40)
    state = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    expected = logits_of_hugging_face(original)[..., :kept]
    found = logits_of(source, loaded.model.eval())
    assert found.shape[-1] == size
    assert (found[..., :kept] - expected).abs().max() < 1e-12 * expected.abs().max()
    tables = {TABLES[family], "lm_head.weight"}
    assert dict(loaded.source_rows) == ({} if size == 40 else dict.fromkeys(tables, kept))
    assert tables <= loaded.source_names if size == 40 else not tables & loaded.source_names
    for name in tables:
        assert torch.equal(loaded.model.get_parameter(name)[:kept].float(), state[name][:kept])


def test_new_tokens_cannot_outshout_trained_ones(tmp_path: Path) -> None:
    """Each has at most the mean probability of the old ones, whatever the state."""
    save_own_head(T5, tmp_path)
    source = source_in(T5, tmp_path)
    model = source.load(52, torch.float32).model
    assert model.shared.weight[40:].std().item() == pytest.approx(1.0, rel=0.15)
    for scale in (0.1, 1.0, 30.0):
        states = scale * torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
        shares = source.vocabulary_logits(model, states).softmax(-1)
        assert (shares[:, 40:] <= shares[:, :40].mean(1, keepdim=True) + 1e-6).all()


@pytest.mark.parametrize(
    "said",
    [
        {"tie_word_embeddings": False},
        # As transformers 5 writes it.
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        {},
    ],
)
def test_the_tensors_decide_whatever_the_config_says(said: dict[str, Any], tmp_path: Path) -> None:
    save_own_head(T5, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(fields | said))
    source = source_in(T5, tmp_path)
    model = source.load(52, torch.float64).model.eval()
    expected = logits_of_hugging_face(T5.model_class.from_pretrained(tmp_path))
    assert (
        logits_of(source, model)[..., :40] - expected
    ).abs().max() < 1e-12 * expected.abs().max()
    assert shapes_of(model) == shapes_on_meta(source)
    model.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not again["tie_word_embeddings"]
    assert again["scale_decoder_outputs"] == (said == {})


def shapes_of(model: Any) -> dict[str, torch.Size]:
    """Of all parameters."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def shapes_on_meta(source: Backbone) -> dict[str, torch.Size]:
    """The same, as counting sees them."""
    with torch.device("meta"):
        return shapes_of(source.load(52, torch.float32).model)


@FAMILIES
@pytest.mark.parametrize("in_file", ["equal", "absent"])
def test_a_head_that_is_the_token_table_stays_tied(
    family: type[Backbone], in_file: str, tmp_path: Path
) -> None:
    """Some files contain the table twice, and some configs say untied without having a head."""
    save_own_head(family, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    if in_file == "equal":
        tensors["lm_head.weight"] = tensors[TABLES[family]].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = source_in(family, tmp_path)
    loaded = source.load(52, torch.float32)
    assert not has_own_head(loaded.model)
    assert loaded.source_rows == {TABLES[family]: 40}
    assert loaded.model.config.tie_word_embeddings
    assert shapes_of(loaded.model) == shapes_on_meta(source)


@FAMILIES
def test_a_token_table_of_one_stack_is_refused(family: type[Backbone], tmp_path: Path) -> None:
    """transformers keeps it until the tables are resized."""
    save_own_head(family, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = TABLES[family].replace("shared", "decoder.embed_tokens")
    tensors[name] = tensors[TABLES[family]] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"path: .* has a token table for the decoder alone; .*"):
        source_in(family, tmp_path).load(52, torch.float32)


@FAMILIES
@pytest.mark.parametrize("own", [True, False])
def test_random_weights(family: type[Backbone], own: bool, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(hf_config(family) | {"tie_word_embeddings": not own}))
    source = family(config=str(file), extra_tokens=0, visual_tokens=12)
    model = source.load(900, torch.float32).model
    assert has_own_head(model) is own
    assert model.config.tie_word_embeddings is not own
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert table.shape == head.shape == (900, 16)
    for stack in (model.get_encoder(), model.get_decoder()):
        assert stack.embed_tokens.weight is table
    if own:
        # As all new linear layers of the family: PyTorch's default is uniform within 1 / sqrt(16).
        std = 0.25 / 3**0.5 if family is T5 else 0.02
        assert head.std().item() == pytest.approx(std, rel=0.05)
        assert not torch.equal(head, table)
    if family is Bart:
        assert model.final_logits_bias.shape == (1, 900)
        assert not model.final_logits_bias.any()
    if family is T5:
        spread = replace(source, embedding_std=0.1).load(900, torch.float32).model
        assert spread.shared.weight.std().item() == pytest.approx(0.1, rel=0.05)
        assert has_own_head(spread) is own


@pytest.mark.parametrize("in_file", [True, False])
def test_the_bias_behind_barts_head(in_file: bool, tmp_path: Path) -> None:
    """Old entries are the checkpoint's, new ones 0; a file without it means 0."""
    original = save_own_head(Bart, tmp_path)
    bias = original.final_logits_bias.clone()
    if not in_file:
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["final_logits_bias"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        bias.zero_()
    loaded = source_in(Bart, tmp_path).load(52, torch.float32)
    assert torch.equal(loaded.model.final_logits_bias[:, :40], bias)
    assert not loaded.model.final_logits_bias[:, 40:].any()
    assert "final_logits_bias" not in loaded.source_names


def test_a_folder_of_flan_t5_is_all_that_a_run_needs(tmp_path: Path) -> None:
    """Weights, config and tokenizer, as a download has them: it trains and answers."""
    save_own_head(T5, tmp_path)
    words = ["<pad>", "</s>", "<unk>", *(f"w{n}" for n in range(37))]
    T5Tokenizer(vocab=[(word, 0.0) for word in words], extra_ids=0).save_pretrained(tmp_path)
    source = source_in(T5, tmp_path)
    tokenizer = source.load_tokenizer()
    assert len(tokenizer) == 52
    config = ModelSetup(
        kind=JointSeq2Seq(backbone=source, vision=StoredFeatures(dim=DIM, grid=GRID)),
        methods={"updates": LoRA(rank=2), "factors": IA3()},
    )
    model = build_model(config, TASKS, torch.float32, tokenizer)
    assert model.sources.rows == {"backbone.shared.weight": 40, "backbone.lm_head.weight": 40}
    model(batch(), torch.ones(4)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    answers = model.eval().answer(batch(), Decoding(num_beams=2, max_new_tokens=4))
    assert len(answers) == 4
