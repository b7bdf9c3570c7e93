"""GQA: question dictionaries with leading zeros, COCO's "n" images, scene graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.official.gqa import parse_gqa
from data_prep.packing.pack import Options, pack
from tests.toys.files import write
from tests.toys.official import gqa_question
from tests.toys.pictures import jpeg
from tests.toys.shards import find_annotation, packed

CAR = {"name": "car", "attributes": ["red", "small"], "x": 1, "y": 2, "w": 3, "h": 4}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    src = tmp_path / "gqa"
    questions = {
        "07333408": gqa_question("2354786"),
        "00333409": gqa_question("2354786"),
        "9": gqa_question("n1"),
    }
    write(src / "val_balanced_questions.json", questions)
    thing = CAR | {"relations": [{"name": "near", "object": "2"}]}
    graph = {"2354786": {"width": 40, "height": 24, "objects": {"681267": thing}}}
    write(src / "val_sceneGraphs.json", graph)
    for image in ("2354786", "n1"):
        write(src / "images" / f"{image}.jpg", jpeg())
    return src


def test_questions_and_objects(official: Path, tmp_path: Path) -> None:
    pack(parse_gqa(official, "val"), tmp_path / "out", Options())
    samples = packed(tmp_path / "out")
    assert find_annotation(samples, "07333408") == {
        "id": "07333408",
        "question": "Is it red?",
        "answer": "yes",
        "full_answer": "Yes, it is red.",
        "balanced": True,
        "groups": {"global": None, "local": "06-red"},
        "entailed": ["00333409"],
        "equivalent": ["07333408"],
        "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"},
        "source": {"semantic": gqa_question("")["semantic"]},
    }
    assert samples["2354786"].extra["source"] == {"objects": [CAR]}
    assert "source" not in samples["n1"].extra


def test_several_question_files_and_no_answers(official: Path, tmp_path: Path) -> None:
    bare = {"imageId": "n1", "question": "Why?", "isBalanced": False}
    parts = [write(tmp_path / f"part_{n}.json", {f"0{n}": bare}) for n in range(2)]
    dataset = parse_gqa(official, "test", questions=parts)
    assert [sample.id for sample in dataset.samples] == ["n1"]
    assert dataset.samples[0].annotations[1] == {"id": "01", "question": "Why?", "balanced": False}


def test_questions_of_lxmert(tmp_path: Path) -> None:
    row = {"img_id": "n77", "sent": "Is it red?", "label": {"yes": 1.0}, "question_id": "0733"}
    file = write(tmp_path / "train.json", [row, row | {"label": {}, "question_id": "08"}])
    write(tmp_path / "images/n77.jpg", jpeg())
    pack(parse_gqa(tmp_path, "train", questions=[file]), tmp_path / "out", Options())
    (sample,) = packed(tmp_path / "out").values()
    assert list(sample.annotations) == [
        {"id": "0733", "question": "Is it red?", "balanced": True, "answer": "yes"},
        {"id": "08", "question": "Is it red?", "balanced": True},
    ]
    write(file, [row | {"label": {"yes": 1.0, "no": 0.3}}])
    with pytest.raises(ValueError, match="question 0733 has 2 answers; GQA's have one"):
        parse_gqa(tmp_path, "train", questions=[file])
