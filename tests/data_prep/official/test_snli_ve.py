"""SNLI-VE: sentences about pictures of Flickr30k, some without agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.toys.files import json_lines, write
from tests.toys.pictures import jpeg


def row(pair: str, image: str, label: str) -> dict[str, str]:
    return {
        "annotator_labels": label,
        "captionID": f"{image}.jpg#0",
        "gold_label": label,
        "pairID": pair,
        "sentence1": "Two dogs.",
        "sentence2": "Animals. ",
        "Flickr30K_ID": image,
    }


def test_sentences_about_a_picture_are_one_sample(
    tmp_path: Path, pack_split: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        row("1#0r1e", "1", "entailment"), row("1#0r1c", "1", "contradiction"),
        row("2#0r1n", "2", "-"), row("2#0r1n", "2", "neutral"),
    ]  # fmt: skip
    write(tmp_path / "snli_ve_dev.jsonl", json_lines(given))
    for image in ("1", "2"):
        write(tmp_path / "flickr30k-images" / f"{image}.jpg", jpeg())
    samples = pack_split("snli-ve --split dev", tmp_path)
    assert samples["1"].kind == "entailment"
    first = samples["1"].annotations[0]
    assert [first[name] for name in ("id", "hypothesis", "label")] == [
        "1#0r1e", "Animals.", "entailment",
    ]  # fmt: skip
    assert first["source"]["sentence1"] == "Two dogs."
    assert len(samples["2"].annotations) == 1
    assert "dropped: label -: 1" in capsys.readouterr().out
