"""Which answers are taken for which others."""

from __future__ import annotations

from pathlib import Path

from tests.toys.html_reader import Reader
from tests.toys.scored_runs import Runs, lines_of, scored_recipe, write_scored_run
from vlds.report.charts import MOST_PAIRS, confusions
from vlds.report.collect import collect
from vlds.report.page import build_page
from vlds.report.report import Answered, TaskAnswers


def answers(*pairs: tuple[str, str]) -> TaskAnswers:
    """Of (answer, what was said)."""
    examples = {
        str(number): Answered(answer, answer, (), said, said == answer, None)
        for number, (answer, said) in enumerate(pairs)
    }
    return TaskAnswers("vqa", (), examples)


def test_a_matrix_and_the_most_frequent_pairs() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "yes")] * 3 + [("no", "maybe")]
    (found,) = confusions({"vqa": answers(*pairs)})
    assert found.matrix is not None
    assert found.matrix.heads == ["answer \\ said", "yes", "no", "other"]
    assert [(row.head, [cell.text for cell in row.cells]) for row in found.matrix.rows] == [
        ("yes", ["6", "2", "0"]), ("no", ["3", "0", "1"]),
    ]  # fmt: skip
    assert [(row.head, [cell.text for cell in row.cells]) for row in found.pairs.rows] == [
        ("no", ["yes", "3", "75 %"]), ("yes", ["no", "2", "25 %"]), ("no", ["maybe", "1", "25 %"]),
    ]  # fmt: skip


def test_many_answers_have_pairs_alone_and_a_rest() -> None:
    pairs = [(str(n), "?" * n) for n in range(1, MOST_PAIRS + 4) for _ in range(2)]
    (found,) = confusions({"vqa": answers(*pairs)})
    assert found.matrix is None
    assert len(found.pairs.rows) == MOST_PAIRS + 1
    assert [cell.text for cell in found.pairs.rows[-1].cells] == ["", "6", ""]


def test_answers_that_do_not_repeat_tell_nothing() -> None:
    assert confusions({"vqa": answers(("a", "b"), ("c", "b"), ("d", "b"))}) == []
    assert confusions({"vqa": answers(("a", "a"), ("a", "a"))}) == []


def test_the_page_has_them(runs: Runs, tmp_path: Path) -> None:
    recipe = scored_recipe(runs.world, tmp_path / "run")
    lines = lines_of(recipe.tasks["vqa"], 3)
    run = write_scored_run(tmp_path / "run", recipe, {"vqa": lines})
    page = Reader(build_page(collect([run], resamples=0)))
    tables = {rows[0][0]: rows for rows in page.tables if rows[0]}
    assert len(tables["answer \\ said"]) == 1 + 3
    assert {row[1] for row in tables["answer"][1:]} == {"no idea"}
