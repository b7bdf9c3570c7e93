"""Run folders as the report reads them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.toys.report_run import SCORES, STORED, write_report_run
from vlds.cli.main import run_command
from vlds.data.shards.pictures import THUMBNAIL_SIZE
from vlds.evaluation.result import Evaluation, leave, read_scores, write_scores
from vlds.report.predictions import newest_predictions
from vlds.report.read import (
    GalleryEntry,
    read_gallery,
    read_run,
    scores_of,
    write_gallery,
)


def sample(**fields: Any) -> str:
    """A gallery of one example, with these fields."""
    right = {"task": "a", "id": "1", "images": [], "prompt": "", "reference": "", "prediction": ""}
    return json.dumps([right | fields])


def test_scores_survive_writing_and_reading(tmp_path: Path) -> None:
    write_scores(tmp_path, STORED)
    assert read_scores(tmp_path) == STORED
    named = {task: entry.headline for task, entry in STORED.items() if entry.headline}
    read = scores_of(read_scores(tmp_path), "adapters", named)
    assert list(read.columns) == list(SCORES.columns)
    assert read.tasks == SCORES.tasks
    tree = json.loads((tmp_path / "scores.json").read_text())
    assert "majority" not in tree["caption"]["compared"]


def test_what_scores_json_lacks_comes_from_the_metrics(tmp_path: Path) -> None:
    folder = write_report_run(tmp_path / "run")
    (folder / "scores.json").unlink()
    scores = read_run(folder).scores
    assert scores.columns == ["run"]
    assert scores.tasks["vqa"].by_column == {"run": {"first": 0.9, "vqa_accuracy": 0.75}}
    assert scores.bytes_per_rank == SCORES.bytes_per_rank
    assert scores.samples_per_second == pytest.approx(SCORES.samples_per_second)


def test_odd_lines_of_the_metrics_are_passed_over_and_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ["{}", "[]", "5", "null", '{"step": 1', '{"step": true}', '{"step": 1, "scores": 3}']
    lines += ['{"step": 1, "scores": {"vqa": 0.5}}', '{"step": 1, "scores": {"vqa": {"a": "b"}}}']
    lines += [f'{{"step": 1, {field}}}' for field in (
        '"loss": "low"', '"loss": null', '"loss/vqa": [1]', '"added/mix": "x"',
        f'"loss": 1{"0" * 400}',
        '"samples_per_second": "x"', '"trainable": 3', '"trainable": {"total": 1}',
        '"bytes_per_rank": {"frozen": "x"}',
    )]  # fmt: skip
    lines.append(f'{{"step": 1{"0" * 400}}}')
    for odd in lines:
        path.write_text(f'{{"step": 1, "loss": 2.0}}\n{odd}\n{{"step": 2, "loss": 1.0}}\n')
        read = read_run(tmp_path)
        assert read.losses == {"": [(1, 2.0), (2, 1.0)]}
        told = f"{path}: line 2 is skipped, it is not a line of metrics: '{odd[:40]}"
        assert read.damage[0].startswith(told)
    path.write_text('[]\n{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    read = read_run(tmp_path)
    assert read.losses == {"": [(1, 2.0)]}
    assert read.damage == [
        f"{path}: 2 lines are skipped, they are not lines of metrics; the first is line 1: '[]'"
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1}', r"samples\.json: it is {.*, a valid array expected; .*; remove the file"),
        ('[{"task": "vqa"}]', r"samples\.json: \[0\]\.id is missing; "),
        (sample(images=3), r"samples\.json: \[0\]\.images is 3, a valid array expected; "),
        (sample(images=["../other/gallery/a.png"]), r"a\.png' is not in gallery/; .*; remove the"),
        (sample(images=["/etc/a.png"]), r"image '/etc/a\.png' is not in gallery/; "),
        (sample(reference=None), r"reference\.str is None, .*; remove the file"),
    ],
)
def test_a_gallery_of_another_shape_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "samples.json").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_run(tmp_path)


def scored(**fields: Any) -> str:
    """Scores of one task, with these fields."""
    return json.dumps({"vqa": {"data": None, "examples": 3, "scores": {}} | fields})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "it is not JSON"),
        ('{"a": 1}', r"\(a is 1, an object expected\); write it again, or remove"),
        ('{"vqa": {"scores": {}}}', "vqa.data is missing; vqa.examples is missing"),
        (scored(odd=1), "unknown field vqa.odd"),
        (scored(examples="x"), "vqa.examples is 'x'"),
        (scored(scores={"f1": "x"}), r"vqa\.scores\.f1 is 'x'"),
        (scored(scores={"f1": 1e999}), "f1 is inf, a finite number"),
        (scored(compared={"a": {"f1": float("nan")}}), "f1 is nan"),
        (scored(examples=-3), "examples is -3, 0 or more"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=rf"scores\.json: holds no scores as .*{complaint}"):
        read_run(tmp_path)


def test_an_evaluation_says_which_one_of_the_training_it_came_after(tmp_path: Path) -> None:
    """In a run's own folder, so that a copy knows it too."""
    evaluation = Evaluation("vqa", {"exact_match": 1.0}, {"1": "red"}, {"1": "red"})
    leave([evaluation], tmp_path / "elsewhere", scores=True)
    folder = tmp_path / "run" / "predictions"
    for name in ("step-99999999", "step-100000000", "step-x", "blank"):
        evaluation.write(folder / name)
    leave([evaluation], folder, scores=True)
    files = [tmp_path / "elsewhere", folder / "step-99999999", folder]
    lines = [json.loads((file / "vqa.jsonl").read_text()) for file in files]
    assert [line.get("after") for line in lines] == [None, None, 100_000_000]
    notes: list[str] = []
    assert newest_predictions(tmp_path / "run", notes) == {"vqa": folder / "vqa.jsonl"}
    assert notes == []


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_pictures_become_thumbnails_and_broken_ones_are_left_out(tmp_path: Path) -> None:
    """Of any mode; turned ones stand upright, deep ones are not white, small ones are as before."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [
        encoded(Image.new("CMYK", (1000, 500)), "JPEG"),
        encoded(Image.new("RGB", (400, 300)), "JPEG", exif=exif),
        encoded(Image.new("I;16", (200, 150), 128 << 8), "PNG"),
        b"no picture",
        encoded(Image.new("RGB", (48, 48), (1, 2, 3)), "PNG"),
    ]
    entry = GalleryEntry("nlvr", "n", [], "Both.", "true", "false", False, 0.25)
    write_gallery(tmp_path, [(entry, pictures)])
    (read,) = read_gallery(tmp_path)
    assert read.confidence == 0.25
    large, upright, gray, small = (Image.open(tmp_path / name) for name in read.images)
    assert large.size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE // 2)
    assert (large.mode, large.format) == ("RGB", "JPEG")
    assert upright.size == (240, 320)
    assert not upright.getexif()
    assert gray.getpixel((9, 9)) == (128, 128, 128)
    assert read.images[-1] == "gallery/0000-4.png"
    assert small.getcolors() == [(48 * 48, (1, 2, 3))]


def test_strangers_among_runs_are_named_and_the_others_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell expands `vlds report runs/*` to files, too."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "scores": {"vqa": {"exact_match": 0.5}}}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    names = [str(tmp_path / name) for name in ("empty", "notes.txt", "run")]
    assert run_command(["report", *names, "--format", "md"]) == 2
    said = capsys.readouterr()
    assert "0.500" in said.out
    assert f"left out: {names[0]}: holds neither metrics.jsonl nor" in said.err
    assert f"left out: {names[1]}: is a file; name a folder" in said.err
    assert run_command(["report", *names[:2]]) == 2
    assert run_command(["report", names[2], "--format", "md"]) == 0
