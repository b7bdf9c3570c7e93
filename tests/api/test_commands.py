"""Preparing, training and scoring from Python: runs, metrics while they are written, and stops."""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlds
from tests.toys.scored_runs import vqa_run
from tests.toys.world import COLOURS
from vlds.api.commands import write_rows
from vlds.api.program import Listener, Program
from vlds.api.progress import Shown
from vlds.api.words import option_words

ROWS = [
    {"image": "a.png", "question": "what colour is it?", "answer": "red"},
    {"image": "a.png", "question": "is it dark?", "answer": "no"},
    {"image": "b.png", "question": "what colour is it?", "answer": "blue"},
]


@pytest.fixture
def home(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe of few steps."""
    monkeypatch.chdir(tmp_path)
    return run.parent


MANY = 100_000
"""Steps that no run here comes to the end of, however late it is told to stop."""


def changes(output: str, steps: int = 4) -> dict[str, object]:
    return {"output": output, "training.steps": steps, "data.micro_batch_size": None}


def test_rows_are_packed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (20, 20), colour).save(f"{name}.png")
    out = vlds.prepare("jsonl", iter(ROWS), task="vqa", images=Path(), out="mine")
    assert out == Path("mine")
    assert "mine train: 2 samples, 3 annotations -> mine" in capsys.readouterr().out
    assert {item.answer for item in vlds.dataset("mine", "VQA")} == {"red", "blue", "no"}
    vlds.prepare("tokenizer", "mine", out="words.model", vocab_size=45)
    assert Path("words.model").is_file()
    for arguments, message in (
        ({"source": ROWS, "images": "."}, "--task"),
        ({"source": ROWS, "images": ".", "task": "vqaa"}, "vqaa"),
        ({"source": ROWS, "images": ".", "task": "vqa", "colour": 1}, "--colour"),
        ({"source": [*ROWS, {"image": "no.png", "question": "q", "answer": "a"}],
          "images": ".", "task": "vqa"}, r"no\.png"),
    ):  # fmt: skip
        given: dict[str, Any] = {"out": "other", **arguments}
        with pytest.raises(ValueError, match=message):
            vlds.prepare("jsonl", **given)


def test_rows_may_come_from_pandas_and_numpy(tmp_path: Path) -> None:
    row = {"image": Path("a.png"), "answer": float("nan"), "count": np.int64(3), "list": [1.5]}
    write_rows(tmp_path / "rows.jsonl", [row])
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert json.loads(line) == {"image": "a.png", "answer": None, "count": 3, "list": [1.5]}


def test_wrong_arguments_of_prepare() -> None:
    wrong: Any = 7
    for source, message in (
        ([7], "rows: number 0 is int; give dicts, such as frame"),
        ({"a": 1}, "rows: got dict; give a list or iterator of dicts"),
        (7, "rows: got int"),
        ([{"image": {1}}], "rows: number 0: got set; give numbers, texts"),
    ):
        with pytest.raises(ValueError, match=message):
            vlds.prepare("jsonl", source, out="mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="command: got 7; give a name, such as 'jsonl'"):
        vlds.prepare(wrong, out="mine")
    with pytest.raises(ValueError, match="images: got set; give a text, number, path"):
        option_words({"images": {1}})
    given = {"image_size": 8, "square": True, "resume": False, "name": None, "split_sizes": ["a"]}
    assert option_words(given) == ["--image-size", "8", "--square", "--split-sizes", "a"]


def test_a_listener_hears_whole_lines_once(tmp_path: Path) -> None:
    heard: list[Any] = []
    file = tmp_path / "metrics.jsonl"
    listener = Listener(file, lambda line: heard.append(line) or line["step"] == 2)
    assert not listener.read()
    file.write_text('{"step": 0}\n{"step"')
    assert not listener.read()
    assert heard == [{"step": 0}]
    with file.open("a") as more:
        more.write(': 1}\n{"step": 2}\n')
    assert listener.read()
    assert [line["step"] for line in heard] == [0, 1, 2]


def test_a_notebook_has_one_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps are drawn in one place; everything else is text, and nothing becomes markup."""
    bars: list[Any] = []

    class Handle:
        def update(self, shown: object) -> None:
            bars.append(shown)

    def display(shown: object, display_id: bool) -> Handle:
        bars.append(shown)
        return Handle()

    class Module:
        pass

    fake: Any = Module()
    fake.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr("vlds.api.progress.in_notebook", lambda: True)
    shown = Shown()
    losses = "    vqa 0.4  gqa 0.6\n"
    for line in ("begin\n", "step 1/4  <b>\n", "a note\n", "step 4/4  loss 0.500\n", losses):
        shown.line(line)
    assert capsys.readouterr().out == "begin\na note\n"
    assert [bar._repr_html_().count("<progress") for bar in bars] == [1, 1, 1]
    assert "&lt;b&gt;" in bars[0]._repr_html_()
    assert 'value="4"' in bars[1]._repr_html_()
    assert repr(bars[2]) == "4/4 loss 0.500  vqa 0.4  gqa 0.6"


def test_a_program_that_fails_says_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, as the exception; another program's are shown."""
    module = tmp_path / "talking.py"
    module.write_text(
        "import sys\nprint('hello')\nprint('talking go: broken', file=sys.stderr)\n"
        "print('advice')\nsys.exit(int(sys.argv[2]))\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with pytest.raises(ValueError, match=r"^talking go: broken$"):
            Program("talking", ["go", "2"]).run()
        with pytest.raises(RuntimeError, match=r"^talking go: broken$"):
            Program("talking", ["go", "1"]).run()
        assert capsys.readouterr().out == 2 * "hello\nadvice\n"
        assert Program("talking", ["go", "0"]).run() is False
        assert "talking go: broken\n" in capsys.readouterr().out


def test_a_run_is_a_path(run: Path) -> None:
    opened = vlds.Run(run)
    assert (os.fspath(opened), str(opened), Path(opened)) == (str(run), str(run), run)
    assert repr(opened) == f"vlds.Run({str(run)!r})"
    assert opened.finished
    assert opened.metrics == []
    assert opened.scores == {}
    assert vlds.load(opened).tasks == opened.load().tasks == ["vqa"]
    with pytest.raises(ValueError, match=r"has no predictions of ''; `vlds\.evaluate"):
        opened.predictions()
    with pytest.raises(ValueError, match="folder: got int; give a path"):
        vlds.Run(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_metrics: got int; give a function of one dict"):
        vlds.train("vqa.yaml", on_metrics=7)  # type: ignore[arg-type]


def test_predictions_stand_beside_their_questions(run: Path, tmp_path: Path) -> None:
    made = vlds.Run(vqa_run(run.parent / "world", tmp_path / "run", 3))
    rows = made.predictions("vqa", pictures=True)
    assert rows.columns == [
        "id", "sample", "picture", "question", "prediction", "right_answer", "confidence",
        "reference",
    ]  # fmt: skip
    row = rows[0]
    assert row["question"] == "vqa: what colour is it ?"
    assert row["prediction"] in (row["right_answer"], "no idea")
    assert str(row["right_answer"]) in COLOURS
    assert rows[:5]._repr_html_().count("<img") == 5
    plain = made.predictions()
    assert [r["question"] for r in plain] == [r["question"] for r in rows]
    assert "picture" not in plain.columns
    # Without its data, what the predictions hold is left.
    (tmp_path / "run" / "recipe.yaml").unlink()
    (bare, *_) = made.predictions()
    assert (bare["question"], bare["prediction"]) == (None, row["prediction"])


@pytest.mark.slow
def test_metrics_come_while_the_run_trains(home: Path) -> None:
    heard: list[Any] = []
    seen_early = []

    def hear(line: dict[str, object]) -> None:
        heard.append(line)
        seen_early.append(not Path("run/artifact").exists())

    run = vlds.train(home / "vqa.yaml", ranks=1, changes=changes("run"), on_metrics=hear)
    assert heard == run.metrics
    assert [line["step"] for line in heard if "loss" in line] == [1, 2, 3, 4]
    assert seen_early[0]
    assert run.finished
    (scores,) = [line["scores"] for line in heard if "scores" in line]
    assert run.scores == scores
    rows = run.predictions("vqa")
    assert len(rows) == 48
    assert "soft_score" in run._repr_html_()
    assert run.report() == Path("run/report.html")


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_enough_is_a_whole_run_of_fewer_steps(
    home: Path, background: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in the background, where a shell has programs ignore Ctrl-C."""
    steps: list[Any] = []

    def enough(line: dict[str, object]) -> bool:
        steps.append(line["step"])
        return "loss" in line and line["step"] == 3

    recipe = home / "vqa.yaml"
    ctrl_c = signal.SIG_IGN if background else signal.default_int_handler
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        run = vlds.train(recipe, ranks=1, changes=changes("run", MANY), on_metrics=enough)
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.finished
    assert run.scores
    last = run.metrics[-1]["step"]
    assert isinstance(last, int)
    assert 3 <= last < MANY
    assert f"enough: the run ends after step {last}\n" in capsys.readouterr().out
    assert run.load().tasks == ["vqa"]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Also if the tests run in the background, where a shell has programs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heeds_ctrl_c")
def test_an_error_or_ctrl_c_stops_the_run_which_resumes(home: Path) -> None:
    def fail(line: dict[str, object]) -> None:
        if line["step"] == 2:
            raise KeyError("mine")

    def interrupt(line: dict[str, object]) -> None:
        if "loss" in line and not interrupted:
            interrupted.append(line["step"])
            threading.Timer(0.05, _thread.interrupt_main).start()

    interrupted: list[object] = []
    recipe, output = home / "vqa.yaml", changes("run", MANY)
    with pytest.raises(KeyError, match="mine"):
        vlds.train(recipe, ranks=1, changes=output, on_metrics=fail)
    run = vlds.Run("run")
    assert not run.finished
    assert list(Path("run/state").glob("step-*"))
    with pytest.raises(ValueError, match="holds no artifact"):
        run.load()
    with pytest.raises(ValueError, match="holds a run already; give resume=True"):
        vlds.train(recipe, ranks=1, changes=output)
    with pytest.raises(KeyboardInterrupt):
        vlds.train(recipe, ranks=1, changes=output, resume=True, on_metrics=interrupt)
    starts = [json.loads(line) for line in Path("run/starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2
    assert starts[1]["step"] >= 2
