"""NLVR2: JSON lines, string labels, picture pairs, JPEGs named .png, numbered folders of train."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.official.nlvr2 import parse_nlvr2
from data_prep.packing.pack import Options, pack
from tests.toys.files import write
from tests.toys.official import write_nlvr2
from tests.toys.pictures import jpeg, png
from tests.toys.shards import packed

WRITER = {"writer": "24"}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_nlvr2(tmp_path / "nlvr2")


def test_pairs_with_their_sentences(official: Path, tmp_path: Path) -> None:
    pack(parse_nlvr2(official, "dev"), tmp_path / "out", Options())
    samples = packed(tmp_path / "out")
    assert sorted(samples) == ["dev-850-0", "dev-850-1"]
    sample = samples["dev-850-0"]
    assert sample.images == (png(), jpeg(width=20))  # left, right
    assert sample.extra["size"] == [[40, 24], [20, 24]]
    assert list(sample.annotations) == [
        {"id": "dev-850-0-0", "sentence": "Both show dogs.", "label": True, "source": WRITER},
        {"id": "dev-850-0-1", "sentence": "One shows a cat.", "label": False, "source": WRITER},
    ]  # fmt: skip


def test_statements_of_lxmert(tmp_path: Path) -> None:
    """As VL-Adapter has them: the numbered folder of train is not said."""
    rows = [
        {"identifier": f"train-4-1-{n}", "img0": "train-4-1-img0", "img1": "train-4-1-img1",
         "label": n, "sent": "Both show\u2028dogs. ", "uid": f"nlvr2_train_{n}"}
        for n in (0, 1)
    ]  # fmt: skip
    hidden = {k: v for k, v in rows[0].items() if k != "label"} | {"identifier": "train-4-1-2"}
    file = write(tmp_path / "lxmert" / "train.json", [*rows, hidden])
    write(tmp_path / "images/train/57/train-4-1-img0.png", png())
    write(tmp_path / "images/train/57/train-4-1-img1.png", jpeg(width=20))
    pack(parse_nlvr2(tmp_path, "train", annotations=file), tmp_path / "out", Options())
    (sample,) = packed(tmp_path / "out").values()
    assert sample.id == "train-4-1"
    assert sample.images == (png(), jpeg(width=20))
    assert list(sample.annotations) == [
        {"id": "train-4-1-0", "sentence": "Both show dogs.", "label": False,
         "source": {"uid": "nlvr2_train_0"}},
        {"id": "train-4-1-1", "sentence": "Both show dogs.", "label": True,
         "source": {"uid": "nlvr2_train_1"}},
        {"id": "train-4-1-2", "sentence": "Both show dogs.", "source": {"uid": "nlvr2_train_0"}},
    ]  # fmt: skip
    write(file, [rows[0] | {"label": 2}])
    with pytest.raises(ValueError, match="train-4-1-0: label 2 is neither 0 nor 1"):
        parse_nlvr2(tmp_path, "train", annotations=file)
