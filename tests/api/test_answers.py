"""Answers in batches, and rows: what a notebook shows and pandas takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlds
from tests.toys.world import COLOURS
from vlds.api.rows import MOST_SHOWN

QUESTIONS = ("what colour is it", "what colour is it now now", "is it dark")


def pairs(run: Path) -> list[tuple[str, str]]:
    """Each picture with each question."""
    names = [str(run.parent / f"{name}.png") for name in COLOURS]
    return list(product(names, QUESTIONS))


def test_batches_answer_as_single_questions_do(run: Path, model: vlds.Model) -> None:
    single = [model.answer(*pair) for pair in pairs(run)]
    assert len({answer.text for answer in single}) > 1
    for size in (1, 4, None):
        many = list(model.answer_many(pairs(run), batch_size=size))
        assert [a.text for a in many] == [a.text for a in single]
        assert [a.prompt_cut for a in many] == [a.prompt_cut for a in single]
        for one, other in zip(many, single, strict=True):
            assert one.confidence == pytest.approx(other.confidence, rel=1e-4)
        assert [(a.pictures, a.question) for a in many] == [((p,), q) for p, q in pairs(run)]


def test_a_picture_may_be_of_any_form_in_a_batch(run: Path, model: vlds.Model) -> None:
    file = run.parent / "red.png"
    with Image.open(file) as opened:
        forms: list[Any] = [file, file.read_bytes(), opened.copy(), np.asarray(opened), [file]]
    answers = list(model.answer_many((form, QUESTIONS[0]) for form in forms))
    assert len({answer.text for answer in answers}) == 1
    # Files by their paths, all others as small copies.
    assert [type(answer.pictures[0]) for answer in answers] == [str, bytes, bytes, bytes, str]


def test_answers_are_lazy(run: Path, model: vlds.Model) -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield pairs(run)[0]

    answers = model.answer_many(endless(), batch_size=3)
    assert taken == 0
    next(answers)
    assert taken == 3
    for _ in range(3):
        next(answers)
    assert taken == 6


def test_what_goes_wrong_comes_after_the_answers_before_it(run: Path, model: vlds.Model) -> None:
    def failing() -> Iterator[tuple[str, str]]:
        yield from pairs(run)[:4]
        raise KeyError("mine")

    answers = model.answer_many(failing(), batch_size=3)
    assert len([next(answers) for _ in range(4)]) == 4
    with pytest.raises(KeyError, match="mine"):
        next(answers)
    answers = model.answer_many([*pairs(run)[:4], ("NO.jpg", "what")], batch_size=3)
    assert len([next(answers) for _ in range(4)]) == 4
    with pytest.raises(ValueError, match=r"^number 4: NO\.jpg: No such file or directory$"):
        next(answers)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ("red.png", {}, r"asked: got str; give a list or iterator of \(picture, question\) pairs"),
        (None, {}, "asked: got NoneType"),
        ([], {"batch_size": 0}, "batch_size: got 0; give a whole number, 1 or more"),
        ([], {"batch_size": "4"}, "batch_size: got '4'"),
        (
            ["red.png"],
            {},
            "number 0: red.png: No such file.*; a question stands beside its picture",
        ),
        ([("a", "b", "c")], {}, "number 0: got a tuple of 3; give"),
        ([(7, "what")], {}, "number 0: picture: got int; give a path"),
        ([{"picture": 7}], {}, "number 0: picture: got dict; give a path"),
        ([(b"no picture", "what")], {}, "number 0: image: picture number 1: truncated or damaged"),
        ([], {"task": "vqaa"}, None),
    ],
)
def test_mistakes_are_one_line(
    model: vlds.Model, asked: Any, options: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert list(model.answer_many(asked, **options)) == []
        return
    with pytest.raises(ValueError, match=message) as error:
        list(model.answer_many(asked, **options))
    assert "\n" not in str(error.value)


def test_a_notebook_shows_pictures_and_escapes_texts(run: Path, model: vlds.Model) -> None:
    file = run.parent / "red.png"
    answer = model.answer(file.read_bytes(), "<b>what</b> colour")
    html = answer._repr_html_()
    assert "data:image/png;base64," in html
    assert "&lt;b&gt;what&lt;/b&gt; colour" in html
    assert "<b>" not in html
    large = Image.effect_noise((2000, 1000), 99).convert("RGB")
    assert len(model.answer(large, "what")._repr_html_()) < 200_000
    html = vlds.Rows([answer, answer])._repr_html_()
    assert html.count("<img") == 2
    assert "empty" not in vlds.Rows([{"n": 1, "empty": None}])._repr_html_()
    assert repr(model) == f"<vlds model '{run}'; tasks: vqa>"
    assert "is gone" in vlds.Rows([{"picture": "<i>.png"}])._repr_html_()
    assert "<i>" not in vlds.Rows([{"picture": "<i>.png", "<i>": "<i>"}])._repr_html_()
    many = vlds.Rows({"n": n} for n in range(MOST_SHOWN + 5))
    assert many._repr_html_().count("<tr>") == MOST_SHOWN + 1
    assert "and 5 more rows" in many._repr_html_()


def test_rows_are_a_list_of_dicts(model: vlds.Model, run: Path) -> None:
    rows = vlds.Rows(model.answer_many(pairs(run)))
    assert rows[0]["picture"] == pairs(run)[0][0]
    assert {row["task"] for row in rows} == {"vqa"}
    rows[0]["mine"] = 1
    assert rows.columns[-1] == "mine"
    assert isinstance(rows[:2], vlds.Rows)
    assert [*rows[:2], rows[2]] == list(rows)[:3]
    wrong: Any = ["a"]
    with pytest.raises(ValueError, match="rows: number 0 is str; give dicts or answers"):
        vlds.Rows(wrong)
    with pytest.raises(ValueError, match="rows: got dict"):
        vlds.Rows({"a": 1})  # type: ignore[arg-type]


def test_rows_go_to_pandas(model: vlds.Model, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = vlds.Rows(model.answer_many(pairs(run)))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match="to_pandas: pandas is not installed; `pip install"):
        rows.to_pandas()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    frame = rows.to_pandas()
    assert list(frame.columns) == rows.columns
    assert frame["answer"].tolist() == [row["answer"] for row in rows]
    assert vlds.Rows([]).to_pandas().empty
    assert vlds.Rows([{"a": 1}, {"b": 2}]).to_pandas()["b"].isna().tolist() == [True, False]
