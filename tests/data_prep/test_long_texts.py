"""A text of megabytes never reaches a tokenizer."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.pictures import noise
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


def test_reading_counts_a_bad_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"id": "0", "question": "x " * LONGEST_TEXT, "label": {"red": 1.0}}]
    asked += [asked[0] | {"id": str(n), "question": "what?"} for n in range(1, 4)]
    records = [
        SampleRecord(id=str(n), members=[("png", noise(n))], json={"annotations": [annotation]})
        for n, annotation in enumerate(asked)
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
