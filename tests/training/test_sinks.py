"""Metrics arrive where a recipe sends them, also those of a resumed run."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import read_lines
from tests.toys.world import world_recipe
from vlds.recipe.config import Recipe, TrackingConfig
from vlds.training.sinks import MetricsFile, Tensorboard, check_tracking, has_scores, open_sinks

SCORES = {"loss": 0.25, "scores": {"vqa": {"vqa_accuracy": 0.5}}, "note": "no number"}


def test_the_file_drops_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for first_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        sink = MetricsFile(file, first_step)
        for step in steps:
            sink.write(step, {"loss": float(10 * first_step + step)})
        with file.open("a") as end:
            end.write('{"step": 3, "lo')  # what a machine that went down has left
    assert not has_scores(file, 3)
    MetricsFile(file, 4)
    lines = read_lines(file)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 23), (4, 24)]


def test_odd_lines_are_dropped_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run continues, whatever happens to the files that only report on it."""
    file = tmp_path / "metrics.jsonl"
    odd = ["{}", "[]", "5", "null", '{"step": "1"}', "\0\0\0", '{"step": 2, "lo']
    file.write_text("\n".join(['{"step": 1, "scores": {"vqa": {"a": 0.5}}}', *odd]))
    assert has_scores(file, 1)
    assert not has_scores(file, 2)
    assert capsys.readouterr().out == ""
    sink = MetricsFile(file, 1)
    assert capsys.readouterr().out == (
        f"{file}: 7 lines are skipped, they are not lines of metrics; the first is line 2: '{{}}'\n"
    )
    sink.write(2, {"loss": 1.0})
    MetricsFile(file, 2)
    assert capsys.readouterr().out == ""
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]


def test_tensorboard_shows_nested_scores_and_repeated_steps_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        sink = Tensorboard(tmp_path, first_step)
        for step in steps:
            sink.write(step, SCORES | {"loss": float(10 * first_step + step)})
        sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss", "scores/vqa/vqa_accuracy"]
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]
    assert {event.value for event in events.Scalars("scores/vqa/vqa_accuracy")} == {0.5}


@pytest.mark.slow
def test_weights_and_biases_keeps_one_run_when_resumed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, offline: what it would send is in the run folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = tracked(world_recipe(world, tmp_path / "run"), wandb_project="colours")
    monkeypatch.setattr(sys, "argv", ["vlds", "train", "--data", "http://user:hunter2@host/y"])
    secret = {n: replace(t, test=["http://user:hunter2@host/x"]) for n, t in recipe.tasks.items()}
    recipe = replace(recipe, tasks=secret)
    (tmp_path / "run").mkdir()
    for first_step in (0, 1):
        sink = open_sinks(recipe, first_step)[1]
        sink.write(first_step + 1, SCORES)
        sink.close()
    first, resumed = sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    assert first.name == resumed.name == f"run-{(tmp_path / 'run/wandb_id').read_text()}.wandb"
    for file in (first, resumed):
        held = file.read_bytes()
        assert all(word in held for word in (b"colours", b"scores/vqa/vqa_accuracy", b"0.5"))
        assert b"half_shared_up" in held  # the recipe is the run's config
        assert b"http://host/x" in held
        assert b"hunter2" not in held
    assert sys.argv[-1] == "http://host/y"  # where W&B reads the command line, in its own time


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb .*pip install 'vlds\[tracking\]'"):
        check_tracking(TrackingConfig(wandb_project="colours"))
    with pytest.raises(ValueError, match=r"tracking: tensorboard is asked for and not installed"):
        check_tracking(TrackingConfig(tensorboard=True))
    check_tracking(TrackingConfig())


def tracked(recipe: Recipe, **trackers: str | bool) -> Recipe:
    """The recipe with trackers."""
    return replace(recipe, tracking=TrackingConfig(**trackers))  # type: ignore[arg-type]
