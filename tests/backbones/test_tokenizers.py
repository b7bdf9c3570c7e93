"""Tokenizers of both families with their extra tokens, from the files people have."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from vlds.models.backbones import T5, Bart

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
