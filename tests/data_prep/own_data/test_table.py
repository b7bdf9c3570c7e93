"""Tables as people and spreadsheets write them: where a row is, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.own_data.rows import read_rows
from tests.toys.files import write

HEAD = "image,question,answer\n"


def rows(folder: Path, content: str | bytes, name: str = "t.csv") -> list[tuple[str, list[object]]]:
    read = read_rows(write(folder / name, content))
    return [(row.place, list(row.fields.values())) for row in read]


def test_rows_are_named_by_the_line_an_editor_shows(tmp_path: Path) -> None:
    text = '\n\nimage,question,answer\r\na,"two\r\nlines",x\r\n\r\n,,\r\nb,q,"y\n\n"\r\nc,q,z'
    assert [place for place, _ in rows(tmp_path, text)] == ["line 4", "line 8", "line 11"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # which Excel calls Unicode text
def test_what_spreadsheets_add_is_not_data(encoding: str, tmp_path: Path) -> None:
    text = 'sep=;\r\nimage; question ;answer;;\r\na;q, r;x;;\r\n;;;;\r\nb; "q; r";x\r\n'
    expected = [("line 3", ["a", "q, r", "x"]), ("line 5", ["b", "q; r", "x"])]
    assert rows(tmp_path, text.encode(encoding)) == expected
    assert list(read_rows(tmp_path / "t.csv")[0].fields) == ["image", "question", "answer"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (HEAD + 'a,q,x\nb,"q,x\n' + "c,q,x\n" * 50000,
         "line 3: a quote opens a cell and is not closed; close it, and double the quotes"),
        (HEAD + 'a,"two\nlines","x\nb,q,x\n', "line 3: a quote opens a cell and is not closed"),
        (HEAD + 'a,"q,x\nb,"q",x\n', "line 2: a quote opens a cell and is not closed"),
        (HEAD + 'a,q,x\nb,"so "called" q",x\n', "line 3: text after a closing quote; double"),
        (
            HEAD + "a,q,x\n\nb,q, r,x\n",
            "line 4: 4 cells, but the head line has 3 (image, question, answer); put cells that "
            "hold a ',' in quotes",
        ),
        (
            HEAD + "a,q\nb,q,x\nc\nd,q\n",
            "  line 2, line 5: 2 cells, but the head line has 3 (image, question, answer); add the "
            "missing ones\n  line 4: 1 cell, but",
        ),
        (
            HEAD + 'a,"q,x\nb,q",x,y,z\n',
            "line 2: 5 cells, but the head line has 3 (image, question, answer); a quoted cell "
            "continues to line 3: should its quote close earlier?",
        ),
        (HEAD + f"a,q,x\nb,{'q' * 200_000},x\n",
         "line 3: 'question' has more than 131,072 characters; shorten it, or remove the row"),
        (HEAD + f'a,q,x\n"b","{"q" * 200_000}","x"\n',
         "line 3: 'question' has more than 131,072 characters; shorten it, or remove the row"),
        ("q" * 200_000 + ",answer\n", "line 1: column 1 has more than 131,072 characters; shorten"),
        (
            HEAD + 'a,"' + "q" * 200_000 + ",x\nb,q,x\n",
            "line 2: a quote opens a cell and is not closed; close it, and double the quotes "
            "inside cells (a cell has at most 131,072 characters)",
        ),
        ("image\tq\tq\na\tb\tc\n", "line 1: two columns are called 'q'; rename one"),
    ],
)  # fmt: skip
def test_the_line_at_fault_is_named(content: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line") as caught:
        rows(tmp_path, content)
    assert f"t.csv, {fault}" in str(caught.value).replace("t.csv:\n", "t.csv, ")


def test_rows_of_a_json_list(tmp_path: Path) -> None:
    """By their lines; of several on a line, by their numbers."""
    text = '[\n {"a": "]},\\n["},\n\n {"a":\n 2}, \n{"a": []}]'
    assert [p for p, _ in rows(tmp_path, text, "t.json")] == ["line 2", "line 4", "line 6"]
    assert [p for p, _ in rows(tmp_path, '[{"a": 1}, {"a": 2}]', "t.json")] == ["row 1", "row 2"]


def test_commas_between_json_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a comma follows the first row; JSON lines have no"):
        rows(tmp_path, '{"a": 1},\n{"a": 2}\n', "t.json")


def test_rows_of_json_lines(tmp_path: Path) -> None:
    assert [p for p, _ in rows(tmp_path, '\n{"a": 1}\n\n{"a": 2}', "t")] == ["line 2", "line 4"]
