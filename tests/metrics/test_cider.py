"""CIDEr: the official number, the traps of its tokenizer, and the plain one beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vlds.metrics.cider import (
    missing_for_official_cider,
    official_cider,
    penn_treebank_tokens,
    plain_cider,
)
from vlds.metrics.plain_tokens import plain_tokens

needs_official = pytest.mark.skipif(
    missing_for_official_cider() is not None, reason=str(missing_for_official_cider())
)

CAPTIONS = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("dot", "box")]
REFERENCES = [[text, text.replace("a ", "one small ")] for text in CAPTIONS]


@pytest.fixture(scope="module")
def coco(shared: Path) -> tuple[list[str], list[list[str]], dict[str, float]]:
    """First caption of the 200 smallest picture ids, the others, and the recorded scores."""
    folder = shared / "data" / "coco_caption_scoring"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    annotations = json.loads((folder / "captions_val2017.json").read_text("utf-8"))["annotations"]
    by_image: dict[int, list[str]] = {}
    for annotation in sorted(annotations, key=lambda entry: entry["id"]):
        by_image.setdefault(annotation["image_id"], []).append(annotation["caption"])
    chosen = [by_image[image] for image in sorted(by_image)[:200]]
    recorded = json.loads((folder / "reference_scores_pycocoevalcap_1.2.json").read_text("utf-8"))
    return (
        [texts[0] for texts in chosen],
        [texts[1:] for texts in chosen],
        recorded["first_200_image_ids"],
    )


@needs_official
def test_official_cider_equals_the_recorded_one(coco: tuple) -> None:
    captions, references, recorded = coco
    assert official_cider(captions, references) == pytest.approx(recorded["CIDEr"], abs=1e-4)


@needs_official
def test_plain_formula_equals_the_official_scorer_on_the_same_tokens() -> None:
    from pycocoevalcap.cider.cider import Cider

    captions = [*CAPTIONS, "", "a red red red dot and a red dot"]
    references = [*REFERENCES, ["a dot"], ["a red dot", "box"]]

    def lines(texts: list[str]) -> list[str]:
        return [" ".join(plain_tokens(text)) for text in texts]

    theirs, _ = Cider().compute_score(
        {number: lines(given) for number, given in enumerate(references)},
        {number: lines([text]) for number, text in enumerate(captions)},
    )
    assert plain_cider(captions, references) == pytest.approx(float(theirs), abs=1e-9)


@needs_official
def test_odd_white_space_does_not_shift_later_captions() -> None:
    texts = ["", "A caf\u00e9\u2028two  lines\r here.", "\n", "third\u2029\x85", "last, one!", " "]
    assert penn_treebank_tokens(texts) == [
        "", "a caf\u00e9 two lines here", "", "third", "last one", "",
    ]  # fmt: skip


@needs_official
def test_the_tokenizer_leaves_no_file_behind() -> None:
    import pycocoevalcap.tokenizer.ptbtokenizer as theirs

    folder = Path(theirs.__file__).parent
    before = sorted(folder.iterdir())
    official_cider(CAPTIONS, REFERENCES)
    assert sorted(folder.iterdir()) == before


def test_plain_cider_orders_captions_by_quality() -> None:
    worse = [*CAPTIONS[1:], CAPTIONS[0]]
    assert plain_cider(CAPTIONS, REFERENCES) > plain_cider(worse, REFERENCES) > 0
    assert plain_cider(CAPTIONS, [[text] for text in CAPTIONS]) == pytest.approx(7.5)


def test_one_picture_scores_nothing() -> None:
    assert plain_cider(["a dog"], [["a dog"]]) == 0


def test_official_cider_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"CIDEr: .*missing \(.*install"):
        official_cider(CAPTIONS, REFERENCES)


@pytest.mark.parametrize("score", [plain_cider, pytest.param(official_cider, marks=needs_official)])
def test_counts_must_fit(score: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="captions: got 1 for 2 pictures"):
        score(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="picture number 1 has none"):
        score(["a", "b"], [["a"], []])
