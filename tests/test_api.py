"""The Python interface: the examples of docs/python.md and docs/attach.md run unchanged."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlds
from tests.toys.files import ROOT
from tests.toys.trained_runs import built_run, save_run
from tests.toys.world import world_recipe, write_world
from vlds.artifact import TrainedOn, read_trained_on
from vlds.data.shards.pictures import MAX_PIXELS
from vlds.evaluation.sources import encode_picture
from vlds.recipe.config import save_recipe

PAGE = ROOT / "docs" / "python.md"
_, PACK, TRAIN, SCORE, ANSWER, DATA, LOOP, ATTACH = (
    block
    for page in (PAGE, PAGE.with_name("attach.md"))
    for block in re.findall(
        r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the page's reader, with a recipe, shards and a picture."""
    write_world(tmp_path / "world")
    recipe = world_recipe(tmp_path / "world", tmp_path / "unused")
    save_recipe(recipe, tmp_path / "vqa.yaml")
    for split in ("train", "test"):
        (tmp_path / "shards" / "mine").mkdir(parents=True, exist_ok=True)
        (tmp_path / "shards" / "mine" / split).symlink_to(tmp_path / "world" / "vqa")
    Image.new("RGB", (40, 30), (220, 30, 30)).save(tmp_path / "PHOTO.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(home: Path) -> Path:
    """An untrained run in runs/mine, with the single task vqa."""
    recipe = world_recipe(home / "world", home / "runs" / "mine")
    recipe = replace(recipe, tasks={"vqa": recipe.tasks["vqa"]})
    return save_run(built_run(recipe))


def run_block(text: str) -> None:
    exec(compile(text, str(PAGE), "exec"), {})


def test_the_page_answers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(ANSWER)
    *_, answer, rows = capsys.readouterr().out.splitlines()
    assert re.search(r"0\.\d\d \d+\.\d{3} s$", answer)
    assert re.fullmatch(r"\['vqa'\] \['.*', '.*'\]", rows)


def test_the_page_reads_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(DATA)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # 48 questions, 8 a batch
    assert all(re.fullmatch(r"what colour is it (now )*\? (red|green|blue)", e) for e in lines)


def test_the_page_has_a_loop_and_attaches(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(LOOP)
    assert vlds.load("runs/own").tasks == ["vqa", "caption"]
    run_block(ATTACH)
    about, folder = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r"LoRA in T5ForConditionalGeneration: .* weights train \(.* %\)", about)
    assert folder == "lora"


def test_a_picture_is_a_picture_in_any_form(run: Path) -> None:
    model = vlds.load(str(run))
    with Image.open("PHOTO.jpg") as opened:
        opened.load()
        forms = [Path("PHOTO.jpg"), Path("PHOTO.jpg").read_bytes(), opened, np.asarray(opened)]
    question = "what colour is it"
    told = [model.answer(form, question) for form in forms]
    assert len({answer.text for answer in told}) == 1
    assert len({round(answer.confidence, 6) for answer in told}) == 1
    assert {answer.task for answer in told} == {"vqa"}
    assert model.answer([forms[0]], question).confidence == told[0].confidence


def test_a_list_has_as_many_pictures_as_the_task_has_learned_to_read(home: Path) -> None:
    recipe = world_recipe(home / "world", home / "runs" / "mine")
    known = {"vqa": TrainedOn(48, 1), "caption": TrainedOn(None, 2)}
    model = vlds.load(save_run(replace(built_run(recipe), trained_on=known)))
    with pytest.raises(ValueError, match=r"^image: got 2, and the task vqa takes 1$"):
        model.answer(["PHOTO.jpg", "PHOTO.jpg"], "what colour is it", task="vqa")
    assert model.answer(["PHOTO.jpg"], "what colour is it", task="vqa").task == "vqa"
    assert model.answer(["PHOTO.jpg"] * 2, task="caption").task == "caption"


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


NOISE = Image.effect_noise((40, 30), 99)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("turned.png", "RGB", {"exif": turned()}),
        ("print.jpg", "CMYK", {}),
        ("palette.png", "P", {"transparency": bytes(range(256))}),
    ],
)
def test_an_opened_picture_is_that_of_its_file(
    run: Path, name: str, mode: str, options: dict[str, Any]
) -> None:
    """Its colours and turns, without a warning."""
    picture = NOISE.convert("RGB").convert(mode) if mode == "CMYK" else NOISE.convert(mode)
    picture.save(name, **options)
    forms: list[Any] = [name, *([picture.convert("RGB")] if mode == "P" else [])]
    model = vlds.load(run)
    with Image.open(name) as opened, warnings.catch_warnings():
        assert opened.mode == mode
        warnings.simplefilter("error")
        answers = [model.answer(form, "what is it") for form in (opened, *forms)]
    assert len({answer.confidence for answer in answers}) == 1


ADDRESS = "https://x.org/a.jpg"
WRONG_QUESTION: list[tuple[Any, dict[str, Any], str]] = [
    ("NO.jpg", {}, r"^NO\.jpg: No such file or directory$"),
    (ADDRESS, {}, r"^https:/.*a\.jpg: a picture is read from a file"),
    (Path(ADDRESS), {}, r"^https:/.*a\.jpg: a picture is read from a file"),
    ("PHOTO.jpg", {"question": ""}, "the task vqa needs one"),
    ("PHOTO.jpg", {"question": "  \u00a0\u3000\t"}, "question: the task vqa needs one"),
    ("PHOTO.jpg", {"question": "\0"}, "question: the task vqa needs one"),
    ("PHOTO.jpg", {"question": b"what"}, "question: got bytes; give a str"),
    ("PHOTO.jpg", {"question": None}, "question: got NoneType; give a str"),
    (
        "PHOTO.jpg",
        {"question": "what \ud800?"},
        "question: character 6 is half of a surrogate",
    ),
    ("PHOTO.jpg", {"task": "caption"}, "no task caption; its tasks: vqa"),
    ("PHOTO.jpg", {"task": "vqaa"}, r"no task vqaa; did you mean 'vqa'\? its tasks: vqa"),
    ("PHOTO.jpg", {"task": ["vqa"]}, "task: got list; give the name of a task: vqa"),
]


def test_mistakes_are_value_errors(run: Path) -> None:
    model = vlds.load(run, changes={"tasks.vqa.evaluate": [Path("shards/mine/test")]})
    for picture, words, message in WRONG_QUESTION:
        with pytest.raises(ValueError, match=message):
            model.answer(picture, **({"question": "what colour is it"} | words))
    with pytest.raises(ValueError, match="holds no artifact"):
        vlds.load("shards")


def pixels_of(encoded: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(encoded)) as opened:
        return np.asarray(opened.convert("RGB"))


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
         "LAB", "I", "F", "I;16", "I;16L", "I;16B")  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_may_have_any_mode(mode: str) -> None:
    assert pixels_of(encode_picture(Image.new(mode, (4, 3)))).shape == (3, 4, 3)


def test_arrays_may_be_grey_with_a_channel_and_bytes_a_view() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert encode_picture(grey[..., None]) == encode_picture(grey)
    assert (pixels_of(encode_picture(grey))[..., 0] == grey).all()
    assert encode_picture(bytearray(b"x")) == encode_picture(memoryview(b"x")) == b"x"


NOT_PICTURES: list[tuple[Any, str]] = [
    (np.zeros((3, 8, 9), np.uint8), r"shape \(3, 8, 9\).*channels first\? .*transpose\(1, 2, 0\)"),
    (np.zeros((8, 9, 2), np.uint8), r"shape \(8, 9, 2\); give uint8, \(height, width\), .*4\)$"),
    (np.zeros((2, 8, 9, 3), np.uint8), r"shape \(2, 8, 9, 3\)"),
    (np.zeros((2, 3)), r"got an array of float64 and shape \(2, 3\); give uint8"),
    (np.zeros((), np.uint8), r"shape \(\)"),
    (np.zeros((0, 9), np.uint8), "9 wide and 0 high; give at least one pixel"),
    (np.zeros((0, 9, 3), np.uint8), "9 wide and 0 high; give at least one pixel"),
    (np.zeros((1, MAX_PIXELS + 1), np.uint8), "at most 89,478,485"),
    (Image.new("L", (0, 9)), "0 wide and 9 high"),
    (torch.zeros(3, 8, 9), "got Tensor; give a path, the bytes of a file, a Pillow image or"),
    (None, "got NoneType; give a path"),
    ([[0, 1], [2, 3]], "got list; give a path"),
    (io.BytesIO(b"x"), "got BytesIO; give a path"),
    ("", "the path is empty"),
    ([""], "the path is empty"),
    ("a\0b", r"picture: no file can have the name 'a\\x00b'"),
    ("\ud800", r"picture: no file can have the name '\\ud800'"),
    (PAGE.parent, "docs: a folder, not a regular file"),
]


@pytest.mark.parametrize(("picture", "message"), NOT_PICTURES)
@pytest.mark.filterwarnings("error")
def test_what_is_not_a_picture_is_a_value_error(picture: Any, message: str) -> None:
    """The check comes before the run is asked."""
    no_run: Any = SimpleNamespace(answer=None)
    with pytest.raises(ValueError, match=message):
        vlds.Model(no_run, Path()).answer(picture, "what colour is it")


def test_a_cut_or_closed_pillow_image_is_a_value_error() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((60, 60), 99).save(buffer, "PNG")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:900]))
    with cut, pytest.raises(ValueError, match="closed, truncated or damaged"):
        encode_picture(cut)
    with Image.open(io.BytesIO(buffer.getvalue())) as closed:
        pass
    with pytest.raises(ValueError, match="closed, truncated or damaged"):
        encode_picture(closed)


@pytest.mark.slow
def test_threads_may_share_a_pillow_image_that_is_not_decoded_yet() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((900, 900), 99).save(buffer, "PNG")
    for _ in range(5):
        with Image.open(io.BytesIO(buffer.getvalue())) as opened, ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(encode_picture, [opened] * 8))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": b"/x"}, "run: got bytes; give a path, as str or Path"),
        ({"run": None}, "run: got NoneType; give a path"),
        ({"run": ""}, "run: the path is empty"),
        ({"changes": "x"}, "changes: got 'x'; give a dict"),
        ({"changes": {7: 1}}, r"changes: got \{7: 1\}; give a dict"),
        ({"changes": {"data.seed": {1}}}, "changes: data.seed: got set; give numbers"),
        ({"changes": {"output": Path("x")}}, "--output: not an option of this command"),
        ({"trust": "os"}, r"trust: got 'os'; give a list, such as \['my_tasks'\]"),
        ({"trust": ["no mod"]}, "trust: got 'no mod'; give the name of a Python module"),
        ({"trust": [7]}, "trust: got 7; give the name of a Python module"),
        ({"trust": ["nomod"]}, "trust: Python finds no module nomod"),
        ({"trust": ["nomod.deeper"]}, "trust: Python finds no module nomod.deeper"),
    ],
)
def test_wrong_arguments_of_load(
    run: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("vlds.recipe.paths._trusted", set())
    with pytest.raises(ValueError, match=message):
        vlds.load(**({"run": run} | arguments))


def test_a_module_of_the_working_directory_is_trusted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("vlds.recipe.paths._trusted", set())
    Path("my_tasks.py").write_text("")
    assert vlds.load(run, trust=["my_tasks"]).tasks == ["vqa"]


def test_wrong_arguments_of_train_and_evaluate(run: Path) -> None:
    wrong: Any = b"x"
    asked: list[tuple[Callable[[], object], str]] = [
        (lambda: vlds.train(wrong), "recipe: got bytes; give a path"),
        (lambda: vlds.train({"output": {1}}), "recipe: got set; give numbers"),
        (lambda: vlds.train("vqa.yaml", changes={"training.step": 4}), r"\.step.*did you mean"),
        (lambda: vlds.evaluate(wrong), "run: got bytes; give a path"),
        (lambda: vlds.evaluate(run, data=7), "data: got int; give a path"),  # type: ignore[arg-type]
        (lambda: vlds.evaluate(run, splits="tset"), "'tset': no such --split; did you mean 'test'"),
    ]
    for call, message in asked:
        with pytest.raises(ValueError, match=message):
            call()


def test_importing_it_imports_nothing_heavy() -> None:
    program = "import sys, vlds; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        vlds.lode  # noqa: B018


@pytest.mark.slow
def test_the_page_trains_and_scores(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does
    run_block(PACK)
    assert len(vlds.dataset("shards/few", "VQA")) == 1
    capsys.readouterr()
    run_block(TRAIN)
    told = capsys.readouterr().out
    assert re.fullmatch(r"runs/mine \{'vqa': \{.*\}\} 4", told.splitlines()[-1])
    assert "x1b" not in told
    assert len(re.findall(r"^step \d+/4  loss ", told, re.MULTILINE)) == 4
    assert len(re.findall(r"^[1-4] \d\.\d+$", told, re.MULTILINE)) == 4
    assert read_trained_on(home / "runs" / "mine" / "artifact") == {
        "vqa": TrainedOn(48, 1), "caption": TrainedOn(20, 1),
    }  # fmt: skip
    run_block(SCORE)
    told = capsys.readouterr().out
    assert "predictions: kept\n" in told
    lines = told.splitlines()
    number = next(n for n, line in enumerate(lines) if re.fullmatch(r"vqa \S+@\w{16} 48", line))
    assert all(re.fullmatch(r"  \w+ \d\.\d{3}", line) for line in lines[number + 1 :])
    assert (home / "kept" / "scores.json").is_file()
    vlds.evaluate("runs/mine", data="shards/mine/test")
    assert "predictions: " not in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds a run already; give resume=True"):
        run_block(TRAIN)
