"""What `vlds prove` shows: the page, its JSON, exit codes."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.toys.html_reader import Reader
from tests.toys.trained_runs import write_run
from tests.toys.world import world_recipe
from vlds.cli.main import run_command
from vlds.prove.finding import EXACT, OF_LOSSES, Comparison, Finding, ShownRow, Token, roundings
from vlds.prove.page import Proof, Tried, write_proof
from vlds.prove.properties import PROPERTIES
from vlds.recipe.config import Recipe, save_recipe
from vlds.training.loss import StepLoss

EVIL = "</section><script>alert(1)</script>"


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 10, 20)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Recipe:
    return world_recipe(world, tmp_path / "run")


@pytest.fixture
def failing(recipe: Recipe) -> Proof:
    """A proof with each verdict, hostile texts, infinities and long rows."""
    pads = [Token("<pad_of_picture>", False)] * 256
    words = [Token(f" word{n}", n > 170) for n in range(180)]
    read = (*pads, Token(EVIL, False), Token("\u202e\x1b[2J", False), Token("\n", False), *words)
    rows = (
        ShownRow("vqa", EVIL, (png(224), png(8)), read, (), "word " * 300),
        ShownRow("text", "t", (), read[:2], (Token("yes", True), Token("</s>", True)), ""),
    )
    exact = Comparison("frozen weights that have moved", 0, EXACT)
    losses = Comparison(
        "losses: of each row", 0.12, roundings(OF_LOSSES, torch.float32), f"row 3 ({EVIL})"
    )
    findings = {
        "reads-right": Finding(faults=(f"asks {EVIL!r} " * 9,), notes=("cut are 3",), rows=rows),
        "gradient-parity": Finding(compared=(losses, replace(losses, difference=math.inf))),
        "batch-free": Finding(left_out="it stands on reads-right, which fails"),
        "what-trains": Finding(compared=(exact,)),
    }
    named = {each.name: each for each in PROPERTIES}
    tried = [Tried(named[name], finding, 0.5) for name, finding in findings.items()]
    return Proof(recipe, "a card", 16, 100, 125.0, tried)


def test_the_page_of_a_failing_proof(failing: Proof, tmp_path: Path) -> None:
    page = Reader(write_proof(failing, tmp_path).read_text("utf-8"))
    assert "1 of 4 properties holds, 2 fail, 1 is left out" in page.text
    assert "on a card, with vlds " in page.text
    assert [tag for tag, _ in page.tags if tag == "script"] == []
    assert page.text.count(EVIL) >= 4
    assert "\\u202e\\x1b[2J" in page.text
    assert "256 roundings of float32, each at most 6.0e-08" in page.text
    assert "nothing may differ" in page.text
    assert page.tables[0][2][1:] == ["inf", "1.5e-05", "\u2717"]
    # The picture's tokens are one chip, and the answer's are coloured and not folded.
    chips = [attrs["class"] for tag, attrs in page.tags if "token" in (attrs.get("class") or "")]
    assert "\u00d7 256" in page.text
    assert chips.count("token learned") == 1 + 9 + 2
    assert "more" in page.text
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [attrs["width"] for attrs in pictures] == ["224", "8"]
    assert all((attrs["src"] or "").startswith("data:image/png;base64,") for attrs in pictures)


def test_json_says_what_was_compared_with_what(failing: Proof, tmp_path: Path) -> None:
    write_proof(failing, tmp_path)
    tree = json.loads((tmp_path / "proof.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert (tree["holds"], tree["device"], tree["versions"]["torch"]) == (
        False, "a card", version("torch"),
    )  # fmt: skip
    assert len(tree["recipe_sha256"]) == 64
    verdicts = [each["verdict"] for each in tree["properties"]]
    assert verdicts == ["fails", "fails", "left out", "holds"]
    finite, infinite = tree["properties"][1]["compared"]
    assert (finite["difference"], infinite["difference"]) == (0.12, None)
    assert finite["source"].startswith("256 roundings of float32")
    other = replace(failing, recipe=replace(failing.recipe, seed=8))
    assert other.as_tree()["recipe_sha256"] != tree["recipe_sha256"]


def run(recipe: Recipe, out: Path, *words: str) -> int:
    file = out.with_suffix(".yaml")
    save_recipe(recipe, file)
    return run_command(["prove", str(file), "--rows", "4", "--out", str(out), *words])


ONLY = ("--only", "reads-right", "gradient-parity")


def test_a_proof_that_holds(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "proof"
    assert run(recipe, out, *ONLY, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((out / "proof.json").read_text("utf-8"))
    assert "2 of 2 properties hold; " in said.err
    page = Reader((out / "proof.html").read_text("utf-8"))
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 4
    assert "the data's answer" in page.text
    assert "</s>" in page.text
    assert not Path(recipe.output).exists()


def test_a_planted_fault_fails_the_proof(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = StepLoss.coefficients
    monkeypatch.setattr(StepLoss, "coefficients", lambda self, batch: 2 * whole(self, batch))
    assert run(recipe, tmp_path / "proof", *ONLY) == 1
    said = capsys.readouterr().out
    assert re.search(r"\] reads-right +holds", said)
    assert re.search(r"\] gradient-parity +fails", said)
    assert "failing: gradient-parity" in said
    page = (tmp_path / "proof" / "proof.html").read_text("utf-8")
    assert "1 of 2 properties holds, 1 fails" in page


def test_a_run_is_proved_with_its_weights(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(recipe)
    assert run_command(["prove", str(folder), *ONLY, "--rows", "4"]) == 0
    tree = json.loads((tmp_path / "run-proof" / "proof.json").read_text("utf-8"))
    assert tree["holds"]
    assert run_command(["prove", str(folder), "--optimizer.eps", "1"]) == 2
    assert "only keys that begin with" in capsys.readouterr().err


def test_a_refused_recipe_gets_a_page(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone")
    out = tmp_path / "proof"
    assert run(recipe, out, "--tasks.vqa.train", f"[{gone}]") == 2
    message = f"tasks.vqa: data set {gone}: no such folder"
    assert message in capsys.readouterr().err
    page = Reader((out / "proof.html").read_text("utf-8"))
    assert "vlds refuses this recipe" in page.text
    assert "While reading the recipe and its data" in page.text
    assert message in page.text
    tree: dict[str, Any] = json.loads((out / "proof.json").read_text("utf-8"))
    assert (tree["holds"], tree["properties"]) == (False, [])
    assert tree["refused"]["why"].startswith(message)


def test_what_the_bench_replaces_is_refused_too(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe's own precision and DeepSpeed file; and a recipe in which nothing trains."""
    (tmp_path / "zero.json").write_text('{"fp16": 3}', "utf-8")
    out = tmp_path / "proof"
    assert run(recipe, out, *ONLY, "--training.deepspeed", str(tmp_path / "zero.json")) == 2
    assert "zero.json has fp16 = 3" in capsys.readouterr().err
    model: Any = replace(recipe.model, train_norms=False, train_visual_embedding=False)
    optimizer = replace(recipe.optimizer, connector_learning_rate=None)
    still = replace(recipe, model=model, methods={}, optimizer=optimizer)
    assert run(still, out, *ONLY) == 2
    said = capsys.readouterr().err
    assert "nothing trains" in said
    assert "while building the model" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "gradients"], "--only: got 'gradients'; choose from: reads-right, "),
        (["--only", "learns", "--skip", "learns"], "--skip: nothing is left to try"),
        (["--skip", "learns", "my.yaml"], "--skip is 'my.yaml'; name the recipe or run before"),
        (["--rows", "100000"], "--rows is 100000; give at most 512"),
    ],
)
def test_options_that_are_wrong(
    recipe: Recipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: Sequence[str],
    said: str,
) -> None:
    assert run(recipe, tmp_path / "proof", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "proof").exists()
