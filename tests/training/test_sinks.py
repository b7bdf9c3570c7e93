"""Metrics arrive where a recipe sends them, also those of a resumed run; the progress line on a
terminal, and plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import socket
import sys
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import vlds.training.sinks
from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_and_print
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.cli.words import split_words
from vlds.evaluation.shown import ShownExample
from vlds.recipe.config import Recipe, TrackingConfig
from vlds.runtime.ranks import Ranks
from vlds.training import profile as profile_module
from vlds.training.loop import train
from vlds.training.profile import SPANS, StepProfile, between_steps, check_profile, span
from vlds.training.sinks import (
    MetricsFile,
    Sink,
    Tensorboard,
    Tracker,
    check_tracking,
    has_scores,
    open_sinks,
)

SCORES = {"loss": 0.25, "scores": {"vqa": {"vqa_accuracy": 0.5}}, "note": "no number"}
RED = ShownExample("vqa", "vqa: what color?", "red", "blue", Image.new("RGB", (30, 20), "red"))
SECRET = "http://user:hunter2@host/x"


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
        sink.show(steps[-1], [RED])
        sink.close()
    assert sink.address == f"tensorboard --logdir {tmp_path}"
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["loss", "scores/vqa/vqa_accuracy"]
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]
    assert {event.value for event in events.Scalars("scores/vqa/vqa_accuracy")} == {0.5}
    pictures = events.Images("predictions/vqa/0")
    assert [(each.step, each.width, each.height) for each in pictures] == [(4, 30, 20)]
    text = events.Tensors("predictions/vqa/0/text_summary")[-1]
    assert text.tensor_proto.string_val == [b"vqa: what color? -> red (answer: blue)"]


@pytest.mark.slow
def test_a_run_shows_its_predictions(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tracked(world_recipe(world, tmp_path / "run"), tensorboard=True, examples=2)
    (code, text), _ = ranks2.run(run_and_print, recipe, timeout=120)
    assert code == 0
    assert f"follow the run: tensorboard --logdir {recipe.output}\n" in text
    events = EventAccumulator(recipe.output).Reload()
    assert events.Tags()["images"] == ["predictions/vqa/0", "predictions/vqa/1"]
    (lines,) = (tmp_path / "run" / "predictions").glob("step-*/vqa.jsonl")
    answers = {line["prediction"] for line in read_lines(lines)}
    for name in events.Tags()["images"]:
        (picture,) = events.Images(name)
        assert picture.step == recipe.training.num_steps
        assert picture.width > 1
        (caption,) = events.Tensors(f"{name}/text_summary")
        shown = caption.tensor_proto.string_val[0].decode()
        assert any(f" -> {answer} (answer: " in shown for answer in answers), shown


@pytest.mark.slow
def test_a_tracker_that_fails_is_left_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tracked(world_recipe(world, tmp_path / "run"), tensorboard=True)
    (tmp_path / "run").mkdir()
    tracker = Tracker(recipe, Ranks(0, 1, 0, 1, torch.device("cpu")), 0)
    tracker.write(1, SCORES)
    tracker.write(2, {"loss": 10**400})  # no float: the library's own error
    tracker.write(3, SCORES)
    tracker.close()
    assert capsys.readouterr().out.count("Tensorboard gets nothing more: ") == 1
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
def test_a_tracker_that_cannot_start(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No server listens on the port. A run that begins is refused; one that is resumed goes on."""
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri("http://user:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    run = world_recipe(world, tmp_path / "run")
    recipe = tracked(run, mlflow_experiment="colours", tensorboard=True)
    with pytest.raises(ValueError, match=r"^tracking\.mlflow_experiment: cannot start \("):
        open_sinks(recipe, 0)
    assert [type(sink) for sink in open_sinks(recipe, 1)] == [MetricsFile, Tensorboard]
    told = capsys.readouterr().out
    assert told.startswith("tracking.mlflow_experiment: cannot start (")
    assert "hunter2" not in told
    # One that takes connections, and answers nothing.
    monkeypatch.setattr(vlds.training.sinks, "TRACKER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert [type(sink) for sink in open_sinks(recipe, 1)] == [MetricsFile, Tensorboard]
    assert "its server has not answered for 1 s" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_and_biases_keeps_one_run_when_resumed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, offline: what it would send is in the run folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", ["vlds", "train", "--data", "http://user:hunter2@host/y"])
    for sink in two_times(world, tmp_path, wandb_project="colours"):
        assert sink.address.startswith(f"wandb sync {tmp_path / 'run'}")
    first, resumed = sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    assert first.name == resumed.name == f"run-{(tmp_path / 'run/wandb_id').read_text()}.wandb"
    for file in (first, resumed):
        held = file.read_bytes()
        assert all(word in held for word in (b"colours", b"scores/vqa/vqa_accuracy", b"0.5"))
        assert b"half_shared_up" in held  # the recipe is the run's config
        assert b"vqa: what color? -> red (answer: blue)" in held
        assert b"http://host/x" in held
        assert b"hunter2" not in held
        (picture,) = file.parent.rglob("predictions/*.png")
        assert Image.open(picture).size == (30, 20)
    assert sys.argv[-1] == "http://host/y"  # where W&B reads the command line, in its own time


@pytest.mark.slow
def test_mlflow_keeps_one_run_when_resumed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, with a folder for a server."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path / 'mlruns'}")
    for sink in two_times(world, tmp_path, mlflow_experiment="colours"):
        assert sink.address.startswith("mlflow ui, experiments/")
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("colours").experiment_id
    (run,) = client.search_runs([place])
    assert run.info.run_id == (tmp_path / "run/mlflow_id").read_text()
    assert run.info.status == "FINISHED"
    assert run.data.params["methods.adapter.init_args.sharing"] == "half_shared_up"
    scores = client.get_metric_history(run.info.run_id, "scores.vqa.vqa_accuracy")
    assert [(score.step, score.value) for score in scores] == [(1, 0.5), (2, 0.5)]
    files = [file for file in (tmp_path / "mlruns").rglob("*") if file.is_file()]
    pictures = sorted(file for file in files if file.suffix == ".png")
    assert [file.parts[-3] for file in pictures] == ["step-00000001", "step-00000002"]
    assert Image.open(pictures[0]).size == (30, 20)
    captions = [file.read_text() for file in files if file.name == "captions.json"]
    assert "vqa: what color? -> red (answer: blue)" in captions[0]
    assert not any(b"hunter2" in file.read_bytes() for file in files)


@pytest.mark.slow
def test_trackio_keeps_one_run_when_resumed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real package, in a folder of this machine."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    for sink in two_times(world, tmp_path, trackio_project="colours"):
        assert sink.address
    (run,) = trackio.Api().runs("colours")
    assert run.config["methods"]["adapter"]["init_args"]["sharing"] == "half_shared_up"
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs("colours", run.name)
    scores = [(e["step"], e["scores/vqa/vqa_accuracy"]) for e in logs if "loss" in e]
    assert scores == [(1, 0.5), (2, 0.5)]
    (shown, _) = [entry["predictions/vqa/0"] for entry in logs if "loss" not in entry]
    assert shown["caption"] == "vqa: what color? -> red (answer: blue)"
    files = [file for file in (tmp_path / "trackio").rglob("*") if file.is_file()]
    assert [Image.open(f).size for f in files if f.suffix == ".png"] == [(30, 20)] * 2
    assert not any(b"hunter2" in file.read_bytes() for file in files)


def two_times(world: Path, tmp_path: Path, **trackers: str) -> list[Sink]:
    """The tracker of a run that was resumed after its first step; each time, it took scores and a
    picture."""
    recipe = tracked(world_recipe(world, tmp_path / "run"), **trackers)
    secret = {name: replace(task, test=[SECRET]) for name, task in recipe.tasks.items()}
    recipe = replace(recipe, tasks=secret)
    (tmp_path / "run").mkdir()
    opened = []
    for first_step in (0, 1):
        _, sink = open_sinks(recipe, first_step)
        sink.write(first_step + 1, SCORES | {"loss/vqa": 0.25})
        sink.show(first_step + 1, [RED])
        sink.close()
        opened.append(sink)
    return opened


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb .*pip install 'vlds\[tracking\]'"):
        check_tracking(TrackingConfig(wandb_project="colours"))
    with pytest.raises(ValueError, match=r"mlflow .*pip install 'vlds\[mlflow\]'"):
        check_tracking(TrackingConfig(mlflow_experiment="colours"))
    with pytest.raises(ValueError, match=r"tracking: tensorboard is asked for and not installed"):
        check_tracking(TrackingConfig(tensorboard=True))
    check_tracking(TrackingConfig())


def tracked(recipe: Recipe, **trackers: str | bool | int) -> Recipe:
    return replace(recipe, tracking=TrackingConfig(**trackers))  # type: ignore[arg-type]


# Where a step goes: a table of its parts, and a trace.


def profiled(recipe: Recipe, resume: bool = False) -> str:
    """What a run prints that profiles three of its steps."""
    with redirect_stdout(io.StringIO()) as printed:
        assert train(recipe, resume=resume, profile=3) == 0
    return printed.getvalue()


@pytest.mark.slow
def test_a_run_tells_where_its_steps_go(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    # All evaluation and most saving lies between the steps, and in none of them.
    config = replace(recipe.training, evaluate_every=3, save_every=3, log_every=5)
    recipe = replace(recipe, training=config)
    text, _ = ranks2.run(profiled, recipe, timeout=120)
    whole = float(re.search(r"a step takes ([\d.,]+) ms", text)[1].replace(",", ""))  # type: ignore[index]
    rows = {
        name: float(ms.replace(",", "")) for name, ms in re.findall(r"  (\D+?) +([\d.,]+) ms", text)
    }
    names = [SPANS[name] for name in SPANS if name in ("data", "forward", "backward", "optimizer")]
    assert rows.keys() >= {*names, "all else"}
    between = [name for name in rows if name.startswith("between ranks")]
    assert sum(ms for name, ms in rows.items() if name not in between) == pytest.approx(
        whole, abs=1
    )
    assert min(rows[name] for name in names) > 0
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text("utf-8"))
    spans = [event["name"] for event in trace["traceEvents"] if "vlds: " in event.get("name", "")]
    assert spans.count("vlds: backward") == 3 * 2  # micro-batches
    assert re.search(r"\n    .*data wait \d+%", text)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    shares = [line["data_wait"] for line in lines if "loss" in line]
    assert len(shares) == 2
    assert all(0 <= share <= 1 for share in shares)


def profile_of_one_step(folder: Path, num_operations: int = 1) -> list[str]:
    profile = StepProfile(1, folder, None)
    assert profile.after_step() == profile.after_step() == []
    with span("backward"):
        for _ in range(num_operations):
            torch.ones(3)
    return profile.after_step()


def test_a_new_run_is_too_short(tmp_path: Path) -> None:
    check_profile(0, tmp_path, 1)
    check_profile(3, tmp_path, 5)
    check_profile(3, tmp_path, None)
    with pytest.raises(ValueError, match="takes 5 steps, but the run has 4; give at most 2, or"):
        check_profile(3, tmp_path, 4)
    with pytest.raises(ValueError, match="but the run has 1; leave --profile out, or raise"):
        check_profile(3, tmp_path, 1)


def test_an_error_ends_what_is_profiled(tmp_path: Path) -> None:
    vision = nn.Linear(2, 2)
    with closing(StepProfile(5, tmp_path, vision)) as profile:
        profile.after_step()
        profile.after_step()
        for part in (span("forward"), between_steps()):
            with pytest.raises(RuntimeError), part:
                raise RuntimeError
            assert profile_module._active is profile
        assert vision._forward_hooks
    assert profile_module._active is None
    assert not vision._forward_hooks
    assert not vision._forward_pre_hooks
    assert len(profile_of_one_step(tmp_path)) > 1


def test_the_number_of_steps() -> None:
    words = split_words(["train", "r.yaml", "--profile", "5"])
    assert words.profile == 5
    assert words.for_ranks == ["train", "r.yaml", "--profile", "5"]
    with pytest.raises(ValueError, match=r"^--profile is 'x'; give a number of steps, 1 or more$"):
        split_words(["train", "r.yaml", "--profile", "x"])
    assert split_words(["train", "r.yaml", "--profile=50"]).profile == 50
    with pytest.raises(ValueError, match=r"^--profile is 51, but each .*; give at most 50$"):
        split_words(["train", "r.yaml", "--profile", "51"])
