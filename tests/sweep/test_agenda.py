"""What a sweep says before it starts, its time, and how it ends where no run is left to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.toys.files import write_lines
from tests.toys.processes import holder
from tests.toys.world import world_recipe, write_world
from vlds.cli.main import run_command
from vlds.cli.sweep import estimate
from vlds.cli.sweep_work import CLAIMS, SweepWork, preparation_parts
from vlds.recipe.config import save_recipe
from vlds.report.sweep import SweepRun, folder_name, read_sweep, runs_of
from vlds.runtime.json_files import write_manifest


@pytest.fixture
def file(tmp_path: Path) -> str:
    write_world(tmp_path)
    recipe = world_recipe(tmp_path, tmp_path / "unused")
    save_recipe(replace(recipe, training=replace(recipe.training, steps=50)), tmp_path / "a.yaml")
    tree = {
        "output": str(tmp_path / "table"),
        "recipes": {"row": str(tmp_path / "a.yaml")},
        "seeds": [0, 1, 2],
        "scores": {"vqa": "soft_score"},
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(tree))
    return str(tmp_path / "table.yaml")


def finish(run: SweepRun) -> None:
    """Make a run that has ended, with two seconds a step."""
    artifact = run.folder / "artifact"
    artifact.mkdir(parents=True)
    for name in ("artifact.json", "recipe.yaml", "weights.safetensors"):
        (artifact / name).touch()
    write_manifest(artifact)
    lines = [{"step": 25, "loss": 1.0, "seconds": 50.0}, {"step": 50, "loss": 1.0, "seconds": 50.0}]
    write_lines(run.folder / "metrics.jsonl", lines)
    save_recipe(run.recipe, run.file)


@pytest.mark.slow
def test_finished_runs_tell_the_time_of_the_others(file: str) -> None:
    runs = runs_of(read_sweep([file]))
    rehearsed = estimate(runs, 1)
    assert not rehearsed.is_measured
    assert rehearsed.run is not None
    assert rehearsed.left == pytest.approx(3 * rehearsed.run)
    finish(runs[0])
    measured = estimate(runs, 1)
    assert (measured.run, measured.left, measured.is_measured) == (100.0, 200.0, True)
    for run in runs[1:]:
        finish(run)
    assert estimate(runs, 1).left == 0


def test_a_dry_run_says_what_is_left_and_writes_nothing(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    finish(runs_of(read_sweep([file]))[1])
    folder = Path(file).parent / "table"
    before = sorted(folder.rglob("*"))
    words = ["--prepare", f"{{{folder}/x: make it, {folder}/row: touch}}"]
    assert run_command(["sweep", file, "--dry-run", *words]) == 0
    shown = capsys.readouterr().out
    assert f"{file}: 3 runs, in {folder}" in shown
    assert "row 1 of 3 0 1 min 40 s 3 min 20 s" in " ".join(shown.split())
    assert "1 of 2 preparations come first" in shown
    assert "training alone: about 3 min 20 s on 1 rank, one run after another" in shown
    assert sorted(folder.rglob("*")) == before


def test_what_another_command_has_made_is_not_taken(file: str, tmp_path: Path) -> None:
    product = tmp_path / "words"

    def parts(command: str) -> list[Any]:
        sweep = read_sweep([file, "--prepare", f"{{{product}: {command}}}"])
        return list(preparation_parts(sweep))

    product.touch()  # by hand: nobody knows how
    (part,) = parts(f"touch {product}")
    assert part.is_done
    product.unlink()
    list(part.stages([]))
    product.touch()
    assert parts(f"touch {product}")[0].is_done
    with pytest.raises(
        ValueError, match=rf"prepare.{product}: it was made by `touch .*, and the sweep says `cp a"
    ):
        parts(f"cp a {product}")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ranks", "two"], "--ranks is 'two'; give the number of ranks, 1 or more"),
        (["--runs", "0"], "--runs is '0'; give a number of runs, 1 or more"),
        (["--seeds", "[1, 1]"], "seeds: 1 is there twice"),
        (["--output", "/proc/table"], "output: cannot write /proc/table"),
    ],
)
def test_mistakes_end_before_anything_runs(
    file: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["sweep", file, *words]) == 2
    assert f"vlds sweep: {told}" in capsys.readouterr().err


def place(file: str, folder: str, part: str) -> Path:
    """Where a part of the sweep has its claim or its mark of failure."""
    return Path(file).parent / "table" / folder / folder_name(part)


def test_what_another_process_does_is_not_done(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = runs_of(read_sweep([file]))
    for run in runs[:2]:
        finish(run)
    with holder(place(file, CLAIMS, runs[2].name)):
        assert run_command(["sweep", file]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 runs are done" in said
    assert "left, or another process does them: row, seed 2" in said


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json", "artifact.json"])
def test_a_run_whose_artifact_is_damaged_is_not_done(
    name: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_sweep([file, "--split", "evaluate"])
    runs = runs_of(table)
    for run in runs:
        finish(run)
    assert all(run.is_done for run in runs)
    (runs[1].folder / "artifact" / name).unlink()
    assert [run.is_done for run in runs] == [True, False, True]
    work = SweepWork(table, runs)
    work.do(None, [])
    assert list(work.failed) == ["row, seed 1"]
    cure = f"or remove {runs[1].folder}, and the sweep trains it again"
    assert work.failed["row, seed 1"].endswith(cure)
    capsys.readouterr()
    assert run_command(["sweep", file, "--split", "evaluate", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "2 of 3" in told.out
    assert cure in told.err


def sweep_with(file: str, **prepare: str) -> SweepWork:
    """The work of a sweep that first makes files beside its own, each by a command."""
    folder = Path(file).parent
    tree = yaml.safe_load(Path(file).read_text())
    made = {f"{folder}/{name}": command.format(folder) for name, command in prepare.items()}
    Path(file).write_text(yaml.safe_dump({**tree, "prepare": made}, sort_keys=False))
    table = read_sweep([file])
    return SweepWork(table, runs_of(table))


def test_what_is_made_and_vanishes_is_not_waited_for(file: str) -> None:
    folder = Path(file).parent
    removes = "sh -c 'rm {0}/x; touch {0}/"
    work = sweep_with(file, x="touch {0}/x", y=f"{removes}y'", z=f"{removes}z'")
    work.do(None, [])
    assert work.failed[f"prepare {folder}/x"] == f"something removes {folder}/x again and again"
    assert (folder / "z").exists()
    for n in range(3):
        assert work.failed[f"row, seed {n}"].startswith(f"cannot start without prepare {folder}/")
