"""Caption scores: the official numbers, their traps, and errors that name the cure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlds.tasks.metrics import caption_scores as module
from vlds.tasks.metrics import coco_package
from vlds.tasks.metrics.caption_scores import (
    NAMES,
    OFFICIAL,
    all_scores,
    caption_scores,
    picture_values,
    quick_scores,
)
from vlds.tasks.metrics.coco_package import penn_treebank_tokens
from vlds.tasks.metrics.plain_scores import plain_tokens

needs_java = pytest.mark.skipif(
    coco_package.missing() is not None, reason=str(coco_package.missing())
)

CAPTIONS = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("dot", "box")]
REFERENCES = [[text, text.replace("a ", "one small ")] for text in CAPTIONS]
RECORDED_NAMES = {
    "BLEU-1": "Bleu_1", "BLEU-2": "Bleu_2", "BLEU-3": "Bleu_3", "BLEU-4": "Bleu_4",
    "ROUGE-L": "ROUGE_L", "CIDEr": "CIDEr", "METEOR": "METEOR",
}  # fmt: skip
"""Our name of a score -> its name in the recorded file."""
QUICK = [name for name in RECORDED_NAMES if name != "METEOR"]


@pytest.fixture(scope="module")
def coco(shared: Path) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """Captions of each picture, by id, and the scores of the first against the others."""
    folder = shared / "data" / "coco_caption_scoring"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    annotations = json.loads((folder / "captions_val2017.json").read_text("utf-8"))["annotations"]
    by_image: dict[int, list[str]] = {}
    for annotation in sorted(annotations, key=lambda entry: entry["id"]):
        by_image.setdefault(annotation["image_id"], []).append(annotation["caption"])
    recorded = json.loads((folder / "reference_scores_pycocoevalcap_1.2.json").read_text("utf-8"))
    return [by_image[image] for image in sorted(by_image)], recorded


def recorded_scores(names: list[str], recorded: dict[str, float]) -> dict[str, float]:
    return {name: recorded[RECORDED_NAMES[name]] for name in names}


@needs_java
def test_scores_of_200_pictures_are_the_recorded_ones(coco: tuple) -> None:
    pictures, recorded = coco
    first = pictures[:200]
    scores = caption_scores(QUICK, [given[0] for given in first], [given[1:] for given in first])
    assert scores == pytest.approx(
        recorded_scores(QUICK, recorded["first_200_image_ids"]), abs=1e-4
    )


@needs_java
@pytest.mark.slow
def test_scores_of_all_5000_pictures_are_the_recorded_ones(coco: tuple) -> None:
    pictures, recorded = coco
    names = list(RECORDED_NAMES)
    captions, references = [given[0] for given in pictures], [given[1:] for given in pictures]
    assert len(captions) == 5000
    scores = caption_scores(names, captions, references)
    assert scores == pytest.approx(recorded_scores(names, recorded["all_5000"]), abs=1e-4)


@needs_java
@pytest.mark.slow
def test_empty_captions_and_odd_ones_have_a_meteor() -> None:
    """One program scores all captions: an empty line or a separator in a text shifts nothing."""
    with module.running_meteor() as program:
        assert program.score(CAPTIONS, REFERENCES) == pytest.approx(1.0)
        assert program.score([""] * 6, REFERENCES) == 0.0
        assert program.score(["a ||| dot"], [["a dot"]]) == pytest.approx(1.0)
        mixed = program.score(["", *CAPTIONS[1:]], REFERENCES)
        assert 0.5 < mixed < 1.0
        process = program.process
    assert process.poll() is not None


@needs_java
def test_a_meteor_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JAR", "absent.jar")
    with pytest.raises(RuntimeError, match=r"METEOR ended with exit code 1: .*absent\.jar"):
        module.meteor(CAPTIONS, REFERENCES)


@needs_java
def test_odd_white_space_does_not_shift_later_captions() -> None:
    texts = [
        "", "A caf\u00e9\u2028two  lines\r here.", "\n", "third\u2029\x85", "last, one!", " ",
        "half \ud83d",
    ]  # fmt: skip
    assert penn_treebank_tokens(texts) == [
        "", "a caf\u00e9 two lines here", "", "third", "last one", "", "half",
    ]  # fmt: skip


@needs_java
def test_captions_that_say_nothing_score_nothing() -> None:
    nothing = caption_scores([*QUICK, "word_f1"], [""] * 6, REFERENCES)
    assert nothing == pytest.approx(dict.fromkeys([*QUICK, "word_f1"], 0.0), abs=1e-12)


@needs_java
@pytest.mark.parametrize("name", ["CIDEr", "ROUGE-L", "cider_plain_tokens", "word_f1"])
def test_values_of_pictures_are_those_of_the_package_and_their_mean_is_the_score(name: str) -> None:
    captions = ["A red dot!", "", *CAPTIONS[:3], "one box"]
    values = picture_values(name, captions, REFERENCES)
    assert values is not None
    assert sum(values) / 6 == pytest.approx(caption_scores([name], captions, REFERENCES)[name])
    if name in OFFICIAL:
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        scorer = {"CIDEr": Cider, "ROUGE-L": Rouge}[name]()
        plain = [["a red dot"], *([text] for text in captions[1:])]
        _, theirs = scorer.compute_score(dict(enumerate(REFERENCES)), dict(enumerate(plain)))
        assert values == pytest.approx(list(theirs), abs=1e-12)


def test_without_java_official_scores_are_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    for name in OFFICIAL:
        with pytest.raises(ValueError, match=rf"{name}: .*missing \(.*install"):
            caption_scores([name], CAPTIONS, REFERENCES)
    assert quick_scores() == all_scores() == ["cider_plain_tokens", "word_f1"]
    assert set(caption_scores(quick_scores(), CAPTIONS, REFERENCES)) == set(quick_scores())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OFFICIAL])
def test_counts_must_fit(name: str) -> None:
    for captions, references, told in (
        ([], [], "captions: got 0 for 0 pictures"),
        (["a"], [["a"], ["b"]], "captions: got 1 for 2 pictures"),
        (["a", "b"], [["a"], []], "picture number 1 has none"),
    ):
        with pytest.raises(ValueError, match=told):
            caption_scores([name], captions, references)


def test_scores_of_a_corpus_have_no_values_of_pictures() -> None:
    for name in ("BLEU-4", "METEOR", "SPICE"):
        assert picture_values(name, CAPTIONS, REFERENCES) is None


# cider_plain_tokens is the official formula on plain words.


@pytest.mark.skipif(coco_package.missing() is not None, reason=str(coco_package.missing()))
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


def plain_cider(captions: list[str], references: list[list[str]]) -> float:
    return caption_scores(["cider_plain_tokens"], captions, references)["cider_plain_tokens"]
