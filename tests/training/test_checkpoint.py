"""A run state is whole or is passed over; so is the artifact of the best step, wherever the run is
killed or stopped."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.world import world_recipe
from vlds.artifact import save_artifact
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import Best
from vlds.runtime.json_files import write_manifest
from vlds.training import checkpoint
from vlds.training.checkpoint import BestStep
from vlds.training.engine import State
from vlds.training.states import Progress, newest


def state(seed: int) -> State:
    torch.manual_seed(seed)
    return {"a.weight": {key: torch.randn(3, 4) for key in ("fp32", "exp_avg", "exp_avg_sq")}}


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


def keep(recipe: Recipe, step: int, tokenizer: Any) -> None:
    """What a run does with its best step so far."""
    best = BestStep(SCORE, Path(recipe.output) / "best", resumed=True)
    notes = best.note(step / 100, step)
    save_artifact(best.folder, {"step": torch.tensor(step)}, recipe, tokenizer, notes)


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
