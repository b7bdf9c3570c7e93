"""A mistyped word is asked about."""

from __future__ import annotations

import pytest

from data_prep.cli import main

JSONL = "jsonl --task vqa --annotations x --images y --out z"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("jsonnl", "'jsonnl': no such command; did you mean 'jsonl'? choose from vqav2"),
        ("veryfy shards", "did you mean 'verify'?"),
        (f"{JSONL} --question_field q", "--question_field: no such option; did you mean "
         "'--question-field'? `python -m data_prep jsonl --help` says more"),
        ("jsonl --taks vqa", "--taks: no such option; did you mean '--task'?"),
        ("jsonl --task VQA", "'VQA': no such --task; did you mean 'vqa'? choose from vqa, caption"),
        ("vqav2 --src x --out y --split trian", "did you mean 'train'?"),
        ("verify a b", "'b': a word that belongs to no option; `python -m data_prep verify --h"),
        ("jsonl --task vqa", "arguments are required: --annotations, --images, --out;"),
        (f"{JSONL} --workers two", "argument --workers: invalid int value: 'two'"),
    ],
)  # fmt: skip
def test_the_nearest_word_is_named(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
