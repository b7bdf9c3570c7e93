"""Flickr30k: captions in Karpathy's split, and the scores of pycocoevalcap for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.official_sets import FLICKR_CAPTIONS, write_flickr30k
from vlds.tasks import Caption
from vlds.tasks.metrics import coco_package

needs_java = pytest.mark.skipif(
    coco_package.missing() is not None, reason=str(coco_package.missing())
)
SAID = {
    "1000092795": "Two men in green shirts look at their hands.",
    "10002456": "Men in hats operate a system.",
    "1000268201": "A girl climbs a set of stairs.",
}
SCORES = {
    "CIDEr": 1.8509808,
    "BLEU-1": 0.7967035,
    "BLEU-4": 0.4703301,
    "ROUGE-L": 0.6765038,
    "METEOR": 0.2927594,
}
"""What the scorers of pycocoevalcap 1.2 say of these captions."""


def test_samples_have_the_names_of_their_pictures(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("flickr30k --split test", write_flickr30k(tmp_path))
    captions = {key: [a["caption"] for a in s.annotations] for key, s in samples.items()}
    assert captions == FLICKR_CAPTIONS
    first = samples["10002456"].annotations[0]
    assert (first["id"], first["source"]["tokens"][:3]) == ("3", ["several", "men", "in"])
    file = str(tmp_path / "dataset_flickr30k.json")
    assert main(["verify", str(tmp_path / "out"), "--workers", "1", "--annotations", file]) == 0


@pytest.mark.slow
@needs_java
def test_captions_are_scored_as_by_the_official_package(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("flickr30k --split test", write_flickr30k(tmp_path))
    task = Caption(scores=list(SCORES))
    examples = [task.example("c", sample, None, None) for sample in samples.values()]
    scores = task.score(SAID, {example.id: example.reference for example in examples})
    assert scores == pytest.approx(SCORES, abs=1e-6)
