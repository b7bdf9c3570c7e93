"""Leaderboards' files: written, read back, and scored without a model, whoever wrote them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import read_lines
from tests.toys.task_samples import ANNOTATIONS, LABELS
from vlds.cli.main import COMMANDS, run_command
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source, fixed_example, survey
from vlds.evaluation.prediction_files import read_pairs, write_submissions
from vlds.evaluation.result import Evaluation
from vlds.tasks import GQA, NLVR2, VQA, Caption, Task, VideoCaption, VideoQA

TASKS: dict[str, Task] = {
    "vqa": VQA(),
    "gqa": GQA(),
    "nlvr2": NLVR2(),
    "caption": Caption(),
    "video_qa": VideoQA(),
    "video_caption": VideoCaption(),
}
NAMES = {"video_qa": "how2qa", "video_caption": "tvc"}
FILES = {
    "vqa": "vqa-test.json",
    "gqa": "gqa-test.json",
    "nlvr2": "nlvr2-test.csv",
    "caption": "caption-test.json",
    "video_qa": "value.zip",
    "video_caption": "value.zip",
}
EXPECTED: dict[str, Any] = {
    "vqa": [{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": "2"}],
    "gqa": [{"questionId": "01", "prediction": "yes"}, {"questionId": "02", "prediction": "dog"}],
    "nlvr2": "dev-1-0-0,True\ndev-1-0-1,False\n",
    "caption": [{"image_id": 7, "caption": "a red circle"}],
    "video_qa": {"7": 1, "8": 0},
    "video_caption": [{"clip_id": 7, "descs": [{"desc": "Ann waves."}]}],
}
"""What the leaderboards' pages show, for the right answers."""


def write_data(folder: Path, kind: str, split: str = "test", labels: bool = True) -> Source:
    """One sample of a kind, its ids as the leaderboard's are."""
    annotations = [dict(annotation) for annotation in ANNOTATIONS[kind]]
    for annotation in annotations:
        if kind == "vqa":
            annotation["id"] = annotation["id"].removeprefix("q")
        for label in () if labels else LABELS:
            annotation.pop(label, None)
    record = SampleRecord(id="7", members=[("jpg", b"-")], json={"annotations": annotations})
    write_dataset(folder, name=NAMES.get(kind, kind), kind=kind, split=split, records=[record])
    return Source(kind, TASKS[kind], [open_dataset(folder)])


def right_answers(source: Source) -> Evaluation:
    """As if a model had answered everything rightly."""
    asked = survey(source, range(1))
    sample = source.datasets[0].read(0)
    told = {
        example.id: example.target or ""
        for example in (
            fixed_example(source, source.datasets[0].label, sample, n)
            for n in ([-1] if source.task.unit == "sample" else range(len(sample.annotations)))
        )
    }
    return Evaluation(source.name, {}, told, dict(zip(asked.ids, asked.references, strict=True)))


def words_for(file: Path, *data: Path) -> list[str]:
    """The command line that scores a file on data sets."""
    return ["evaluate", "--predictions", str(file), "--data", *map(str, data)]


def content(file: Path, kind: str) -> Any:
    """What a file holds, the one member of a zip in its place."""
    if kind not in NAMES:
        text = file.read_text("utf-8")
        return text if file.suffix == ".csv" else json.loads(text)
    with zipfile.ZipFile(file) as archive:
        (name,) = archive.namelist()
        split = "test_public" if kind == "video_qa" else "test"
        suffix = "json" if kind == "video_qa" else "jsonl"
        assert name == f"{NAMES[kind]}/{NAMES[kind]}_{split}_predictions.{suffix}"
        text = archive.read(name).decode()
    return json.loads(text) if kind == "video_qa" else [json.loads(t) for t in text.splitlines()]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind == "video_qa" else [pytest.mark.slow]) for kind in TASKS],
)
def test_written_as_the_leaderboards_want_it_and_scored_without_a_model(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_data(tmp_path / "data", kind)
    (said,) = write_submissions([source], [right_answers(source)], tmp_path)
    file = tmp_path / FILES[kind]
    assert said.startswith(str(file))
    assert content(file, kind) == EXPECTED[kind]
    assert run_command(words_for(file, tmp_path / "data")) == 0
    lines = capsys.readouterr().out.splitlines()
    num = 1 if source.task.unit == "sample" else 2
    assert lines[0] == f"{type(source.task).__name__} ({source.datasets[0].label}, {num} examples)"
    told = [line.strip() for line in lines[1:] if "means nothing" not in line]
    pairs = [line.rsplit(None, 1) for line in told]
    scores = {name: float(value) for name, value in pairs}
    assert scores
    if source.task.unit == "sample":  # one caption has no CIDEr, and no four words
        scores = {"word_f1": scores["word_f1"]}
    assert all(value == 1 for value in scores.values())
    assert max(map(len, lines)) <= 80


def test_our_own_file_is_scored_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_data(tmp_path / "data", "gqa")
    right_answers(source).write(tmp_path)
    words = words_for(tmp_path / "gqa.jsonl", tmp_path / "data")
    assert run_command([*words, "--task", "GQA", "--out", str(tmp_path / "out")]) == 0
    assert "  accuracy/structural/query   1.0000\n" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert scores["GQA"]["scores"]["accuracy"] == 1.0
    lines = read_lines(tmp_path / "out" / "GQA.jsonl")
    assert {line["sample"] for line in lines} == {source.datasets[0].read(0).id}


def test_several_data_sets_have_a_file_each(tmp_path: Path) -> None:
    """And the ids that they have there."""
    sources = [write_data(tmp_path / split, "vqa", split) for split in ("dev", "std")]
    both = Source("vqa", VQA(), [source.datasets[0] for source in sources])
    asked = survey(both, range(2))
    assert asked.ids[0] == "vqa-dev/1"
    assert asked.samples[0] == f"vqa-dev/{sources[0].datasets[0].read(0).id}"
    predictions = {key: f"answer to {key}" for key in asked.ids}
    write_submissions([both], [Evaluation("vqa", {}, predictions, {})], tmp_path)
    for split in ("dev", "std"):
        found = dict(read_pairs(tmp_path / f"vqa-{split}.json"))
        assert found == {n: f"answer to vqa-{split}/{n}" for n in ("1", "2")}


def write_clips(folder: Path, name: str, split: str, rights: dict[str, int]) -> Source:
    """Questions on one clip: id -> number of the right choice."""
    asked = [
        {"id": key, "question": "q", "choices": ["x", "y", "z"], "span": "1-2", "answer_index": n}
        for key, n in rights.items()
    ]
    record = SampleRecord(id="v", members=[("jpg", b"-")], json={"annotations": asked})
    write_dataset(folder / f"{name}-{split}", name=name, kind="video_qa", split=split,
                  records=[record])  # fmt: skip
    return Source(name, VideoQA(), [open_dataset(folder / f"{name}-{split}")])


def test_a_zip_of_several_data_sets_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each by its own member, though the ids of all of them are the same."""
    sources = [
        write_clips(tmp_path, "tvqa", "val", {"1": 0, "2": 1}),
        write_clips(tmp_path, "tvqa", "test", {"1": 2, "2": 2}),
        write_clips(tmp_path, "how2qa", "test", {"1": 1, "2": 1}),
    ]
    told = [
        {"1": "a0", "2": "a1"},  # both right
        {"1": "a2", "2": "a0"},  # one
        {"1": "a0", "2": "a0"},  # none
    ]
    both = Source("tvqa", VideoQA(), [sources[0].datasets[0], sources[1].datasets[0]])
    apart = {
        f"tvqa-{split}/{key}": text
        for split, own in zip(("val", "test"), told[:2], strict=True)
        for key, text in own.items()
    }
    evaluations = [Evaluation("tvqa", {}, apart, {}), Evaluation("how2qa", {}, told[2], {})]
    write_submissions([both, sources[2]], evaluations, tmp_path)
    expected = {
        ("tvqa-val",): 1.0,
        ("tvqa-test",): 0.5,
        ("how2qa-test",): 0.0,
        ("tvqa-val", "tvqa-test"): 0.75,
    }
    for names, accuracy in expected.items():
        words = words_for(tmp_path / "value.zip", *(tmp_path / name for name in names))
        assert run_command(words) == 0
        assert f"  accuracy  {accuracy:.4f}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "ids", "why"),
    [
        ("vqa", ("q1", "2"), "id 'q1' is not a whole number"),
        ("nlvr2", ("dev,1-0-0", "dev-1-0-1"), "id 'dev,1-0-0' has a comma"),
    ],
)
def test_ids_that_no_leaderboard_knows(
    kind: str, ids: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    source = write_data(tmp_path / "data", kind)
    told = Evaluation(kind, {}, dict.fromkeys(ids, "true"), {})
    (said,) = write_submissions([source], [told], tmp_path)
    assert said.startswith(f"no leaderboard's file for {kind}-test: {why}")
    assert not (tmp_path / FILES[kind]).exists()


def test_answers_that_a_form_cannot_hold_stand_there_as_something_wrong(tmp_path: Path) -> None:
    source = write_data(tmp_path / "data", "nlvr2")
    told = Evaluation("nlvr2", {}, {"dev-1-0-0": "", "dev-1-0-1": "True"}, {})
    _, said = write_submissions([source], [told], tmp_path)
    assert (tmp_path / "nlvr2-test.csv").read_text() == "dev-1-0-0,False\ndev-1-0-1,True\n"
    assert "1 predictions are neither true nor false: written as False (dev-1-0-0)" in said
    source = write_data(tmp_path / "clips", "video_qa")
    told = Evaluation("video_qa", {}, {"7": "Ann", "8": "a1"}, {})
    _, said = write_submissions([source], [told], tmp_path)
    assert "name no choice: written as -1, which is always wrong (7)" in said
    assert content(tmp_path / "value.zip", "video_qa") == {"7": -1, "8": 1}


def score(tmp_path: Path, kind: str, text: str, name: str) -> None:
    """`vlds evaluate --predictions` on one file."""
    write_data(tmp_path / "data", kind)
    (tmp_path / name).write_text(text, encoding="utf-8")
    COMMANDS["evaluate"](words_for(tmp_path / name, tmp_path / "data")[1:])


RED, TWO = '{"question_id": 1, "answer": "red"}', '{"question_id": 2, "answer": "2"}'
UNKNOWN = TWO.replace("2,", "5,")
TEXT_ID = RED.replace("1", '"1"')
OURS, NUMBER = '{"id": "1", "prediction": "red"}', '{"id": 2, "prediction": "2"}'
NO_COMMA = r"vqa.jsonl, line 3 is not JSON \(Expecting ',' delimiter: column \d+\)"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("vqa.json", f"[{RED}]", "1 of 2 .* no prediction: 2"),
        ("vqa.json", f"[{RED}, {TWO}, {UNKNOWN}]", "a prediction but no reference: 5"),
        ("vqa.json", f"[{RED}, {RED}]", "1 ids appear twice: 1; give each one prediction"),
        ("vqa.json", "[]", "vqa.json holds no predictions"),
        ("vqa.json", "{", "vqa.json is not JSON"),
        ("vqa.json", '[{"question": 1}]', "entry 1: not a known form of predictions"),
        ("vqa.json", f"[{TEXT_ID}]", "entry 1: question_id is '1'; a whole number is needed"),
        ("nlvr2.csv", "dev-1-0-0,yes\n", "'dev-1-0-0,yes'; give lines `identifier,True`"),
        ("video_qa.json", '{"7": "a1"}', "7 has 'a1'; one object is the form of TVQA"),
        ("video_qa.json", '{"7": 1, "7": 0, "8": 0}', "video_qa.json: 1 ids appear twice: 7; give"),
        ("vqa.jsonl", f"{OURS}\n\n{OURS[:-1]}\n", NO_COMMA),
        ("vqa.jsonl", f"\n{OURS}\n{NUMBER}", "vqa.jsonl, line 3: id is 2; a text is needed"),
        ("vqa.jsonl", OURS.replace('"red"', "1e999"), r"vqa.jsonl, line 1: 1e999 is not a number"),
        ("video_qa.zip", "no zip", "video_qa.zip: File is not a zip file"),
        # What no reader takes.
        ("nlvr2.csv", f'"{"a" * 200_000}",True\n', r"^--predictions: .*/nlvr2\.csv is not CSV \("),
        ("vqa.json", f'{{"1": {"9" * 5000}}}', r"^--predictions: .*/vqa\.json: Exceeds the limit"),
        ("vqa.json", "[" * 200, r"^--predictions: .*/vqa\.json: it is nested more than 100 levels"),
    ],
)
def test_files_that_cannot_be_scored(name: str, text: str, complaint: str, tmp_path: Path) -> None:
    """The name begins with the kind of the data."""
    with pytest.raises(ValueError, match=complaint):
        score(tmp_path, name.partition(".")[0], text, name)


def test_line_ends_of_other_kinds_are_text(tmp_path: Path) -> None:
    """As JSON that does not escape them has them."""
    caption = "a man\u2028walks\u0085in"
    row = {"clip_id": 7, "descs": [{"desc": caption}]}
    file = tmp_path / "told.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_pairs(file) == [("7", caption)]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--data DATA", r"no.json: No such file or directory; name a file"),
        ("", r"^--data: name the data sets that the predictions are"),
        ("--data DATA --task Nope", r"^--task: Nope is not a task \(GQA reads gqa, "),
        (
            "--data DATA --out DATA/dataset.json",
            r"^--out: cannot write .*dataset\.json: File exists",
        ),
    ],
)
def test_words_that_cannot_be(words: str, complaint: str, tmp_path: Path) -> None:
    write_data(tmp_path / "data", "vqa")
    given = words.replace("DATA", str(tmp_path / "data")).split()
    with pytest.raises(ValueError, match=complaint):
        COMMANDS["evaluate"](["--predictions", "no.json", *given])


def test_empty_predictions_and_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = '[{"question_id": 1, "answer": ""}, {"question_id": 2, "answer": "2"}]'
    score(tmp_path, "vqa", told, "a.json")
    out = capsys.readouterr().out
    assert re.search(r"vqa_accuracy +0\.5000", out)
    assert "1 predictions are empty, and scored so" in out
    write_data(tmp_path / "bare", "vqa", labels=False)
    assert run_command(words_for(tmp_path / "a.json", tmp_path / "bare")) == 0
    assert "no scores: the data have no labels" in capsys.readouterr().out
