"""What people type and read."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.toys.files import ROOT
from tests.toys.world import world_recipe
from vlds.recipe.config import save_recipe
from vlds.runtime.limited import environment
from vlds.runtime.terminal import duration_text, tell, visible

# Text from others cannot act on the terminal, and looks as it is.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("good\rbad\x08\x7f\x9b2J", r"good\rbad\x08\x7f\x9b2J"),
        ("is \u202ereversed\u2066\u200f", r"is \u202ereversed\u2066\u200f"),
        ("a\u200bb\ufeff\u2028\U000e0041", r"a\u200bb\ufeff\u2028\U000e0041"),
        ("a\u00ad\u3164\U000e0100", r"a\xad\u3164\U000e0100"),
        ("half \ud800", r"half \ud800"),
        ("two\n\tlines", "two\n\tlines"),
        ("\u0645\u0631\u062d\u0628\u0627 \U0001f468\u200d\U0001f469", None),
        ("https://user:pw@host/?token=ab", "https://host/?token=..."),
    ],
)
def test_hidden_characters_are_escapes(
    text: str, expected: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = text if expected is None else expected
    assert visible(text) == expected
    assert visible(visible(text)) == expected
    tell(text)
    assert capsys.readouterr().out == expected + "\n"


def test_html_is_escaped_as_well() -> None:
    template = environment(ROOT).from_string("{{ text }}")
    assert template.render(text="<b>\u202e&") == r"&lt;b&gt;\u202e&amp;"


def test_a_traceback_is_text_too() -> None:
    program = "import vlds.runtime.terminal as t, sys; sys.excepthook = "
    program += r"t.tell_exception; raise KeyError('x') from Exception('\x1b[2J')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "KeyError: 'x'" in done.stderr
    assert "\x1b" not in done.stderr.replace(r"\x1b", "")


@pytest.mark.parametrize(
    ("words", "full", "code"),
    [
        ("schema recipe", True, 2),
        ("schema recipe", False, 141),
        pytest.param("train run.yaml", True, 0, marks=pytest.mark.slow),
        pytest.param("train run.yaml", False, 0, marks=pytest.mark.slow),
    ],
)
def test_output_that_nobody_reads_or_that_finds_no_room(
    words: str, full: bool, code: int, world: Path, tmp_path: Path
) -> None:
    """One line, and the work is done; also if stderr goes the same way."""
    save_recipe(world_recipe(world, tmp_path / "run"), tmp_path / "run.yaml")
    reader, pipe = os.pipe()
    os.close(reader)
    said = {True: "No space left on device", False: "nobody reads it"}[full]
    with open("/dev/full", "wb") if full else os.fdopen(pipe, "wb") as out:
        for errors in (subprocess.PIPE, out):
            command = [sys.executable, "-m", "vlds", *words.split()]
            done = subprocess.run(command, cwd=tmp_path, stdout=out, stderr=errors, text=True)
            assert done.returncode == code, done.stderr
            line = f"vlds: cannot print any more: {said}; the work goes on without\n"
            assert done.stderr == (None if errors is out else line)
            assert words == "schema recipe" or (tmp_path / "run/artifact").is_dir()
            shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.slow
def test_nothing_is_printed_past_it() -> None:
    """`print` and rich's markup would obey what texts say."""
    files = [f for room in ("vlds", "data_prep") for f in sorted((ROOT / room).rglob("*.py"))]
    past = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            markup = name == "TextColumn" and "markup" not in {k.arg for k in node.keywords}
            if (name == "print" and file.name != "terminal.py") or markup:
                past.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert past == []


# A wrong command line is one line that names the word and a near one.

JSONL = "jsonl --task vqa --annotations x --images y --out z"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("jsonnl", "'jsonnl': no such command; did you mean 'jsonl'? choose from aokvqa"),
        (f"{JSONL} --question_field q", "--question_field: no such option; did you mean "
         "'--question-field'? `vlds data jsonl --help` says more"),
        ("jsonl --task VQA", "'VQA': no such --task; did you mean 'vqa'? choose from vqa, caption"),
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


# Times as people read them.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.04 s"), (9.4, "9.4 s"), (9.6, "10 s"), (75, "1 min 15 s"), (3600, "1 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
