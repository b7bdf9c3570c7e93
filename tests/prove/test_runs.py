"""What properties find that start runs: nothing where all is right, and each planted fault at its
own place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from torch import nn

import vlds.prove.started
from tests.toys.faults.planted_runs import (
    Plant,
    averaged_gradients,
    dropout_by_rank,
    forked,
    half_an_artifact,
    lost_moments,
    nothing,
    replayed_examples,
    weights_by_ranks,
)
from tests.toys.files import read_lines
from tests.toys.recipes import short_recipe
from vlds.models.methods import LoRA
from vlds.prove.bench import Bench
from vlds.prove.command import prove
from vlds.prove.finding import EXACT, Finding
from vlds.prove.properties import PROPERTIES
from vlds.prove.started import HALF, STEPS, Way, changes_of, killed, launch, most_ranks, refusal
from vlds.prove.started import recipe_of as run_recipe
from vlds.recipe.config import Recipe

OURS = ("rank-free", "resume-free", "leaves-right", "fits")
CHANGED = ("output", "tasks", "data", "training")
"""Parts of a recipe that a run of ten steps may have otherwise."""
LORA = LoRA(rank=2, roles=["attn_q", "ffn_out"], train_biases=False)


def recipe_of(world: Path, folder: Path) -> Recipe:
    """A toy with a method that others can merge and open."""
    recipe = short_recipe(world, folder / "run", 2)
    model: Any = replace(recipe.model, train_norms=False)
    # Clipped gradients hide a factor.
    clipped = replace(recipe.optimizer, clip_norm=0.01)
    return replace(recipe, methods={"lora": LORA}, model=model, optimizer=clipped)


def findings(
    world: Path, folder: Path, plant: Plant = nothing, names: Sequence[str] = OURS
) -> dict[str, Finding]:
    """What the properties find."""
    bench = Bench(recipe_of(world, folder), scratch=folder, rows=8, launch=forked(plant))
    tried = prove(bench, [each for each in PROPERTIES if each.name in names], print)
    return {each.property.name: each.finding for each in tried}


def verdicts(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.verdict for name, finding in found.items()}


def test_runs_are_the_recipes_but_for_length(world: Path, tmp_path: Path) -> None:
    given = recipe_of(world, tmp_path)
    data = replace(given.data, global_batch_size=141, lanes=3, num_workers=8)
    large = replace(given, data=data)
    bench = Bench(large, scratch=tmp_path)
    way = Way(2, given.training.deepspeed)
    made = run_recipe(bench, way)
    assert made.batch_sizes == {"data.global_batch_size": 6}, "a multiple of the lanes"
    assert made.training.num_steps == STEPS
    loaders = [run_recipe(bench, replace(way, ranks=n)).data.num_workers for n in (1, 2, 4)]
    assert loaders == [2, 1, 0], "the order of examples must not depend on them"
    assert replace(made, **{f: getattr(large, f) for f in CHANGED}) == large
    assert changes_of(bench) == ["data.global_batch_size: 141, and 6 in the runs of this proof"]
    assert refusal(bench, way, way) is None
    whole = replace(bench.recipe.data, global_batch_size=1, lanes=1)
    bench.recipe = replace(bench.recipe, data=whole)
    assert most_ranks(bench) == 1
    assert "1 example for 2 ranks" in str(refusal(bench, way))


def test_what_a_run_leaves_and_takes(world: Path, tmp_path: Path) -> None:
    found = findings(world, tmp_path, names=("leaves-right", "fits"))
    assert verdicts(found) == {"leaves-right": "holds", "fits": "holds"}, found
    compared = [each.what for each in found["leaves-right"].compared]
    for what in (
        "artifact in a fresh process",
        "two processes",
        "of merge",
        "peft's ",
        "AutoModelForSeq2SeqLM's",
    ):
        assert any(what in each for each in compared), what
    assert [c.difference for c in found["fits"].compared] == [0, 0, 0]


@pytest.mark.slow
def test_runs_are_free_of_ranks_and_of_breaks(world: Path, tmp_path: Path) -> None:
    found = findings(world, tmp_path, names=OURS[:2])
    assert verdicts(found) == dict.fromkeys(OURS[:2], "holds"), found
    ways = " ".join(each.what for each in found["rank-free"].compared)
    for way in ("2 ranks with zero2.json", "4 ranks with zero3_small", "2 ranks with zero3_off"):
        assert way in ways
    # The same ranks give the same bits, and tolerances are for others alone.
    *exact, other = found["resume-free"].compared
    assert {c.tolerance for c in exact} == {EXACT}
    assert other.what.endswith("and resumed on 1 rank with zero3_small.json")


@contextmanager
def wrong_merge() -> Iterator[None]:
    """Merging folds twice the change into the weights."""
    right: Callable[..., Any] = LoRA.merge

    def merge(self: LoRA, name: str, model: nn.Module, tasks: Sequence[str]) -> Any:
        for module in model.modules():
            if hasattr(module, "scale") and hasattr(module, "a"):
                module.scale = 2 * module.scale
        return right(self, name, model, tasks)

    with mock.patch.object(LoRA, "merge", merge):
        yield


@contextmanager
def wrong_alpha() -> Iterator[None]:
    """peft's settings have another scale than the run."""
    right: Callable[..., Any] = LoRA.layout

    def layout(self: LoRA, library: Any, name: str, backbone: Any) -> Any:
        made = right(self, library, name, backbone)
        return replace(made, config=made.config | {"lora_alpha": 2 * made.config["lora_alpha"]})

    with mock.patch.object(LoRA, "layout", layout):
        yield


PLANTED: list[tuple[str, Plant | Callable[[], AbstractContextManager[None]], str, str]] = [
    ("dropout", dropout_by_rank, "rank-free", "loss of each step on 2 ranks"),
    ("new weights", weights_by_ranks, "rank-free", "initial weights on 2 ranks"),
    ("mean of gradients", averaged_gradients, "rank-free", "norm of each step's gradient"),
    ("moments", lost_moments, "resume-free", "weights and moments after step 10"),
    ("examples", replayed_examples, "resume-free", "loss of each step, killed and resumed"),
    ("artifact", half_an_artifact, "leaves-right", "logits of the artifact in a fresh"),
    ("merge", wrong_merge, "leaves-right", "logits of merge"),
    ("alpha", wrong_alpha, "leaves-right", "peft's logits"),
]
"""Case, fault, the property that finds it, and what it says."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "where", "says"), [each[1:] for each in PLANTED], ids=[each[0] for each in PLANTED]
)
def test_a_fault_is_found_at_its_place(
    plant: Any, where: str, says: str, world: Path, tmp_path: Path
) -> None:
    here = plant in (wrong_merge, wrong_alpha)
    with plant() if here else nullcontext():
        found = findings(world, tmp_path, nothing if here else plant, OURS[:3])
    failing = [name for name, verdict in verdicts(found).items() if verdict == "fails"]
    assert failing == [where], found
    wrong = [each.text for each in found[where].compared if not each.holds]
    assert any(says in text for text in wrong), wrong


@pytest.mark.slow
def test_real_processes_are_killed_and_none_is_left(world: Path, tmp_path: Path) -> None:
    bench = Bench(recipe_of(world, tmp_path), scratch=tmp_path, launch=launch)
    run = killed(bench, Way(2, bench.recipe.training.deepspeed, STEPS))
    logged = [line["step"] for line in read_lines(run.folder / "metrics.jsonl") if "loss" in line]
    assert max(logged) > HALF
    assert not (run.folder / "artifact").exists()
    (left,) = (run.folder / "state").glob("step-*")
    assert left == run.state_folder(HALF)
    words = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    assert [each for each in words if str(tmp_path) in each and sys.executable in each] == []


def test_a_run_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlds.prove.started, "SILENT_S", 0.02)
    log = tmp_path / "log"
    assert launch(["--help"], log, lambda: False) != 0
    assert log.read_text().endswith("ended: it has said nothing for 0 s\n")
