"""Test data: training does without them, `vlds evaluate` and `vlds predict` read and name them."""

from __future__ import annotations

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from data_prep.packing.writer import write_dataset
from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.trained_runs import built_run, save_run
from tests.toys.world import records, world_recipe
from vlds.cli.main import run_command
from vlds.evaluation.sources import evaluation_sources
from vlds.recipe.config import Recipe
from vlds.tasks import GQA, Caption
from vlds.tasks.metrics import coco_package

NOWHERE = "no/such/folder"


def command(words: list[str]) -> tuple[int, str]:
    """A command of `vlds` on a rank, which may say how far it is after each batch: its exit code
    and what it says."""
    out = io.StringIO()
    often = mock.patch("vlds.runtime.terminal.SECONDS_BETWEEN_LINES", -1.0)
    with often, redirect_stdout(out), redirect_stderr(out):
        code = run_command(words)
    return code, out.getvalue()


def with_test(recipe: Recipe, **folders: str) -> Recipe:
    """The recipe with a folder of test data for some of its tasks."""
    tasks = {
        name: replace(task, test=[folders[name]] if name in folders else [])
        for name, task in recipe.tasks.items()
    }
    return replace(recipe, tasks=tasks)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures with eighteen questions, whose ids are numbers as those of VQA v2."""
    folder = tmp_path_factory.mktemp("data")
    asked = list(records("vqa", 9))
    for n, record in enumerate(asked):
        for k, annotation in enumerate(record.json["annotations"]):
            annotation["id"] = str(100 * n + k)
    write_dataset(folder, name="vqa", kind="vqa", split="test", records=asked)
    return folder


@pytest.fixture(scope="module")
def run(world: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, untrained, with questions to evaluate on, and questions and captions to test on."""
    recipe = world_recipe(world, tmp_path_factory.mktemp("run"))
    caption = replace(recipe.tasks["caption"], scores=["word_f1"])  # METEOR takes seconds to start
    recipe = replace(recipe, tasks=recipe.tasks | {"caption": caption})
    recipe = with_test(recipe, vqa=str(data), caption=str(world / "caption"))
    return save_run(built_run(recipe))


@pytest.mark.slow
def test_training_neither_reads_nor_needs_them(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = with_test(world_recipe(world, tmp_path / "run"), vqa=NOWHERE, caption=NOWHERE)
    recipe = replace(recipe, training=replace(recipe.training, steps=2))
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    words = ["evaluate", "--run", str(tmp_path / "run")]
    for code, out in ranks2.run(command, words, timeout=60):
        assert code == 2
        assert out.startswith(f"vlds evaluate: tasks.vqa.test: data set {NOWHERE}: no such folder;")
        assert out.endswith("; or leave test data out: --split evaluate\n")
    (code, out), _ = ranks2.run(command, [*words, "--split", "evaluate"], timeout=120)
    assert code == 0, out
    assert "vqa (vqa-train, 48 examples)" in out


@pytest.mark.slow
def test_every_list_is_scored_under_its_name(run: Path, ranks2: RankPool, tmp_path: Path) -> None:
    """By default all that the recipe names; --split chooses."""
    words = ["evaluate", "--run", str(run), "--out"]
    (code, out), (_, other) = ranks2.run(command, [*words, str(tmp_path / "all")], timeout=120)
    assert (code, other) == (0, ""), out
    heads = re.findall(r"^\S+ \(.*\)$", out, re.MULTILINE)
    assert heads == [
        "vqa (vqa-train, 48 examples)",
        "vqa.test (vqa-test, 18 examples)",
        "caption.test (caption-train, 10 examples)",
    ]
    scores = json.loads((tmp_path / "all" / "scores.json").read_text("utf-8"))
    assert list(scores) == ["vqa", "vqa.test", "caption.test"]
    (code, out), _ = ranks2.run(
        command, [*words, str(tmp_path / "one"), "--split", "test"], timeout=120
    )
    assert code == 0, out
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {"vqa.test.jsonl", "caption.test.jsonl", "scores.json"}
    for name in files - {"scores.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    one = json.loads((tmp_path / "one" / "scores.json").read_text("utf-8"))
    assert one == {name: scores[name] for name in ("vqa.test", "caption.test")}
    (code, out), _ = ranks2.run(
        command, [*words, str(tmp_path / "two"), "--split", "evaluate"], timeout=120
    )
    assert "caption: left out, its task names no data sets under `evaluate`" in out
    assert list(json.loads((tmp_path / "two" / "scores.json").read_text("utf-8"))) == ["vqa"]


def test_a_task_must_not_be_called_like_a_list(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path)
    with pytest.raises(ValueError, match=r"tasks: 'vqa\.test' cannot be a task's name"):
        replace(recipe, tasks={"vqa.test": recipe.tasks["vqa"]})


@pytest.mark.slow
def test_scores_of_other_data_do_not_take_the_place_of_the_runs_own(
    run: Path, data: Path, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """Nor do those of pictures left blank."""
    copied = tmp_path / "run"
    shutil.copytree(run, copied)

    def files() -> set[str]:
        found = (copied / "predictions").rglob("*")
        return {str(path.relative_to(copied)) for path in found if path.is_file()}

    def evaluate(*words: str) -> set[str]:
        before = files()
        (code, out), _ = ranks2.run(
            command, ["evaluate", "--run", str(copied), *words], timeout=120
        )
        assert code == 0, out
        return files() - before

    (folder,) = {str(Path(name).parent) for name in evaluate("--data", f"vqa={data}")}
    assert re.fullmatch(r"predictions/\w+-\w+@[0-9a-f]{16}", folder)
    scores = json.loads((copied / folder / "scores.json").read_text("utf-8"))
    assert scores["vqa"].keys() == {"data", "examples", "scores", "weights"}
    assert scores["vqa"]["data"].partition("@")[0] == folder.partition("/")[2].partition("@")[0]
    blank = evaluate("--split", "evaluate", "--data.blank_images", "true")
    assert blank == {"predictions/blank/vqa.jsonl", "predictions/blank/scores.json"}
    # The run's own, by another spelling of its place.
    own = evaluate("--data", f"vqa={world / 'caption' / '..' / 'vqa'}")
    assert own == {"predictions/vqa.jsonl", "predictions/scores.json"}
    lines = read_lines(copied / "predictions" / "vqa.jsonl")
    assert len({line["data"] for line in lines}) == 1


# Scores that a recipe asks for are checked before a run; `vlds evaluate` gives all of them.


def captions_recipe(world: Path, output: Path, **fields: Any) -> Recipe:
    """The world's captions, evaluated."""
    recipe = world_recipe(world, output)
    task = recipe.tasks["caption"]
    changed = replace(task, evaluate=task.train, **fields)
    return replace(recipe, tasks={"caption": changed})


def test_what_needs_java_is_refused_without_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    asked = captions_recipe(world, tmp_path, scores=["word_f1", "CIDEr"])
    with pytest.raises(
        ValueError, match=r"^tasks\.caption\.scores: CIDEr was asked for, and .* missing \("
    ):
        evaluation_sources(asked)
    assert len(evaluation_sources(captions_recipe(world, tmp_path))) == 1
    untouched = replace(asked.tasks["caption"], evaluate=[])
    assert evaluation_sources(replace(asked, tasks={"caption": untouched}))[0].datasets == []


def test_what_is_left_out_without_java_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the scores that there are; and nothing where those were asked for."""
    monkeypatch.setenv("PATH", "")
    write_dataset(
        tmp_path / "data", name="c", kind="caption", split="val", records=records("caption", 2)
    )
    told = [{"id": f"caption-{number}", "prediction": "it is red"} for number in range(2)]
    (tmp_path / "told.json").write_text(json.dumps(told), encoding="utf-8")
    words = ["--predictions", str(tmp_path / "told.json"), "--data", str(tmp_path / "data")]
    assert run_command(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    assert re.search(r"cider_plain_tokens +\d", out)
    assert "left out are CIDEr, BLEU, METEOR and ROUGE-L: " in out
    assert "missing (" in out
    assert "cider_plain_tokens of 2 pictures means nothing" in out
    assert run_command(["evaluate", *words, "--scores", "[word_f1]"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == []


def test_a_file_that_a_score_needs_is_asked_for(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path)
    task = GQA(evaluate=["shards/gqa-val"], choices="eval/absent.json")
    with pytest.raises(ValueError, match=r"^tasks\.gqa\.choices: eval/absent\.json is neither"):
        evaluation_sources(replace(recipe, tasks={"gqa": task}))


def evaluate_run(run: Path) -> str:
    """What `vlds evaluate` prints on a rank."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert run_command(["evaluate", "--run", str(run)]) == 0
    return printed.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(coco_package.missing() is not None, reason=str(coco_package.missing()))
def test_evaluate_gives_more_scores_than_training(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = captions_recipe(world, tmp_path / "run")
    recipe = replace(recipe, training=replace(recipe.training, steps=1, save_every=1))
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    first, *others = ranks2.run(evaluate_run, tmp_path / "run", timeout=300)
    assert others == [""]
    shown = re.findall(r"^  (\S+) +\d\.\d{4}$", first, re.MULTILINE)
    assert shown == [
        "CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "word_f1",
    ]  # fmt: skip
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    assert '"CIDEr"' in metrics
    assert "METEOR" not in metrics
    assert isinstance(recipe.tasks["caption"], Caption)
