"""Flickr30k: captions in Karpathy's split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.cli import main
from tests.toys.official_sets import FLICKR_CAPTIONS, write_flickr30k


def test_samples_have_the_names_of_their_pictures(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("flickr30k --split test", write_flickr30k(tmp_path))
    captions = {key: [a["caption"] for a in s.annotations] for key, s in samples.items()}
    assert captions == FLICKR_CAPTIONS
    first = samples["10002456"].annotations[0]
    assert (first["id"], first["source"]["tokens"][:3]) == ("3", ["several", "men", "in"])
    file = str(tmp_path / "dataset_flickr30k.json")
    assert main(["verify", str(tmp_path / "out"), "--workers", "1", "--annotations", file]) == 0
