"""A run state is whole or is passed over; so is the artifact of the best step, wherever the run is
killed or stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.toys.files import read_lines, write_lines
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.artifact import save_artifact
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import WEIGHTS, Best, artifact_folder
from vlds.runtime.files import sweep
from vlds.runtime.json_files import write_manifest
from vlds.training import checkpoint
from vlds.training.checkpoint import BestStep
from vlds.training.engine import State
from vlds.training.states import Progress, check_output, newest, state_folders


def state(seed: int) -> State:
    torch.manual_seed(seed)
    return {"a.weight": {key: torch.randn(3, 4) for key in ("fp32", "exp_avg", "exp_avg_sq")}}


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(0), Progress(5, {"consumed": 320}), keep=2)
    found, complaints = newest(tmp_path)
    assert found is not None
    assert not complaints
    loaded, progress = checkpoint.load(found)
    assert progress == Progress(5, {"consumed": 320})
    for key, tensor in state(0)["a.weight"].items():
        assert torch.equal(loaded["a.weight"][key], tensor)


def test_a_state_of_an_older_format_is_not_read(tmp_path: Path) -> None:
    file = checkpoint.save(tmp_path, state(0), Progress(5, {}), keep=2) / "state.json"
    content = json.loads(file.read_text())
    del content["task_updates"]
    file.write_text(json.dumps(content | {"format": 1}))
    file.with_name("manifest.json").unlink()
    write_manifest(file.parent)
    found, (complaint,) = newest(tmp_path)
    assert found is None
    assert "format is 1, 2 expected" in complaint


def test_tensors_that_a_right_manifest_names_may_be_none(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(0), Progress(5, {}), keep=2)
    assert checkpoint.saved_shapes(folder) == {"a.weight": torch.Size((3, 4))}
    (folder / "state.safetensors").write_bytes(b"no tensors" * 9)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert newest(tmp_path)[0] == folder
    for read in (checkpoint.load, checkpoint.saved_shapes):
        with pytest.raises(ValueError, match=r"step-00000005: state\.safetensors cannot be read"):
            read(folder)


def test_an_input_or_output_that_is_a_link_to_itself(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    check_output(str(tmp_path / "run"), False, [str(loop)])  # whoever reads it refuses it
    with pytest.raises(ValueError, match="output: "):
        check_output(str(loop), False, [str(tmp_path)])


def test_states_that_were_passed_over_do_not_push_out_whole_ones(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, state(step), Progress(step, {}), keep=2)
    (tmp_path / "step-00000010" / "manifest.json").unlink()
    (tmp_path / ".step-00000011@elsewhere-7-0.partial").mkdir()
    found, complaints = newest(tmp_path)
    assert found == tmp_path / "step-00000005"
    assert len(complaints) == 1, "nothing is said of what is half written"
    checkpoint.save(tmp_path, state(6), Progress(6, {}), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


SCORE = "vqa/exact_match"
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def keep(recipe: Recipe, step: int, tokenizer: Any) -> None:
    """What a run does with its best step so far."""
    best = BestStep(SCORE, Path(recipe.output) / "best", resumed=True)
    notes = best.note(step / 100, step)
    save_artifact(best.folder, {"step": torch.tensor(step)}, recipe, tokenizer, notes)


def killed_at(event: int, folder: Path, work: Callable[[], None]) -> bool:
    """Do this work in another process, which dies at its so-manieth event of a file in a folder;
    whether it came to that one."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
        return os.WIFSIGNALED(status)
    seen = 0

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if name not in FILE_EVENTS:
            return
        # What shutil.rmtree removes it names without the folder, which it has opened.
        if not os.path.isabs(path := str(arguments[0])) or path.startswith(str(folder)):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def kill_everywhere(recipe: Recipe, folder: Path) -> list[tuple[int, Best | None]]:
    """For every event of a file while step 20 replaces step 10: which step's artifact a resumed run
    finds, and what it knows of it."""
    whole, tokenizer = (
        replace(recipe, output=str(folder / "whole")),
        recipe.model.backbone.load_tokenizer(),
    )
    found: list[tuple[int, Best | None]] = []
    keep(whole, 10, tokenizer)
    killed = True
    while killed:
        output = folder / str(len(found) + 1)
        shutil.copytree(whole.output, output)
        again = replace(recipe, output=str(output))
        killed = killed_at(len(found) + 1, output, partial(keep, again, 20, tokenizer))
        known = BestStep(SCORE, output / "best", resumed=True).known
        weights = load_file(artifact_folder(output / "best") / WEIGHTS)
        found.append((int(weights["step"]), known))
        sweep(output, alone=True)
        assert [path.name for path in output.iterdir()] == ["best"]
    return found


@pytest.mark.slow
def test_a_kill_leaves_one_of_two_best_steps(world: Path, ranks1: RankPool, tmp_path: Path) -> None:
    (found,) = ranks1.run(kill_everywhere, world_recipe(world, tmp_path), tmp_path)
    assert len(found) > 30, "so many points were tried"
    steps = [step for step, _ in found]
    assert steps == sorted(steps), "the old one, until the new one is there"
    assert (steps[0], steps[-1]) == (10, 20)
    known = [best.step for _, best in found if best is not None]
    assert len(known) == len(found)
    assert known == steps, "score and artifact are one thing"


def test_what_is_not_whole_is_not_the_best(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lost or damaged score is said once, and the best step is sought anew; a run that has none
    says nothing."""
    recipe = world_recipe(world, tmp_path)
    folder = tmp_path / "best"
    assert BestStep(SCORE, folder, resumed=True).known is None
    assert capsys.readouterr().out == ""
    for lose in (Path.unlink, partial(Path.write_text, data='{"step": "ten"}')):
        keep(recipe, 10, recipe.model.backbone.load_tokenizer())
        capsys.readouterr()
        assert BestStep(SCORE, folder, resumed=True).known == Best(10, SCORE, 0.1)
        assert capsys.readouterr().out == ""
        lose(folder / "best.json")
        assert BestStep(SCORE, folder, resumed=True).known is None
        (said,) = capsys.readouterr().out.splitlines()
        assert said.startswith(f"training.best: {folder} is skipped: best.json is ")
        assert said.endswith("; the run looks for the best step from here on")
    (folder / "best.json").write_text('{"step": "ten"}')
    write_manifest(folder)
    assert BestStep(SCORE, folder, resumed=True).known is None
    assert "best.json cannot be read (step is 'ten', a valid integer exp" in capsys.readouterr().out


def best_recipe(world: Path, output: Path, save_every: int = 2) -> Recipe:
    """Eight steps of which the third and the sixth are evaluated."""
    recipe = world_recipe(world, output)
    training = replace(
        recipe.training, steps=8, save_every=save_every, evaluate_every=3, keep_states=1, best=SCORE
    )
    return replace(recipe, training=training)


def evaluated(run: Path) -> list[int]:
    return [line["step"] for line in read_lines(run / "metrics.jsonl") if "scores" in line]


def test_the_state_of_the_best_step_is_saved(world: Path, ranks1: RankPool, tmp_path: Path) -> None:
    """Also where none was due at that step; and an interrupted evaluation is made again."""
    recipe = best_recipe(world, tmp_path / "run")
    run = Path(recipe.output)
    assert ranks1.run(run_recipe, recipe, False, timeout=120) == [0]
    step = json.loads((run / "best/best.json").read_text("utf-8"))["step"]
    assert step % 2, "no multiple of save_every"
    assert [path.name for path in state_folders(run / "state")] == [
        f"step-{number:08d}" for number in (step, 8)
    ]
    assert evaluated(run) == [3, 6, 8]
    # What a kill in the evaluation of the best step leaves: its state, and none of its scores.
    half = Path(shutil.copytree(run, tmp_path / "half"))
    for later in ("state/step-00000008", "artifact", "best", "predictions"):
        shutil.rmtree(half / later)
    kept = [
        line for line in read_lines(run / "metrics.jsonl") if line["step"] < step or "loss" in line
    ]
    write_lines(half / "metrics.jsonl", kept)
    assert ranks1.run(run_recipe, replace(recipe, output=str(half)), True, timeout=120) == [0]
    assert evaluated(half) == evaluated(run)
    for file in ("best/best.json", f"best/{WEIGHTS}", f"artifact/{WEIGHTS}"):
        assert (half / file).read_bytes() == (run / file).read_bytes(), file
    # Where the scores are there, nothing is evaluated twice.
    shutil.rmtree(half / "state/step-00000008")
    assert ranks1.run(run_recipe, replace(recipe, output=str(half)), True, timeout=120) == [0]
    assert evaluated(half) == evaluated(run)
