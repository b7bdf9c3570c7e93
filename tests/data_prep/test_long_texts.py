"""A text of megabytes never reaches a tokenizer."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import json_lines, write
from tests.toys.pictures import noise
from tests.toys.shards import packed
from tests.toys.streams import SPEC, ToyTokenizer
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.models.collate import JointCollator
from vlds.schema import LONGEST_TEXT
from vlds.tasks import VQA

LONG = "x " * LONGEST_TEXT


def test_preparation_drops_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "images" / "a.png", noise(0))
    rows = [{"image": "a.png", "question": q, "answer": "x"} for q in ("what?", LONG, "where?")]
    write(tmp_path / "rows.jsonl", json_lines(rows))
    command = ["jsonl", "--task", "vqa", "--annotations", str(tmp_path / "rows.jsonl")]
    command += ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "dropped: question of more than 100,000 characters: 1" in capsys.readouterr().out
    (sample,) = packed(tmp_path / "out").values()
    assert [annotation["id"] for annotation in sample.annotations] == ["1", "3"]
    assert len(sample.annotations[1]["question"]) < LONGEST_TEXT
    info = json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))
    assert info["dropped"][0]["id"] == "2"


def test_preparation_drops_half_a_character(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "images" / "a.png", noise(0))
    rows = [{"image": "a.png", "question": q, "answer": "x"} for q in ("what?", "wh\ud800t?")]
    write(tmp_path / "rows.jsonl", json_lines(rows))
    command = ["jsonl", "--task", "vqa", "--annotations", str(tmp_path / "rows.jsonl")]
    command += ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "dropped: half of a character in a text: 1" in capsys.readouterr().out


def test_reading_counts_a_bad_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        SampleRecord(
            id=str(n),
            members=[("png", noise(n))],
            json={
                "annotations": [
                    {"id": str(n), "question": LONG if n == 0 else "what?", "label": {"red": 1.0}}
                ]
            },
        )
        for n in range(4)
    ]
    write_dataset(tmp_path / "toy", name="toy", kind="vqa", split="train", records=records)
    seen: list[int] = []

    class Tokenizer(ToyTokenizer):
        def __call__(self, texts: list[str], *args: bool, **more: int) -> dict[str, list]:
            seen.extend(map(len, texts))
            return super().__call__(texts, *args, **more)  # type: ignore[arg-type]

    stream = TrainStream(
        [Source("vqa", VQA(), [open_dataset(tmp_path / "toy")])],
        DataConfig(global_batch_size=4, errors=ErrorPolicy(max_bad_fraction=1.0)),
        StreamSetup(
            collator=JointCollator(Tokenizer(), features=False),
            image=SPEC,
            seed=0,
            ledger=tmp_path / "bad.jsonl",
        ),
    )
    for batch in islice(stream, 1):
        assert "0" not in batch.ids
    assert max(seen) < 100
    entry = json.loads((tmp_path / "bad.jsonl").read_text("utf-8"))
    assert "its prompt has 200,005 characters; at most 100,000 are read" in entry["reason"]
    assert main(["verify", str(tmp_path / "toy")]) == 1
    assert "question of more than 100,000 characters" in capsys.readouterr().out
