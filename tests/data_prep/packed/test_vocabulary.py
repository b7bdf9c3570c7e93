"""Answers that occur often, and training on them alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from data_prep.cli import main
from data_prep.official.vqav2 import read_vocabulary
from data_prep.packed.vocabularies import train_word_pieces
from tests.toys.files import write
from tests.toys.official import write_vqav2
from tests.toys.pictures import jpeg
from tests.toys.shards import packed
from vlds.tasks import VQA


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five times yes, three times no, once red."""
    answers = ["yes"] * 5 + ["no"] * 3 + ["Red"]
    rows = [{"image": "a.jpg", "question": "?", "answer": answer} for answer in answers]
    file = write(tmp_path / "rows.json", rows)
    write(tmp_path / "a.jpg", jpeg())
    given = ["--annotations", str(file), "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["jsonl", "--task", "vqa", *given]) == 0
    return tmp_path / "out"


def test_the_most_frequent_come_first(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    out = tmp_path / "answers.json"
    assert main(["answers", str(shards), "--out", str(out), "--min-count", "3"]) == 0
    assert json.loads(out.read_text()) == ["yes", "no"]
    assert "2 of 3 answers, to 88.9% of the questions" in capsys.readouterr().out
    code = main(["answers", str(shards), "--out", str(out)])
    refused(code, "--min-count 9: none of 3 answers occurs so often")
    code = main(["answers", str(shards), "--out", str(out), "--min-count", "-1"])
    refused(code, "--min-count: got -1; give 1 or more")


def test_word_pieces(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    """A folder that transformers opens. Each word of the texts is one piece; of other words, those
    of one character are known."""
    words = ["tokenizer", str(shards), "--kind", "bert"]
    assert main([*words, "--out", str(tmp_path / "words"), "--vocab-size", "150"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "words")
    assert isinstance(tokenizer, BertTokenizerFast)
    assert tokenizer.tokenize("Yes no red?") == ["yes", "no", "red", "?"]
    assert tokenizer.tokenize("a word, 0-9") == ["a", tokenizer.unk_token, ",", "0", "-", "9"]
    assert tokenizer("yes ##e")["input_ids"].count(tokenizer.unk_token_id) == 2  # # is unknown
    capsys.readouterr()
    code = main([*words, "--out", str(tmp_path / "few"), "--vocab-size", "20"])
    refused(code, "--vocab-size 20: the characters alone are")
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("size", [75, 400])
def test_the_same_texts_give_the_same_word_pieces(size: int) -> None:
    """With room for every word, and where many pieces are equally frequent and only some fit."""
    texts = ["what color is the circle?", "is there a red square?", "a blue circle, a cyan cross"]
    vocabularies = [train_word_pieces(order, size).get_vocab() for order in (texts, texts[::-1])]
    vocabularies += [train_word_pieces(texts, size).get_vocab() for _ in range(3)]
    assert vocabularies == vocabularies[:1] * 5
    assert (len(vocabularies[0]) == size) == (size == 75)


def test_questions_keep_the_scores_of_known_answers(tmp_path: Path) -> None:
    src = write_vqav2(tmp_path / "vqa")
    known = write(tmp_path / "known.json", {"yes": 0, "netting": 1})
    given = ["--src", str(src), "--split", "val", "--out", str(tmp_path / "out")]
    assert main(["vqav2", *given, "--vocabulary", str(known)]) == 0
    samples = packed(tmp_path / "out")
    labels = {a["id"]: a["label"] for sample in samples.values() for a in sample.annotations}
    assert labels["1000"] == {"yes": 1.0}
    assert labels["9000"] == {"netting": 0.9}
    assert labels["2000"] == {}
    example = VQA().example("vqa", samples["2"], 0, np.random.default_rng(0))
    assert (example.target, example.weight) == ("", 0.0)
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert "known.json" in [entry["file"] for entry in info["source"]]


def test_the_vocabularies_of_lxmert(shared: Path) -> None:
    folder = shared / "data/vqa_gqa_answer_vocab"
    assert len(read_vocabulary(folder / "vqa_trainval_ans2label.json")) == 3129
    assert len(read_vocabulary(folder / "gqa_trainval_label2ans.json")) == 1842


def test_what_is_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a list of answers is needed"):
        read_vocabulary(write(tmp_path / "x.json", [1, 2]))
