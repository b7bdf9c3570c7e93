"""Wherever the power is lost, states, artifacts, the best step and metrics are whole, and a run
goes on from them; what has been saved once is not lost again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.toys.faults.power_loss import Image, Ledger, put
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.recipe.config import Recipe, load_recipe
from vlds.runtime.artifact_files import artifact_folder
from vlds.runtime.files import finish_replacing
from vlds.runtime.json_files import read_metric_lines
from vlds.training.checkpoint import BestStep
from vlds.training.loop import train
from vlds.training.states import newest

SCORE = "vqa/exact_match"
STEPS = 4


def short_recipe(world: Path, output: Path) -> Recipe:
    """A state, an evaluation and perhaps a better step after each step."""
    recipe = world_recipe(world, output)
    training = replace(
        recipe.training, steps=STEPS, save_every=1, evaluate_every=1, keep_states=1, best=SCORE
    )
    return replace(recipe, training=training)


def watched(recipe: Recipe) -> tuple[list[Image], list[Image]]:
    """What a loss of power would leave of a run, at every point of it; on a rank."""
    folder = Path(recipe.output).parent
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder)
    with ledger.watching():
        assert train(recipe) == 0
    return ledger.undone, ledger.named


@dataclass(frozen=True)
class Losses:
    """A run, and what would be left of it."""

    recipe: Recipe
    undone: list[Image]
    named: list[Image]


@pytest.fixture(scope="module")
def losses(world: Path, ranks1: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    recipe = short_recipe(world, tmp_path_factory.mktemp("power") / "runs" / "run")
    ((undone, named),) = ranks1.run(watched, recipe, timeout=120)
    return Losses(recipe, undone, named)


@dataclass(frozen=True)
class Left:
    """How far a run is, as what is left says."""

    state: int
    """Step of the newest whole state; 0 without any."""
    best: int
    """Step of the best artifact, likewise."""
    lines: int
    """Of metrics."""
    is_done: bool
    """True if there is an artifact."""


def look(image: Image, folder: Path) -> Left:
    """Put an image down and look at it as a resumed run does; all of it must be whole."""
    put(image, folder)
    run = folder / "run"
    found, complaints = newest(run / "state")
    assert complaints == []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        best = BestStep(SCORE, run / "best", resumed=True).known
    assert said.getvalue() == ""
    finish_replacing(run / "artifact")
    is_done = (run / "artifact").exists()
    assert not is_done or artifact_folder(run) == run / ("best" if best else "artifact")
    metrics = read_metric_lines(run / "metrics.jsonl")
    assert metrics.complaint == ""
    if (run / "recipe.yaml").exists():
        load_recipe(run / "recipe.yaml")
    step = int(found.name.removeprefix("step-")) if found else 0
    return Left(step, best.step if best else 0, len(metrics.lines), is_done)


def looks(images: list[Image], folder: Path) -> Iterator[Left]:
    for number, image in enumerate(images):
        yield look(image, folder / f"{number:04d}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["undone", "named"])
def test_what_is_left_is_whole(kind: str, losses: Losses, tmp_path: Path) -> None:
    images = losses.undone if kind == "undone" else losses.named
    assert len(images) > 20, "so many points were tried"
    found = list(looks(images, tmp_path))
    for what in ("state", "best", "lines", "is_done"):
        values = [getattr(left, what) for left in found]
        assert values == sorted(values), f"{what}: what was saved once stays"
    assert (found[0].state, found[0].is_done) == (0, False)
    assert (found[-1].state, found[-1].is_done) == (STEPS, True)
    assert {left.state for left in found} == set(range(STEPS + 1))
    assert found[-1].best > 0
    assert found[-1].lines == len(read_metric_lines(run_of(losses) / "metrics.jsonl").lines)


def run_of(losses: Losses) -> Path:
    return Path(losses.recipe.output)
