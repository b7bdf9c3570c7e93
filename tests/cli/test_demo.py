"""What the demo prints while it runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from vlds.cli.demo import (
    FOLDER,
    RECIPES,
    SHIPPED,
    asked_about,
    beside_shipped,
    first_right_caption,
    run_demo,
    stages_of,
)
from vlds.cli.supervisor import Stage, StageError, as_typed, run_stage, say_stage
from vlds.report.read import GalleryEntry
from vlds.runtime.process import find, python


def stages(whole: bool) -> list[Stage]:
    recipes = {name: Path(FOLDER, "recipes", f"{name}.yaml") for name in RECIPES}
    return stages_of(Path(FOLDER), recipes, 0, 2, whole=whole)


@pytest.mark.parametrize("terminal", [True, False])
def test_headings_fit_and_commands_are_whole(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    for number, stage in enumerate([*stages(True), *stages(False)], 1):
        say_stage(stage, f"{number} of 6")
        heading, command = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
        assert heading.startswith(f"{number} of 6: {stage.purpose} ─")
        assert len(heading) == 80
        assert command == as_typed(stage.command)


def test_a_backbone_that_is_made_is_compared_with_the_shipped_one(tmp_path: Path) -> None:
    made = tmp_path / "backbone"
    shutil.copytree(find(SHIPPED), made)
    with pytest.raises(ValueError, match="backbone is the shipped backbone; name another folder"):
        run_demo(tmp_path, 0, 2, whole=True)
    assert beside_shipped(made).endswith("is the shipped backbone, byte for byte")
    weights = bytearray((made / "vision.safetensors").read_bytes())
    weights[-1] ^= 1
    (made / "vision.safetensors").write_bytes(weights)
    assert "is not the shipped backbone: vision.safetensors differ" in beside_shipped(made)


def test_a_stage_is_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage("ask its version", tmp_path, python("-m", "vlds", "--version"))
    run_stage(stage, "1 of 1", {})
    heading, command, version, _ = capfd.readouterr().out.splitlines()
    assert heading.startswith("1 of 1: ask its version ")
    assert command == "vlds --version"
    assert version.startswith("vlds ")
    with pytest.raises(StageError, match=r"`./no_such_program` ended with exit code 1"):
        run_stage(Stage("do it", tmp_path, ["./no_such_program"]), "1 of 1", {})
    assert capfd.readouterr().err == "./no_such_program: No such file or directory\n"


def test_the_example_of_use_is_right() -> None:
    """The first caption that equals one of its references and whose picture exists."""
    true = ["a box", "one box"]
    captions = [("1.png", "a disc"), ("", "a box"), ("3.png", "one box"), ("4.png", "a box")]
    entries = [GalleryEntry("vqa", "0", ["gallery/0.png"], "what?", "box", "box", True)] + [
        GalleryEntry("caption", "1", [f"gallery/{name}"] if name else [], "", true, told)
        for name, told in captions
    ]
    assert first_right_caption(entries) is entries[3]
    assert first_right_caption(entries[:3]) is None
    command = as_typed(asked_about(entries[3], Path("runs/demo/adapters")))
    assert command.endswith(
        "predict --run runs/demo/adapters --task caption --image runs/demo/adapters/gallery/3.png"
    )
