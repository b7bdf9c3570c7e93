"""A run that is interrupted and resumed is the run that was not interrupted, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toys.files import read_lines
from tests.toys.kinds import KINDS, kind_recipe
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankError, RankPool
from tests.toys.recipes import short_recipe, with_model
from tests.toys.resumed_runs import check_resume
from tests.toys.trained_runs import write_run
from tests.toys.world import world_recipe, write_tokenizer
from vlds.artifact import load_run, save_artifact
from vlds.convert.verify import logits
from vlds.data.config import DataConfig
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.stream import TrainStream
from vlds.evaluation.sources import training_sources
from vlds.models.methods import LST, Adapter, Full, Peft, SimAdapter
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import Best
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.json_files import write_manifest
from vlds.training import checkpoint
from vlds.training.checkpoint import BestStep
from vlds.training.engine import State
from vlds.training.importance import write_importance
from vlds.training.loop import train
from vlds.training.prepare import prepare
from vlds.training.run import build_run
from vlds.training.states import Progress, newest, read_progress


def logits_elsewhere(run: Path) -> Tensor:
    """Logits of a run that another process has loaded."""
    return logits(load_run(run), "vqa", ())


def check_artifact(run: Path, ranks: RankPool) -> None:
    """The artifact holds all that a process needs that opens it."""
    expected = logits(load_run(run), "vqa", ())
    assert expected.any()
    assert all(torch.equal(found, expected) for found in ranks.run(logits_elsewhere, run))


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (3, "fp32"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in product((2, 3), ("bf16", "fp32"))
          if case != (3, "fp32")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_are_five_and_five(
    kind: str, stage: int, precision: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "whole", stage, precision)
    check_resume(ranks2, recipe, tmp_path)
    check_artifact(tmp_path / "whole", ranks2)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("peft") is None, reason="peft is missing: pip install 'vlds[peft]'")
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    "special", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["dora", "pissa"]
)
def test_methods_of_peft_are_resumed(
    special: dict[str, Any], stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    settings = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.1, **special}
    method = Peft(type="LORA", settings=settings, roles=["attn_q", "attn_v"])
    run = tmp_path / "whole"
    recipe = replace(world_recipe(world, run, stage), methods={"method": method})
    check_resume(ranks2, recipe, tmp_path)
    check_artifact(run, ranks2)
    changed = load_run(run).model.changed
    assert changed <= load_file(run / "artifact" / "weights.safetensors").keys()
    assert bool(changed) == ("init_lora_weights" in special)


@pytest.mark.slow
def test_statistics_of_a_training_encoder_are_resumed(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = world_recipe(world, tmp_path / "whole")
    encoder = {"encoder": Full(part="vision", learning_rate=1e-3)}
    check_resume(ranks2, replace(recipe, methods=recipe.methods | encoder), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tokenizer", "vision encoder", "methods.method.runs.b"])
def test_other_files_under_the_same_name_are_refused(
    part: str, world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    """Run states hold no frozen weights, so these must be those that the state saw."""
    recipe = short_recipe(world, tmp_path / "run", 2)
    place = tmp_path / "place.model"

    def put(seed: int) -> None:
        if part == "tokenizer":
            write_tokenizer(place, capitals=bool(seed))
        elif part == "vision encoder":
            torch.manual_seed(seed)
            save_file(recipe.model.vision.build(torch.float32).state_dict(), place)
        else:
            write_run(replace(recipe, output=str(place), methods={"a": Adapter()}), seed)

    put(0)
    if part == "tokenizer":
        used = with_model(recipe, backbone=replace(recipe.model.backbone, tokenizer=str(place)))
    elif part == "vision encoder":
        used = with_model(recipe, vision=replace(recipe.model.vision, weights=str(place)))
    else:
        method = SimAdapter(runs={"vqa": str(place), "b": str(place)})
        used = replace(recipe, methods={"method": method})
    short, longer = (
        replace(used, training=replace(recipe.training, steps=steps)) for steps in (2, 4)
    )
    assert ranks1.run(run_recipe, short, timeout=120) == [0]
    put(1)
    with pytest.raises(RankError, match=rf"was trained on another {part} than .* is now"):
        ranks1.run(run_recipe, longer, True, timeout=120)
    put(0)
    assert ranks1.run(run_recipe, longer, True, timeout=120) == [0]


@pytest.mark.slow
def test_what_only_the_start_reads_may_be_gone(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = with_model(world_recipe(world, tmp_path / "whole"), train_norms=False)
    file = tmp_path / "importance.safetensors"
    write_importance(recipe, file, 3)
    side = LST(reduction=2, start="fisher_sorted", importance=str(file))
    recipe = replace(recipe, methods={"side": side})
    check_resume(ranks2, recipe, tmp_path, file.unlink)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_of_each_task_are_resumed(
    kind: str, stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """With global batches of one task."""
    recipe = kind_recipe(kind, world, tmp_path / "whole", stage)
    recipe = replace(recipe, data=replace(recipe.data, unit="global_batch"))
    check_resume(ranks2, recipe, tmp_path)
    half, whole = (
        read_progress(tmp_path / "half" / "state" / f"step-{step:08d}").task_updates
        for step in (5, 10)
    )
    assert list(whole) == ["vqa", "caption"]
    assert sum(half.values()) == 5
    assert sum(whole.values()) == 10
    assert all(0 < half[task] < whole[task] for task in whole)


def resume_and_export(recipe: Recipe) -> tuple[Any, list[list[str]]]:
    """The state that an engine gives back after restoring, and this rank's ids of two steps."""
    ranks = start_ranks(60)
    run = build_run(recipe, ranks, prepare(recipe, ranks, True), True)
    state = run.engine.export()
    steps = islice(run.stream.steps(), 2)
    ids = [[id for batch in batches for id in batch.ids] for batches in steps]
    run.engine.close()
    return state, ids


@pytest.fixture(scope="module")
def states(
    world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """A kind's run of two ranks at a stage."""
    folder = tmp_path_factory.mktemp("states")

    def run(kind: str, stage: int) -> Path:
        output = folder / f"{kind}-{stage}"
        if not output.exists():
            recipe = kind_recipe(kind, world, output, stage)
            short = replace(recipe, training=replace(recipe.training, steps=5))
            ranks2.run(run_recipe, short, False, timeout=120)
        return output

    return run


def next_ids(recipe: Recipe, num: int) -> list[str]:
    """What one process reads next, where the newest state left the stream."""
    collator = recipe.model.collator(recipe.model.load_processor())
    setup = StreamSetup(collator=collator, image=recipe.image, seed=recipe.seed)
    config = DataConfig(global_batch_size=recipe.data.global_batch_size)
    stream = TrainStream(training_sources(recipe), config, setup)
    found, _ = newest(Path(recipe.output) / "state")
    assert found is not None
    stream.load_state(checkpoint.load(found)[1].data)
    return [id for batch in islice(stream, num) for id in batch.ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "saved", "stage"),
    [
        *((ranks, *stages) for ranks in (1, 2, 4) for stages in ((2, 3), (3, 2))),
        (4, 2, 2),
        (4, 3, 3),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_moves_to_another_stage_and_number_of_ranks(
    kind: str,
    num_ranks: int,
    saved: int,
    stage: int,
    states: Callable[[str, int], Path],
    world: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """Two ranks have saved it."""
    pool: RankPool = request.getfixturevalue(f"ranks{num_ranks}")
    recipe = kind_recipe(kind, world, tmp_path / "run", stage)
    shutil.copytree(states(kind, saved), tmp_path / "run")
    (state, _), *others = results = pool.run(resume_and_export, recipe, timeout=120)
    assert all(other is None for other, _ in others)
    expected, progress = checkpoint.load(tmp_path / "run" / "state" / "step-00000005")
    assert progress.step == 5
    assert state.keys() == expected.keys()
    for name, tensors in expected.items():
        assert state[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(state[name][key], tensor), (name, key)
    steps = zip(*(ids for _, ids in results), strict=True)
    found = [id for shares in steps for share in shares for id in share]
    assert found == next_ids(recipe, 2)


def refused(recipe: Recipe, new_phase: bool) -> str:
    """What a resumed run says that does not begin."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each test looks at the message)
        train(recipe, resume=True, new_phase=new_phase)
    return str(error.value)


def test_tasks_with_weights_of_their_own_keep_their_order(
    states: Callable[[str, int], Path], world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    shutil.copytree(states("joint", 2), tmp_path / "run")
    recipe = world_recipe(world, tmp_path / "run", 2)
    swapped = replace(recipe, tasks=dict(reversed(recipe.tasks.items())))
    said, _ = ranks2.run(refused, swapped, True, timeout=120)
    assert "resume with the same tasks" in said
    assert "has weights per task, of vqa, caption; the recipe's tasks are caption, vqa; " in said


@pytest.mark.slow
def test_other_weights_are_a_new_phase(
    states: Callable[[str, int], Path], world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    shutil.copytree(states("joint", 2), tmp_path / "run")
    recipe = world_recipe(world, tmp_path / "run", 2)
    tasks = recipe.tasks | {"vqa": replace(recipe.tasks["vqa"], weight=1 / 7)}
    changed = replace(recipe, tasks=tasks)
    said, _ = ranks2.run(refused, changed, False, timeout=120)
    assert "this run's data differ" in said
    assert "order.shares.vqa: 2/3 -> " in said
    assert "with --new-phase each task continues from where it was" in said
    assert ranks2.run(run_recipe, changed, True, True, timeout=120) == [0, 0]
    before, after = (
        checkpoint.load(tmp_path / "run" / "state" / f"step-{step:08d}")[1].data for step in (5, 10)
    )
    assert after["phase"]["at"] == before["consumed"]
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    (begun, ended) = (
        {name: line[f"epoch/{name}"] for name in recipe.tasks}
        for step in (5, 10)
        for line in lines
        if line["step"] == step and "loss" in line
    )
    sizes = {source.name: source.datasets[0].num_annotations for source in training_sources(recipe)}
    new = {name: (ended[name] - begun[name]) * size for name, size in sizes.items()}
    assert after["phase"]["given"] == {
        name: [round(epochs * sizes[name])] for name, epochs in begun.items()
    }
    assert new["caption"] > 3 * new["vqa"]
    assert sum(new.values()) == pytest.approx(5 * recipe.data.global_batch_size)


# A run state is whole or is passed over; so is the artifact of the best step, wherever the run is
# killed or stopped.


def a_state(seed: int) -> State:
    torch.manual_seed(seed)
    return {"a.weight": {key: torch.randn(3, 4) for key in ("fp32", "exp_avg", "exp_avg_sq")}}


def test_a_state_of_an_older_format_is_not_read(tmp_path: Path) -> None:
    file = checkpoint.save(tmp_path, a_state(0), Progress(5, {}), keep=2) / "state.json"
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
        checkpoint.save(tmp_path, a_state(step), Progress(step, {}), keep=2)
    (tmp_path / "step-00000010" / "manifest.json").unlink()
    (tmp_path / ".step-00000011@elsewhere-7-0.partial").mkdir()
    found, complaints = newest(tmp_path)
    assert found == tmp_path / "step-00000005"
    assert len(complaints) == 1, "nothing is said of what is half written"
    checkpoint.save(tmp_path, a_state(6), Progress(6, {}), keep=1)
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
