"""A wrong command line is one line that names the word and a near one."""

from __future__ import annotations

import pytest

from data_prep.cli import main
from vlds.cli.main import run_command

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


MERGE = "convert merge --run a --out b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--verison", "vlds: --verison: no such option; did you mean '--version'? `vlds --help`"),
        ("evaluate --rnu a", "vlds evaluate: --rnu: no such option; did you mean '--run'? `vlds"),
        ("evaluate --rnu=a --seed 3", "--rnu: no such option; did you mean '--run'?"),
        ("evaluate --seed 3", "one of the arguments RUN --predictions is required; `vlds eval"),
        ("predict --rnu a --tasks.vqa.weight 2", "--rnu: no such option; did you mean '--run'?"),
        ("predict --image a", "arguments are required: RUN; `vlds predict --help` says more"),
        ("evaluate gone --data.eval_batch_size 16", "gone: no such folder in "),
        ("evaluate --data.eval_batch_size 16 gone", "gone: no such folder in "),
        ("evaluate --out x gone", "gone: no such folder in "),
        ("evaluate gone too", "'too': unexpected word; `vlds evaluate` takes one run, and an"),
        ("evaluate --run gone too", "'too': unexpected word; `vlds evaluate` takes one run, and"),
        ("predict gone --split test", "gone: no such folder in "),
        ("predict gone --serve", "gone: no such folder in "),
        ("features --cofnig a", "--cofnig: no such option; did you mean '--config'?"),
        ("report", "arguments are required: RUN; `vlds report --help` says more"),
        ("report a --fromat md", "--fromat: no such option; did you mean '--format'?"),
        ("convert hff", "'hff': no such layout; did you mean 'hf'? choose from hf, merge, zero"),
        ("convert peft --rnu a --out b", "--rnu: no such option; did you mean '--run'? `vlds con"),
        (f"{MERGE} --wieght 1", "did you mean '--weights'? `vlds convert merge --help` says more"),
        ("plan --ranks", "vlds plan: --ranks: expected at least one argument; `vlds plan --help`"),
    ],
)  # fmt: skip
def test_commands_of_vlds_answer_in_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vlds")
    assert error.count("\n") == 1
