"""The Python door: docs/python.md's examples run as they stand."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlds
from tests.training.world import world_recipe, write_world
from vlds.artifact import own_tensors, save_artifact
from vlds.config import save_recipe
from vlds.models.build import build_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's reader has: a recipe, shards, a picture; the working directory."""
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
    """An untrained run in runs/mine, with the one task vqa."""
    recipe = world_recipe(home / "world", home / "runs" / "mine")
    recipe = recipe.__class__(**{**recipe.__dict__, "tasks": {"vqa": recipe.tasks["vqa"]}})
    torch.manual_seed(0)
    tokenizer = recipe.backbone.load_tokenizer()
    model = build_model(recipe.model, list(recipe.tasks), torch.float32, tokenizer)
    save_artifact(home / "runs" / "mine" / "artifact", own_tensors(model), recipe, tokenizer)
    return home / "runs" / "mine"


def test_the_page_answers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[2], str(PAGE), "exec"), {})
    *_, answer, tasks = capsys.readouterr().out.splitlines()
    assert re.search(r"0\.\d\d \d+\.\d{3} s$", answer)
    assert tasks == "['vqa']"


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


def test_a_turned_photo_is_turned_back(run: Path) -> None:
    """As the same photo is, read from its file."""
    picture = Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3))
    exif = picture.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    model = vlds.load(run)
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        one = model.answer(opened, "what colour is it")
    assert one.confidence == model.answer(buffer.getvalue(), "what colour is it").confidence


def test_mistakes_are_value_errors(run: Path) -> None:
    model = vlds.load(run)
    with pytest.raises(ValueError, match=r"^NO\.jpg: No such file or directory$"):
        model.answer("NO.jpg", "what colour is it")
    with pytest.raises(ValueError, match="the task vqa needs one"):
        model.answer("PHOTO.jpg")
    with pytest.raises(ValueError, match="no task caption; its tasks: vqa"):
        model.answer("PHOTO.jpg", task="caption")
    with pytest.raises(ValueError, match=r"got an array of float64 and shape \(2, 3\); give uint8"):
        model.answer(np.zeros((2, 3)), "what colour is it")
    with pytest.raises(ValueError, match="holds no artifact"):
        vlds.load("shards")


def test_importing_it_imports_nothing_heavy() -> None:
    program = "import sys, vlds; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        vlds.lode  # noqa: B018


def test_a_wrong_recipe_is_a_value_error(home: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.step.*did you mean"):
        vlds.train("vqa.yaml", changes={"training.step": 4})


@pytest.mark.slow
def test_the_page_trains_and_scores(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[0], str(PAGE), "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "runs/mine"
    assert (home / "runs" / "mine" / "artifact").is_dir()
    exec(compile(BLOCKS[1], str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    number = next(n for n, line in enumerate(lines) if re.fullmatch(r"vqa \S+@\w{16} 48", line))
    assert all(re.fullmatch(r"  \w+ \d\.\d{3}", line) for line in lines[number + 1 :])
    with pytest.raises(ValueError, match="holds a run already; add --resume"):
        exec(compile(BLOCKS[0], str(PAGE), "exec"), {})
