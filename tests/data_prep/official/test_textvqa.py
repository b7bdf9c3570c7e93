"""TextVQA: ten answers, and the words of each picture from another file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.official.textvqa import parse_textvqa
from tests.toys.files import write
from tests.toys.official_sets import TEXTVQA_ANSWERS, write_textvqa
from tests.toys.shards import find_annotation


def test_samples_have_the_words_of_their_picture(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("textvqa --split val", write_textvqa(tmp_path))
    words = [samples[f"003a8ae2ef43b90{n}"].extra["ocr_tokens"] for n in range(3)]
    assert words == [["NOKIA", "12:30"], [], ["one way"]]
    annotation = find_annotation(samples, "34603")
    assert annotation["answers"] == TEXTVQA_ANSWERS[1]
    assert annotation["label"]["one thousand"] == 1.0
    assert annotation["source"]["image_classes"] == ["Mobile phone"]


def test_words_can_be_left_out(tmp_path: Path) -> None:
    src = write_textvqa(tmp_path)
    (src / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    dataset = parse_textvqa(src, "val", without_ocr=True)
    assert [sample.extra for sample in dataset.samples] == [{}, {}, {}]
    with pytest.raises(ValueError, match=r"--ocr .* that --without-ocr leaves out; give one"):
        parse_textvqa(src, "val", ocr=src / "words.json", without_ocr=True)


def test_the_test_split_has_no_answers_and_its_own_pictures(tmp_path: Path) -> None:
    row = {"question_id": 1, "image_id": "ab", "question": "what?"}
    write(tmp_path / "TextVQA_0.5.1_test.json", {"data": [row]})
    (sample,) = parse_textvqa(tmp_path, "test", without_ocr=True).samples
    assert sample.images == (tmp_path / "test_images/ab.jpg",)
    assert sample.annotations == [{"id": "1", "question": "what?"}]
