"""Each tested type against Hugging Face: rows are those of its own processor, losses those of its
own forward pass, and answers those of its own `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.toys.image_text import PARAMETERS, TYPES
from tests.toys.image_text.rows import NUMBERS, Tiny, images, rows_with, tiny
from tests.toys.image_text.theirs import generated, processed, question
from vlds.models.kinds.image_text import TESTED
from vlds.models.kinds.image_text_model import ImageTextModel
from vlds.schema import IGNORED_LABEL, Decoding, Row

ONE_A_ROW = {"perception_lm": (1, 1, 0)}
"""Types whose processors read no two pictures of unlike numbers of tiles in a row."""


def test_tested_types_are_those_of_the_tests() -> None:
    assert sorted(TESTED) == sorted(TYPES)


@pytest.fixture(params=PARAMETERS)
def model(request: pytest.FixtureRequest) -> Tiny:
    return tiny(request.param)


def exact(model: Tiny) -> ImageTextModel:
    """The model in float64."""
    built = model.build().eval()
    built.backbone.double()
    # The fused product of experts is not defined for it.
    built.backbone.set_experts_implementation("eager")
    return built


def rows_of(model: Tiny) -> list[Row]:
    kind = model.model_type
    return rows_with(ONE_A_ROW.get(kind, NUMBERS.get(kind, (1, 2, 0))))


def asked_by(model: Tiny, row: Row) -> dict[str, Any]:
    """A row's prompt, as Hugging Face's processor reads it."""
    shown = [images()[n] for n in row.images]
    text = question(model.model_type, model.processor, row.example.prompt, len(shown))
    inputs = processed(model.model_type, model.processor, text, shown)
    inputs.pop("labels", None)
    return {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}


@torch.no_grad()
def test_losses_of_unlike_rows_are_hugging_faces(model: Tiny) -> None:
    built, rows = exact(model), rows_of(model)
    batch = model.batch(rows)
    assert batch.labels is not None
    ours = built.token_nll(batch).sum(1)
    for number, row in enumerate(rows):
        theirs = asked_by(model, row)
        prompt = theirs["input_ids"]
        labels = batch.labels[number]
        answer = labels[labels != IGNORED_LABEL]
        if built.answers_apart:
            theirs["labels"] = answer[None]
        else:
            length = int(batch.attention_mask[number].sum())
            whole = torch.cat([prompt[0], answer])
            assert batch.input_ids[number, :length].tolist() == whole.tolist()
            theirs["input_ids"] = whole[None]
            theirs["attention_mask"] = torch.ones_like(whole)[None]
            hidden = torch.full_like(prompt[0], IGNORED_LABEL)
            theirs["labels"] = torch.cat([hidden, answer])[None]
            # An answer is text; PaliGemma's is what it sees from left to right.
            of_text = int(model.model_type == "paligemma")
            for name in theirs.keys() & {"mm_token_type_ids", "token_type_ids"}:
                types = [theirs[name][0], torch.full_like(answer, of_text)]
                theirs[name] = torch.cat(types)[None]
        mean = built.backbone(**theirs).loss
        assert ours[number].item() == pytest.approx(mean.item() * len(answer), rel=1e-6)


@torch.no_grad()
def test_answers_of_unlike_rows_are_hugging_faces(model: Tiny) -> None:
    """Greedy ids, row by row, and those of rows together."""
    built, rows = exact(model), rows_of(model)
    writer, decoding = built.writer, Decoding(max_new_tokens=5)
    prompts = built.prompts(model.batch(rows, evaluation=True))
    written = writer.write(prompts, decoding, None)
    for row, answer in zip(rows, written, strict=True):
        theirs = asked_by(model, row)
        assert answer.ids == generated(built, theirs, 5)


@torch.no_grad()
def test_pictures_are_seen(model: Tiny) -> None:
    """Other pictures in their place change each row that has some, and no other."""
    built, rows = exact(model), rows_of(model)
    before = built.token_nll(model.batch(rows)).sum(1)
    inverse = [255 - picture for picture in images()]
    other = model.collator(rows, inverse, evaluation=False)
    change = (built.token_nll(other).sum(1) - before).abs()
    assert [float(c) > 1e-6 for c in change] == [len(row.images) > 0 for row in rows]
