"""Heads: their shapes, counts and classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlds.models.heads import LinearHead, MLPHead, TextHead
from vlds.tasks.class_output import read_classes

NUM_ANSWERS = 3129
"""Of the usual list of answers of VQA v2."""
ANSWERS = tuple(f"answer {number}" for number in range(NUM_ANSWERS))


def test_weights_begin_as_in_the_originals() -> None:
    torch.manual_seed(0)
    head = MLPHead(classes=ANSWERS).build(64)
    weights = dict(head.named_parameters())
    for layer in ("0", "3"):
        assert weights[f"{layer}.weight"].std().item() == pytest.approx(0.02, rel=0.05)
        assert not weights[f"{layer}.bias"].any()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("yes",), "classes: got 1; give two classes or more"),
        (("yes", "no", "yes"), "classes: 'yes' appears twice; name each class once"),
        (("yes", " "), "classes: got ' ' among the classes; each is a text, not empty"),
    ],
)
def test_a_wrong_list_is_named(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearHead(classes=classes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "head.classes: .*no.json: No such file or directory; name a JSON file"),
        ("{}", r"got {}; give a list of texts"),
        ("[", "is not JSON"),
    ],
)
def test_a_wrong_file_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "no.json"
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_classes(str(file), "head.classes")


def test_descriptions_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "pets.json"
    said = {"cat": ["it purrs"], "dog": ["it barks", "it fetches"]}
    file.write_text(json.dumps(said), "utf-8")
    head = TextHead(classes=("cat", "dog"), descriptions=str(file)).with_files()
    file.unlink()
    assert head.sentences().described == list(said.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "descriptions: .*pets.json: No such file or directory; name a JSON file"),
        ('["it purrs"]', "pets.json: give an object with a list of sentences for every class"),
        ('{"cat": [" "]}', "give an object with a list of sentences"),
    ],
)
def test_a_wrong_file_of_descriptions_is_named(
    text: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "pets.json"
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        TextHead(descriptions=str(file)).with_files()


@pytest.mark.parametrize("name", ["templates", "negative_templates"])
def test_a_template_has_a_place_for_the_class(name: str) -> None:
    for given in ([], ["a photo"]):
        with pytest.raises(
            ValueError, match=f"{name}: got .*; give one or more sentences with {{}}"
        ):
            TextHead(**{name: given})


def test_answers_that_are_no_class_have_no_score() -> None:
    head = LinearHead(classes=("red", "green"))
    assert head.class_scores({"green": 1, "dark": 0.3}) == {1: 1.0}
    assert head.class_scores({"dark": 1.0}) == {}


def test_classes_that_have_not_been_read_are_an_error() -> None:
    with pytest.raises(ValueError, match="classes: got None, which has not been read; give a list"):
        LinearHead().build(4)
