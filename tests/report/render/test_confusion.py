"""Which answers are taken for which others."""

from __future__ import annotations

from pathlib import Path

from tests.toys.html_reader import Reader
from tests.toys.scored_runs import Runs, lines_of, scored_recipe, write_scored_run
from vlds.report.charts import MOST_PAIRS, confusions
from vlds.report.collect import collect
from vlds.report.examples import Answered, TaskAnswers
from vlds.report.page import build_page


def answers(*pairs: tuple[str, str]) -> TaskAnswers:
    """Of (answer, what was said)."""
    examples = {
        str(number): Answered(answer, answer, said, said == answer, None)
        for number, (answer, said) in enumerate(pairs)
    }
    return TaskAnswers("vqa", (), examples)


def test_few_answers_have_a_matrix_alone() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "yes")] * 3 + [("no", "maybe")]
    (found,) = confusions({"vqa": answers(*pairs)})
    assert found.table.heads == ["answer \\ said", "yes", "no", "other"]
    assert [(row.head, [cell.text for cell in row.cells]) for row in found.table.rows] == [
        ("yes", ["6", "2", "0"]), ("no", ["3", "0", "1"]),
    ]  # fmt: skip


def test_many_answers_have_pairs_and_a_rest() -> None:
    pairs = [(str(n), "?" * n) for n in range(1, MOST_PAIRS + 4) for _ in range(2)]
    (found,) = confusions({"vqa": answers(*pairs)})
    first, *_, last = found.table.rows
    assert (first.head, [cell.text for cell in first.cells]) == ("1", ["?", "2", "100 %"])
    assert len(found.table.rows) == MOST_PAIRS + 1
    assert [cell.text for cell in last.cells] == ["", "6", ""]


def test_answers_that_do_not_repeat_tell_nothing() -> None:
    assert confusions({"vqa": answers(("a", "b"), ("c", "b"), ("d", "b"))}) == []
    assert confusions({"vqa": answers(("a", "a"), ("a", "a"))}) == []


def test_the_page_has_it_once(runs: Runs, tmp_path: Path) -> None:
    recipe = scored_recipe(runs.world, tmp_path / "run")
    lines = lines_of(recipe.tasks["vqa"], 3)
    run = write_scored_run(tmp_path / "run", recipe, {"vqa": lines})
    page = Reader(build_page(collect([run], resamples=0)))
    (matrix,) = [rows for rows in page.tables if rows[0] and rows[0][0].startswith("answer")]
    assert matrix[0][0] == "answer \\ said"
    assert len(matrix) == 1 + 3
