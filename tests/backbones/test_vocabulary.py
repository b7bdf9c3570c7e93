"""Tokenizers with their extra tokens, and heads that are not the token table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toys.models import hf_config, save_own_head
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.backbones.base import has_own_head

# Heads that are not the token table (T5 v1.1, FLAN-T5): kept, resized, counted.

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


# Tokenizers of both families with their extra tokens, from the files people have.

SENTENCES = ["what colour is the circle", "how many red squares", "a green triangle and a circle"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sentencepiece model, made as T5's was."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(SENTENCES * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "small"), vocab_size=40,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "small.model"


def test_t5_from_a_sentencepiece_file(pieces: Path, tmp_path: Path) -> None:
    source = T5(config="x.json", tokenizer=str(pieces), extra_tokens=3, visual_tokens=4)
    tokenizer = source.load_tokenizer()
    model = sentencepiece.SentencePieceProcessor(str(pieces))
    assert len(tokenizer) == len(model) + 7
    names = ["<extra_id_2>", "<extra_id_0>", "<vis_extra_id_3>", "<vis_extra_id_0>"]
    ids = [len(model), len(model) + 2, len(model) + 3, len(model) + 6]
    assert tokenizer.convert_tokens_to_ids(names) == ids
    for text in SENTENCES:
        found = tokenizer(text)["input_ids"]
        assert found == [*model.encode(text), tokenizer.eos_token_id]
        assert tokenizer.decode(found, skip_special_tokens=True) == text
    tokenizer.save_pretrained(tmp_path)
    again = source.load_tokenizer_from(tmp_path)
    assert len(again) == len(tokenizer)
    assert again(SENTENCES[0])["input_ids"] == tokenizer(SENTENCES[0])["input_ids"]
    folder = T5(path=str(tmp_path), extra_tokens=3, visual_tokens=4).load_tokenizer()
    assert len(folder) == len(tokenizer)
    assert folder("<vis_extra_id_0>")["input_ids"][0] == len(tokenizer) - 1


def test_wrong_pieces_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(SENTENCES * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "bad"), vocab_size=40,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not begin with T5's pieces"):
        T5(config="x.json", tokenizer=str(tmp_path / "bad.model")).load_tokenizer()
    with pytest.raises(ValueError, match="no such file"):
        T5(config="x.json", tokenizer=str(tmp_path / "none.model")).load_tokenizer()


def test_another_number_of_visual_tokens_is_refused(pieces: Path, tmp_path: Path) -> None:
    source = T5(config="x.json", tokenizer=str(pieces), extra_tokens=0, visual_tokens=4)
    source.load_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has <vis_extra_id_\\*> tokens, but not 6"):
        T5(path=str(tmp_path), extra_tokens=0, visual_tokens=6).load_tokenizer()


def test_real_t5(shared: Path) -> None:
    tokenizer = T5(path="t5-base", tokenizer=str(shared / "data/tokenizers/t5")).load_tokenizer()
    assert len(tokenizer) == 32_200
    names = ["<extra_id_99>", "<extra_id_0>", "<vis_extra_id_99>", "<vis_extra_id_0>"]
    assert tokenizer.convert_tokens_to_ids(names) == [32_000, 32_099, 32_100, 32_199]
    assert tokenizer("true", add_special_tokens=False)["input_ids"] == [1176]
    assert tokenizer("vqa: What is this?")["input_ids"] == [3, 208, 1824, 9, 10, 363, 19, 48, 58, 1]


def test_bart_with_gpt2_files(shared: Path) -> None:
    """BART's own vocabulary has the same merges with other ids; its files cannot be had here."""
    source = Bart(path="facebook/bart-base", tokenizer=str(shared / "data/tokenizers/gpt2"))
    tokenizer = source.load_tokenizer()
    plain = source.read_tokenizer(str(shared / "data/tokenizers/gpt2"))
    assert len(tokenizer) == len(plain) + 200
    last = len(tokenizer) - 1
    names = ["<vis_extra_id_0>", "<vis_extra_id_99>", "<extra_id_0>", "<extra_id_99>"]
    assert tokenizer.convert_tokens_to_ids(names) == [last, last - 99, last - 100, last - 199]
    ids = tokenizer("a red circle")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle"
