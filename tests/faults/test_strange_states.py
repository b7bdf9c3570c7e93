"""States that are damaged, or that no run has saved."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.strategies import FAST, JSON
from tests.toys.world import world_recipe
from vlds.data.config import DataConfig
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.stream import TrainStream
from vlds.evaluation.sources import training_sources
from vlds.recipe.config import Recipe, load_recipe
from vlds.runtime.artifact_files import Best
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.json_files import MANIFEST, damage, sha256, write_manifest
from vlds.training import checkpoint
from vlds.training.checkpoint import check_tensors, find_state, restore
from vlds.training.loop import train
from vlds.training.prepare import prepare
from vlds.training.run import build_run
from vlds.training.states import PROGRESS, TENSORS, Progress, newest

# A state that is not what was written is never loaded: it is passed over, or refused, with a
# message.

SEED = int(os.environ.get("VLDS_FAULT_SEED", "20261"))
FILES = (TENSORS, PROGRESS, MANIFEST)
OLD, NEW = "step-00000005", "step-00000010"


def write_states(folder: Path) -> None:
    """Two states of one run."""
    for step in (5, 10):
        torch.manual_seed(step)
        tensors = {key: torch.randn(3, 4) for key in ("fp32", "exp_avg", "exp_avg_sq")}
        progress = Progress(step, {"consumed": 8 * step}, best=Best(5, "vqa/accuracy", 0.5))
        checkpoint.save(folder, {"a.weight": tensors}, progress, keep=2)


def flip(state: Path, draw: random.Random) -> str:
    file = state / draw.choice(FILES)
    content = bytearray(file.read_bytes())
    places = draw.sample(range(len(content)), draw.randint(1, 4))
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"bits of bytes {places} of {file.name} flipped"


def truncate(state: Path, draw: random.Random) -> str:
    file = state / draw.choice(FILES)
    size = draw.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"{file.name} cut to {size} bytes"


def extend(state: Path, draw: random.Random) -> str:
    file = state / draw.choice((TENSORS, PROGRESS))
    with file.open("ab") as end:
        end.write(draw.randbytes(draw.randint(1, 100)))
    return f"{file.name} is longer"


def lose(state: Path, draw: random.Random) -> str:
    lost = draw.sample(FILES, draw.randint(1, 3))
    for name in lost:
        (state / name).unlink()
    return f"{lost} lost"


def swap(state: Path, draw: random.Random) -> str:
    """Files of the other state take the place of this one's."""
    swapped = draw.sample(FILES, draw.randint(1, 3))
    for name in swapped:
        shutil.copy2(state.with_name(OLD) / name, state / name)
    return f"{swapped} of the state before"


def forget(state: Path, draw: random.Random) -> str:
    """The manifest does not list a file that is not what was written."""
    file = state / draw.choice((TENSORS, PROGRESS))
    entries = json.loads((state / MANIFEST).read_text())
    del entries[file.name]
    (state / MANIFEST).write_text(json.dumps(entries))
    return f"{file.name} not in the manifest"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    flip, flip, flip, truncate, truncate, extend, lose, swap, swap, forget,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_states(folder)
    return folder


@pytest.mark.parametrize("both", [False, True], ids=["newest", "all"])
@pytest.mark.parametrize("number", [pytest.param(n, id=f"seed{SEED}-{n}") for n in range(100)])
def test_no_damaged_state_is_loaded(number: int, both: bool, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(f"{SEED}-{number}-{both}")
    folder = Path(shutil.copytree(whole, tmp_path / "state"))
    damage = draw.choice(DAMAGES)
    if both and damage is swap:
        damage = flip
    what = damage(folder / NEW, draw)
    if both:
        damage(folder / OLD, draw)
    print(f"VLDS_FAULT_SEED={SEED}: {what}")
    found, complaints = newest(folder)
    assert found == (None if both else folder / OLD)
    assert len(complaints) == 1 + both
    assert complaints[0].startswith(f"{folder / NEW}: ")
    assert len(complaints[0]) > len(f"{folder / NEW}: ") + 10
    with pytest.raises(ValueError, match=NEW):
        checkpoint.load(folder / NEW)


def test_the_best_state_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        best = Best(2, "vqa/accuracy", 0.5) if step > 2 else None
        tensors = {"a": {"fp32": torch.ones(1)}}
        checkpoint.save(tmp_path, tensors, Progress(step, {}, best=best), keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    assert checkpoint.load(tmp_path / "step-00000004")[1].best == Best(2, "vqa/accuracy", 0.5)


def test_what_is_not_a_state_stays(tmp_path: Path) -> None:
    """A copy next to the states, or a state on another disk."""
    write_states(tmp_path)
    shutil.copytree(tmp_path / NEW, tmp_path / f"{NEW}-mine")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    (tmp_path / OLD).rename(elsewhere)
    (tmp_path / OLD).symlink_to(elsewhere)
    assert newest(tmp_path) == (tmp_path / NEW, [])
    checkpoint.save(tmp_path, {"a": {"fp32": torch.ones(1)}}, Progress(11, {}), keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{NEW}-mine", "step-00000011"]
    assert (elsewhere / TENSORS).exists()


# A state whose hashes are right, and whose content no run has saved: refused in one line, or
# passed over, never loaded.

PLACES = [
    ["consumed"], ["global_batch_size"], ["phase"], ["phase", "at"], ["phase", "given"],
    ["phase", "given", "vqa"], ["fingerprint"], ["fingerprint", "order"], ["fingerprint", "data"],
    *(["fingerprint", "order", name] for name in ("seed", "unit_size", "block", "lanes", "shares")),
    ["fingerprint", "order", "shares", "vqa"],
]  # fmt: skip
VALUES = (
    JSON | st.integers(-9, 99) | st.sampled_from([10**30, "1/3", "2/0", "1e999999999", [1], {}])
)


def stream_of(recipe: Recipe) -> TrainStream:
    collator = recipe.model.collator(recipe.model.load_processor())
    setup = StreamSetup(collator=collator, image=recipe.image, seed=recipe.seed)
    return TrainStream(training_sources(recipe), DataConfig(global_batch_size=8), setup)


@pytest.fixture(scope="module")
def streams(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainStream]:
    """Of one recipe, and of it with another mixture."""
    recipe = world_recipe(world, tmp_path_factory.mktemp("streams"))
    tasks = recipe.tasks | {"vqa": replace(recipe.tasks["vqa"], weight=1 / 7)}
    return [stream_of(recipe), stream_of(replace(recipe, tasks=tasks))]


def refusal_of(stream: TrainStream, state: dict[str, Any], new_phase: bool) -> str | None:
    """What a stream says that does not go on from this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size of the batches may change
        try:
            stream.load_state(state, new_phase=new_phase)
        except ValueError as error:
            return str(error)
    return None


@given(places=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
@example(places=[(["fingerprint", "order", "shares", "vqa"], "1e999999999")])
@example(places=[(["fingerprint", "order", "unit_size"], 0)])
@example(places=[(["consumed"], 10**30)])
@example(places=[(["consumed"], 80), (["phase", "at"], 80), (["phase", "given", "vqa"], [-1])])
@FAST
def test_a_stream_goes_on_from_what_a_run_has_saved(
    places: list[tuple[list[str], Any]], streams: list[TrainStream]
) -> None:
    state = copy.deepcopy(streams[0].state())
    for path, value in places:
        inner: Any = state
        for name in path[:-1]:
            inner = inner.get(name, {}) if isinstance(inner, dict) else {}
        if isinstance(inner, dict):
            inner[path[-1]] = value
    state = json.loads(json.dumps(state))
    for number, new_phase in ((0, False), (0, True), (1, True)):
        stream = streams[number]
        said = refusal_of(stream, state, new_phase)
        if said is None:
            stream.order.at(np.arange(stream.consumed, stream.consumed + 8))
            stream.epochs()
        else:
            assert "which no run has saved" in said or "this run's data differ" in said


LAYOUT = {
    ("a", "fp32"): (torch.float32, torch.Size([2, 3])),
    ("a", "exp_avg"): (torch.float32, torch.Size([2, 3])),
    ("b.c", "buffer"): (torch.int64, torch.Size([])),
}
TYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
SHAPES = st.lists(st.integers(0, 3), max_size=3)
FILLED = st.builds(
    lambda dtype, shape, value: torch.full(shape, value).to(dtype),
    TYPES, SHAPES, st.sampled_from([0.0, 1.0, float("nan"), float("inf")]),
)  # fmt: skip
KEYS = st.sampled_from(["a|fp32", "a|exp_avg", "b.c|buffer", "", "|", "|fp32", "a", "a||fp32"])


@given(changes=st.dictionaries(KEYS | st.text(max_size=5), FILLED | st.none(), max_size=3))
@example(changes={"": torch.zeros(1)})
@FAST
def test_tensors_are_those_that_the_model_has(changes: dict[str, Tensor | None]) -> None:
    right = {f"{n}|{key}": torch.ones(shape).to(kind) for (n, key), (kind, shape) in LAYOUT.items()}
    tensors = {key: t for key, t in (right | changes).items() if t is not None}
    state = checkpoint.by_weight(tensors)
    same = tensors.keys() == right.keys() and all(
        (t.dtype, t.shape) == (right[key].dtype, right[key].shape) and t.isfinite().all()
        for key, t in tensors.items()
    )
    with (
        nullcontext()
        if same
        else pytest.raises(ValueError, match=r"^--resume: run.* (such as|holds) ")
    ):
        check_tensors(Path("run"), state, LAYOUT)


def of_data(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda progress: progress["data"].update(fields)


def of_progress(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda progress: progress.update(fields)


def of_tensor(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({(key := sorted(tensors)[0]): change(tensors[key])})


STRANGE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (of_progress(data={}), r"data\.consumed is None, which no run has saved; move"),
    (of_data(consumed="x"), r"data\.consumed is 'x', which no run has saved; move"),
    (of_data(consumed=-5), r"data\.consumed is -5, "),
    (of_data(consumed=0), r"data\.consumed is '0 at step 5', which no run has saved; move"),
    (of_data(consumed=10**30), r"data\.consumed is 10{30}, "),
    (of_data(phase={"at": 1, "given": {"vqa": [2]}}), r"data\.phase is \{'at': 1,.*, which no"),
    (of_progress(skipped="9"), r"none of them whole \(.*skipped is '9', .*expected\); move that"),
    (of_progress(task_updates={}), r"has weights per task, of no task; the recipe's tasks are "),
    (lambda t: t.pop(sorted(t)[0]), r"1 tensor\(s\), such as 'exp_avg' of '.*' \(absent in t"),
    (lambda t: t.update({"a|b": torch.ones(2)}), r"such as 'b' of 'a' \(float32 2 in the state, a"),
    (of_tensor(lambda t: t.long()), r"such as 'exp_avg' of '.*' \(int64 .* state, float32 "),
    (of_tensor(lambda t: t[:0]), r"such as 'exp_avg' of '.*' \(float32 0.* in the state, float32 "),
    (of_tensor(lambda t: t * torch.nan), r": exp_avg of .* holds numbers that are NaN or infinite"),
    (lambda t: (t.clear(), t.update(x=torch.ones(1))), r"such as '.*' of '.*' "),
]  # fmt: skip


def change(state: Path, how: Callable[[dict[str, Any]], None], tensors: bool) -> None:
    """Put other content into a state, with its right hashes."""
    if tensors:
        content = load_file(state / TENSORS)
        how(content)
        save_file({key: t.contiguous() for key, t in content.items()}, state / TENSORS)
    else:
        progress = json.loads((state / PROGRESS).read_text())
        how(progress)
        (state / PROGRESS).write_text(json.dumps(progress))
    (state / "manifest.json").unlink()
    write_manifest(state)


def first_steps(recipe: Recipe) -> None:
    """Five of them."""
    train(replace(recipe, training=replace(recipe.training, steps=5)))


def refusals(recipe: Recipe, folders: list[Path]) -> list[str]:
    """What a run says that does not go on from these."""
    ranks = start_ranks(60)
    run, said = build_run(recipe, ranks, prepare(recipe, ranks, False), False), []
    for folder in folders:
        moved = replace(recipe, output=str(folder))
        try:
            found = find_state(moved, ranks, "auto")
            assert found is not None
            restore(moved, run.states, ranks, found, new_phase=False)
        except ValueError as error:
            said.append(str(error))
    run.engine.close()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_strange_content_is_refused_with_its_cure(
    kind: str, world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "run")
    ranks1.run(first_steps, recipe, timeout=120)
    folders = []
    for number, (how, _) in enumerate(STRANGE):
        folders.append(tmp_path / str(number))
        shutil.copytree(tmp_path / "run" / "state", folders[-1] / "state")
        state = folders[-1] / "state" / "step-00000005"
        change(state, how, tensors=number > 7)
    (said,) = ranks1.run(refusals, replace(recipe, output=str(tmp_path / "new")), folders)
    for folder, message, (_, expected) in zip(folders, said, STRANGE, strict=True):
        assert message.startswith(f"--resume: {folder}/state"), message
        assert re.search(expected, message), message
        assert "move that folder away" in message or "resume with the " in message


# Whatever stands in a state folder or a recipe: an error that a user can read, and nothing is
# written outside.

NAMES = st.sampled_from(
    [
        TENSORS,
        PROGRESS,
        "../victim",
        "/etc/passwd",
        "a/../../victim",
        "",
        ".",
        "..",
        "\0",
        "a" * 5000,
    ]
) | st.text(max_size=10)
ENTRIES = st.dictionaries(NAMES, JSON | st.fixed_dictionaries({"bytes": JSON, "sha256": JSON}))


def read(folder: Path) -> None:
    """Everything that resuming reads; a state may turn out to be whole, and then it is loaded."""
    found, complaints = newest(folder)
    assert (found is None) == bool(complaints)
    if found is not None:
        with contextlib.suppress(ValueError):  # its tensors may still be none
            checkpoint.load(found)
    else:
        with pytest.raises(ValueError, match="step-00000007"):
            checkpoint.load(folder / "step-00000007")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """A state folder with these files, next to a file that must not change."""
    (folder / "victim").write_text("untouched")
    state = folder / "state" / "step-00000007"
    state.mkdir(parents=True)
    for name, content in files.items():
        (state / name).write_bytes(content)
    return state


def tree(folder: Path) -> dict[str, str]:
    """Every file and its content's hash."""
    return {str(path): sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@given(entries=ENTRIES | JSON)
@example(entries={"../victim": {"bytes": 9, "sha256": ""}})
@FAST
def test_hostile_manifests(entries: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text = json.dumps(entries).encode()
        state = write(folder, {MANIFEST: text, TENSORS: b"x", PROGRESS: b"{}"})
        before = tree(folder)
        assert damage(state, (TENSORS, PROGRESS)) is not None
        read(folder / "state")
        assert tree(folder) == before
        checkpoint.save(folder / "state", {"a": {"fp32": torch.ones(1)}}, Progress(8, {}), keep=1)
        assert (folder / "victim").read_text() == "untouched"
        assert [path.name for path in folder.iterdir() if path.name != "state"] == ["victim"]
        assert [path.name for path in (folder / "state").iterdir()] == ["step-00000008"]


RECIPES = JSON | st.dictionaries(
    st.sampled_from(
        ["output", "seed", "backbone", "vision", "methods", "tasks", "data", "training", "base"]
    ),
    JSON | st.fixed_dictionaries({"class_path": st.text(max_size=10), "init_args": JSON}),
)


@example(recipe="base: .")
@example(recipe="base: " + "a" * 5000)
@example(recipe="[" * 5000)
@given(recipe=RECIPES.map(yaml.safe_dump) | st.text(max_size=60))
@settings(FAST, max_examples=60)
def test_recipes(recipe: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "recipe.yaml"
        file.write_text(recipe, encoding="utf-8")
        before = tree(Path(scratch))
        with pytest.raises(ValueError, match=r"\w"):
            load_recipe(file)
        assert tree(Path(scratch)) == before
