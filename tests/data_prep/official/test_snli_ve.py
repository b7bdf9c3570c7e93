"""SNLI-VE: sentences about pictures of Flickr30k, some without agreement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.pictures import jpeg
from tests.toys.shards import packed


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        row("1#0r1e", "1", "entailment"),
        row("1#0r1c", "1", "contradiction"),
        row("2#0r1n", "2", "-"),
        row("2#0r1n", "2", "neutral"),
    ]
    write(tmp_path / "snli_ve_dev.jsonl", "\n".join(map(json.dumps, given)))
    for image in ("1", "2"):
        write(tmp_path / "flickr30k-images" / f"{image}.jpg", jpeg())
    out = tmp_path / "out"
    assert main(["snli-ve", "--src", str(tmp_path), "--split", "dev", "--out", str(out)]) == 0
    samples = packed(out)
    assert samples["1"].kind == "entailment"
    first = samples["1"].annotations[0]
    assert (first["id"], first["hypothesis"], first["label"]) == (
        "1#0r1e",
        "Animals.",
        "entailment",
    )
    assert first["source"]["sentence1"] == "Two dogs."
    assert len(samples["2"].annotations) == 1
    assert "dropped: label -: 1" in capsys.readouterr().out
