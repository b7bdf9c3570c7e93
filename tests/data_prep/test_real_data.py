"""Data that nobody here made: photographs, radiographs and drawings with people's sentences."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.shards import packed
from vlds.data.shards.pictures import decode_image
from vlds.data.shards.store import open_dataset
from vlds.schema import ImageSpec


def assert_well(folder: Path, *files: Path) -> None:
    """All bytes, pictures and ids are as they should be."""
    given = ["--annotations", *map(str, files)] if files else []
    assert main(["verify", str(folder), *given, "--workers", "1"]) == 0
    dataset = open_dataset(folder)
    spec = ImageSpec(32, 32)
    for number in range(0, dataset.num_samples, 7):
        for data in dataset.read(number).images:
            assert decode_image(data, spec).shape == (3, 32, 32)


def test_coco(shared: Path, tmp_path: Path) -> None:
    src = shared / "data/coco_captions_free"
    file, out = src / "captions_dev.json", tmp_path / "out"
    given = ["--src", str(src), "--split", "val", "--annotations", str(file), "--out", str(out)]
    assert main(["coco-captions", *given, "--image-size", "64"]) == 0
    samples = packed(out)
    assert len(samples) == 80
    assert sum(len(sample.annotations) for sample in samples.values()) == 400
    assert all(min(sample.extra["size"][0]) == 64 for sample in samples.values())
    assert_well(out, file)


@pytest.mark.slow
def test_radiographs(shared: Path, tmp_path: Path) -> None:
    src = shared / "data/vqa_rad"
    fields = {"image": "image_name", "question": "question", "answer": "answer", "id": "qid"}
    names = [word for key, name in fields.items() for word in (f"--{key}-field", name)]
    given = ["--annotations", str(src / "vqa_rad_dev.json"), "--images", str(src / "images")]
    assert main(["jsonl", "--task", "vqa", *given, *names, "--out", str(tmp_path / "out")]) == 0
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (info["samples"], info["annotations"], info["dropped"]) == (251, 1776, [])
    answers = {
        answer
        for sample in packed(tmp_path / "out").values()
        for annotation in sample.annotations
        for answer in annotation["answers"]
    }
    assert {"yes", "no", "axial"} < {answer.lower() for answer in answers}
    # As they are written, but for blanks around them.
    rows = json.loads((src / "vqa_rad_dev.json").read_text())
    assert answers == {str(row["answer"]).strip() for row in rows}
    assert any(answer != answer.lower() for answer in answers)
    assert_well(tmp_path / "out")


def nlvr1_rows(folder: Path) -> list[dict[str, Any]]:
    """The first drawing of each sentence of the dev split, as rows of one's own."""
    lines = (folder / "dev/dev.json").read_text(encoding="utf-8").splitlines()[:200]
    return [
        {
            "file": f"{row['directory']}/dev-{row['identifier']}-0.png",
            "said": row["sentence"],
            "true": row["label"],
            "id": row["identifier"],
        }
        for row in map(json.loads, lines)
    ]


@pytest.mark.slow
def test_drawings(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Transparent PNGs, four times as wide as high."""
    with tarfile.open(shared / "data/nlvr1/dev.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    rows = nlvr1_rows(tmp_path)
    file = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    names = ["--image-field", "file", "--question-field", "said", "--answer-field", "true"]
    given = ["--annotations", str(file), "--images", str(tmp_path / "dev/images"), *names]
    given += ["--id-field", "id", "--image-size", "48", "--out", str(tmp_path / "out")]
    assert main(["jsonl", "--task", "vqa", *given]) == 0
    samples = packed(tmp_path / "out")
    assert len(samples) == 200
    assert all(sample.extra["size"] == [[192, 48]] for sample in samples.values())
    assert_well(tmp_path / "out", file)
    capsys.readouterr()
    assert main(["preview", str(tmp_path / "out"), "--samples", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("192x48, 1 annotation") == 3
