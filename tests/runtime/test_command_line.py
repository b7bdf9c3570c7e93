"""A wrong command line is one line that names the word and a near one."""

from __future__ import annotations

import pytest

from data_prep.cli import main

JSONL = "jsonl --task vqa --annotations x --images y --out z"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("jsonnl", "'jsonnl': no such command; did you mean 'jsonl'? choose from aokvqa"),
        ("veryfy shards", "did you mean 'verify'?"),
        (f"{JSONL} --question_field q", "--question_field: no such option; did you mean "
         "'--question-field'? `vlds data jsonl --help` says more"),
        ("jsonl --taks vqa", "--taks: no such option; did you mean '--task'?"),
        ("jsonl --task VQA", "'VQA': no such --task; did you mean 'vqa'? choose from vqa, caption"),
        ("vqav2 --src x --out y --split trian", "did you mean 'train'?"),
        ("stats a b", "'b': unexpected word; `vlds data stats --h"),
        ("jsonl --task vqa", "are required: --annotations, --images, --out;"),
        (f"{JSONL} --workers two", "error: --workers: got 'two'; give a whole number;"),
    ],
)  # fmt: skip
def test_the_nearest_word_is_named(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
