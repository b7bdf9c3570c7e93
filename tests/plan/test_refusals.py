"""`vlds plan` refuses what `vlds train` refuses before its first step, with the same words.

`check_complaint` asserts the same of all that is refused before a model is built; here is what a
run refuses later, or of other kinds of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import BertConfig, BertLMHeadModel

from tests.toys.causal import write_tokenizer
from tests.toys.kinds import kind_recipe
from tests.toys.rank_jobs import refusal, run_and_print
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model, with_task
from tests.toys.trained_runs import write_run
from vlds.models.methods import Adapter, LoRA, Peft
from vlds.plan import plan_recipe
from vlds.recipe.config import AlignmentConfig, MetaConfig, Recipe

ADALORA = Peft(
    type="ADALORA",
    settings={"init_r": 2, "target_r": 1, "tinit": 1, "tfinal": 1},
    roles=["attn_q"],
)


def encoder(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe with an encoder in place of the causal model."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = BertConfig(**sizes, num_attention_heads=2, vocab_size=304)
    BertLMHeadModel(config).save_pretrained(folder / "bert")
    write_tokenizer(folder / "bert")
    return with_model(recipe, config=None, tokenizer=None, path=str(folder / "bert"))


def other_processor(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe whose processor writes no placeholders that the model knows."""
    for file in Path(recipe.model.sources["backbone"]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    settings["image_token_id"] = 1
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return with_model(recipe, path=str(folder))


def begun(recipe: Recipe, folder: Path, reduction: int) -> Recipe:
    """A recipe with an adapter that begins with a run whose adapter has a reduction of 4."""
    first = replace(recipe, methods={"a": Adapter(reduction=4)}, output=str(folder / "first"))
    mine = {"b": Adapter(reduction=reduction)}
    return replace(recipe, methods=mine, start=str(write_run(first)))


def training(recipe: Recipe, **fields: object) -> Recipe:
    """The recipe with other fields of `training`."""
    return replace(recipe, training=replace(recipe.training, **fields))  # type: ignore[arg-type]


CASES: dict[str, tuple[str, Callable[[Recipe, Path], Recipe], str]] = {
    "encoder": ("causal", encoder, "model.path: .* is a bert model, an encoder"),
    "grid": ("causal", lambda r, _: with_model(r, grid=9), "model.grid: 9 is more than"),
    "no such layers": (
        "causal",
        lambda r, _: replace(r, methods={"lora": LoRA(roles=["cross_attn_q"])}),
        "methods.lora: no layer of .* plays the role 'cross_attn_q'",
    ),
    "few epochs": (
        "joint",
        lambda r, _: training(replace(r, methods={"a": ADALORA}), steps=2),
        "methods.a.settings: tinit 1 and tfinal 1 leave no step of 2",
    ),
    "rule of steps before steps": (
        "joint",
        lambda r, _: replace(r, methods={"a": ADALORA}, meta=MetaConfig(steps=1)),
        "meta: methods.a follows the run's optimizer steps",
    ),
    "choices": (
        "joint",
        lambda r, _: with_task(
            r, "vqa", decoding=replace(r.tasks["vqa"].decoding, choices=("red", "red "))
        ),
        "tasks.vqa.decoding.choices: ",
    ),
    "best": (
        "joint",
        lambda r, _: training(r, best="caption/CIDEr", evaluate_every=5),
        "training.best: got 'caption/CIDEr'; give TASK/SCORE with one of .* evaluated: vqa",
    ),
    "alignment": (
        "image_text",
        lambda r, _: replace(r, alignment=AlignmentConfig(data="none")),
        "alignment: the model is ImageTextToText, and it works with JointSeq2Seq only",
    ),
    "start": (
        "joint",
        lambda r, folder: replace(r, start=str(folder)),
        "start: .*files holds no artifact",
    ),
    "start of another size": (
        "joint",
        lambda r, folder: begun(r, folder, 2),
        "start: in .*b.down_weight is .*, and here .*; give the sizes of its recipe, or leave",
    ),
    "processor": ("image_text", other_processor, "model.path: .* does not write token 1, where"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_training_and_plan_refuse_alike(
    name: str, world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    kind, change, message = CASES[name]
    (tmp_path / "files").mkdir()
    recipe = change(kind_recipe(kind, world, tmp_path / "run"), tmp_path / "files")
    (said,) = ranks1.run(refusal, recipe)
    assert re.match(message, said)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        plan_recipe(recipe, [1])


def test_what_lies_elsewhere_is_no_mistake(world: Path, tmp_path: Path) -> None:
    """A plan is made on any machine; but what is wrong with the recipe is wrong there too."""
    recipe = with_task(kind_recipe("joint", world, tmp_path), "vqa", train=[str(tmp_path / "not")])
    (plan,) = plan_recipe(recipe, [1])
    assert plan.micro_batch == 2
    with pytest.raises(ValueError, match=r"^data.lanes: 5"):
        plan_recipe(replace(recipe, data=replace(recipe.data, lanes=5)), [1])


def test_a_plan_tells_what_a_start_brings(world: Path, tmp_path: Path) -> None:
    recipe = begun(kind_recipe("joint", world, tmp_path / "run"), tmp_path, 4)
    ((line,),) = (plan.notes for plan in plan_recipe(recipe, [1]))
    assert line.startswith(f"start: weights of {recipe.start}: ")
    more = replace(recipe, methods={**recipe.methods, "lora": LoRA(rank=2)})
    ((_, line),) = (plan.notes for plan in plan_recipe(more, [1]))
    assert re.match("start: drawn, since .* has none: lora ", line)


def test_a_run_and_its_plan_tell_what_peft_cannot_hold(
    world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    recipe = kind_recipe("causal", world, tmp_path / "run")
    ((line,),) = (plan.notes for plan in plan_recipe(recipe, [1]))
    assert line.startswith("model.train_projector: true; `vlds convert peft` cannot hold connector")
    assert line in ranks1.run(run_and_print, training(recipe, steps=1))[0][1]
    recipe = with_model(recipe, train_projector=False)
    frozen = replace(recipe, optimizer=replace(recipe.optimizer, connector_learning_rate=None))
    (plan,) = plan_recipe(frozen, [1])
    assert plan.notes == []
