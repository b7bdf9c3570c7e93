"""The recipes of VL-Adapter's published rows: the counts are those of the original code."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from benchmarks.published_rows import BESIDE, ROWS, Count, count, page, sweep_of
from tests.toys.files import ROOT
from vlds.cli.main import run_command
from vlds.data.order.epoch_order import NamedOrder
from vlds.data.order.mixed_order import mixed_order, steps_in
from vlds.models.build import describe
from vlds.recipe.config import Recipe, parse_recipe
from vlds.runtime.process import find, shipped
from vlds.tasks import VQA, VideoCaption
from vlds.training.deepspeed_config import cut_batches

COUNTS = {
    "bart_image_full_finetuning": (141_156_864, 100.0, 141_156_864),
    "bart_image_single_adapter": (6_081_600, 4.177, 145_606_464),
    "bart_image_multiple_adapters": (19_430_400, 12.224, 158_955_264),
    "bart_image_half_shared_up": (12_725_760, 8.358, None),
    "bart_image_half_shared_down": (12_786_240, 8.395, None),
    "bart_image_hyperformer": (8_579_088, 5.793, 148_103_952),
    "bart_image_single_compacter": (3_870_240, 2.699, 143_395_104),
    "bart_image_multiple_compacters": (10_584_960, 7.051, 150_109_824),
    "bart_image_single_lora": (8_786_688, 5.928, 148_234_752),
    "bart_image_multiple_lora": (30_020_352, 17.714, 169_468_416),
    "bart_image_single_prompt": (2_843_936, 1.997, 142_417_952),
    "bart_image_multiple_prompts": (6_627_200, 4.533, 146_201_216),
    "bart_video_full_finetuning": (139_977_216, 100.0, 139_977_216),
    "bart_video_single_adapter": (4_901_952, 3.394, 144_426_816),
    "bart_video_single_lora": (7_607_040, 5.173, 147_055_104),
    "bart_video_single_prompt": (1_664_288, 1.178, 141_238_304),
    "t5_image_full_finetuning": (224_540_160, 100.0, 224_540_160),
    "t5_image_single_adapter": (10_480_512, 4.490, 233_439_360),
    "t5_image_single_adapter_r4": (19_333_632, 7.979, 242_292_480),
    "t5_image_multiple_adapters": (37_178_112, 14.292, None),
    "t5_image_half_shared_up": (23_768_832, 9.634, None),
    "t5_image_half_shared_down": (23_889_792, 9.678, None),
    "t5_image_hyperformer": (8_534_544, 3.687, None),
    "t5_image_single_compacter": (6_057_792, 2.645, 229_016_640),
    "t5_image_multiple_compacters": (19_487_232, 8.038, 242_446_080),
    "t5_image_single_lora_r150": (18_170_880, 7.536, 241_128_960),
    "t5_image_single_lora_r150_no_biases": (18_170_112, 7.535, 241_128_960),
    "t5_image_single_bitfit": (1_865_416, 0.830, 224_824_264),
    "t5_image_single_prompt": (2_842_400, 1.259, 225_801_248),
    "t5_image_multiple_prompts": (6_625_664, 2.886, 229_584_512),
    "t5_video_full_finetuning": (223_360_512, 100.0, None),
    "t5_video_single_adapter": (9_300_864, 4.005, None),
    "t5_video_single_prompt": (1_662_752, 0.740, None),
}
"""Recipe -> number of weights that train, their share in percent, and number of all weights where
it is known."""


ALL = {*COUNTS, "bart_image", "bart_video", "t5_image", "t5_video"}


@cache
def recipe_of_row(name: str) -> Recipe:
    """The recipe of a published row."""
    return parse_recipe([str(find(f"recipes/vl_adapter/{name}.yaml"))])


@pytest.mark.sampled(33)
@pytest.mark.parametrize("name", COUNTS)
def test_what_trains_is_what_trained_there(name: str) -> None:
    recipe = recipe_of_row(name)
    counts = describe(recipe.model_setup, list(recipe.tasks))
    trainable, percent, total = COUNTS[name]
    assert (counts.trainable, round(counts.percent, 3)) == (trainable, percent)
    assert counts.total == (total or counts.total)
    assert recipe.output == f"runs/vl_adapter/{name}"


def test_decay_is_that_of_the_scripts() -> None:
    for name in ALL:
        assert recipe_of_row(name).optimizer.weight_decay_groups == "vl_adapter", name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "override", "trainable"),
    [
        ("t5_image_multiple_adapters", "--methods.adapter.reduction", 72_590_592),
        ("t5_image_hyperformer", "--methods.hyperformer.reduction", 15_174_384),
    ],
)
def test_the_published_t5_rows_halve_the_reduction(
    name: str, override: str, trainable: int
) -> None:
    file = find(f"recipes/vl_adapter/{name}.yaml")
    recipe = parse_recipe(["--config", str(file), override, "4"])
    assert describe(recipe.model_setup, list(recipe.tasks)).trainable == trainable


def test_every_recipe_is_counted() -> None:
    folder = "recipes/vl_adapter/"
    names = {
        n.removeprefix(folder).removesuffix(".yaml") for n in shipped("recipes") if folder in n
    }
    assert names == ALL


PROMPTS = {
    "image": ["vqa: ", "gpa: ", "nlvr: ", "caption: "],
    "video": ["tvqa: ", "how2qa: ", "tvc: ", "yc2c: "],
}


@pytest.mark.parametrize("name", COUNTS)
def test_prompts_are_those_of_the_scripts(name: str) -> None:
    """On pictures, only the rows that share one set of weights over the tasks are told the task."""
    recipe = recipe_of_row(name)
    prompts = [task.prompt for task in recipe.tasks.values()]
    _, kind, script = name.split("_", 2)
    told = kind == "video" or script.startswith("single")
    assert prompts == (PROMPTS[kind] if told else [""] * 4)


@pytest.mark.parametrize("name", COUNTS)
def test_answers_and_scores_are_those_of_the_scripts(name: str) -> None:
    """Lengths and beams of each task; what BART's pretrained settings add; VQA's older rules."""
    recipe = recipe_of_row(name)
    family, kind, _ = name.split("_", 2)
    lengths = {
        task_name: (task.max_prompt_tokens, task.max_target_tokens, task.decoding.num_beams)
        for task_name, task in recipe.tasks.items()
    }
    uncut = 512
    assert lengths == (
        {"vqa": (20, 10, 1), "gqa": (20, uncut, 1), "nlvr": (uncut, uncut, 1),
         "caption": (40, 40, 5)}
        if kind == "image"
        else dict.fromkeys(["tvqa", "how2qa", "tvc", "yc2c"], (600, 20, 5))
    )  # fmt: skip
    for task in recipe.tasks.values():
        decoding = task.decoding
        assert decoding.max_new_tokens == 19  # 20 tokens with the start token
        if decoding.choices is None:
            beams = decoding.num_beams > 1
            assert decoding.no_repeat_ngram_size == (3 if family == "bart" else 0)
            assert decoding.early_stopping == (beams and family == "bart")
            assert decoding.length_counts_start
    if kind == "image":
        vqa = recipe.tasks["vqa"]
        assert isinstance(vqa, VQA)
        assert vqa.accuracy == "legacy"
    else:
        for name_of_task in ("tvc", "yc2c"):
            captions = recipe.tasks[name_of_task]
            assert isinstance(captions, VideoCaption)
            assert captions.score_each == "description"


SIZES = {
    "image": {"vqa": 605_102, "gqa": 1_075_062, "nlvr": 86_373, "caption": 566_747},
    "video": {"tvqa": 122_039, "how2qa": 34_187, "tvc": 173_206, "yc2c": 10_337},
}
"""Training examples of the data sets that the recipes name."""
STEPS = {
    "bart_image": (20, [1_211, 1_291, 521, 1_363]),
    "t5_image": (20, [2_018, 2_151, 864, 2_267]),
    "bart_video": (7, [2_441, 684, 3_465, 207]),
    "t5_video": (7, [4_068, 1_140, 5_774, 345]),
    "t5_video_single_prompt": (7, [407, 114, 578, 35]),
}
"""Epochs, and batches of each task in an epoch of the original code: ceil(size / batch size)."""
TOTAL_STEPS = {
    "bart_image": 87_720,
    "t5_image": 146_000,
    "bart_video": 47_579,
    "t5_video": 79_289,
    "t5_video_single_prompt": 7_938,
}


def test_eight_ranks_share_the_batches_of_every_recipe() -> None:
    for name in {*COUNTS, *STEPS}:
        recipe = recipe_of_row(name)
        for size in recipe.batch_sizes.values():
            assert {len(cut_batches(recipe, 8).pieces(size, rank)) for rank in range(8)} == {1}


@pytest.mark.parametrize("name", STEPS)
def test_every_task_takes_the_steps_of_the_original(name: str) -> None:
    recipe = recipe_of_row(name)
    sizes = SIZES[name.split("_")[1]]
    assert list(recipe.tasks) == list(sizes)
    tasks = list(recipe.tasks.values())
    batches = recipe.data.batch_sizes([task.batch_size for task in tasks])
    order = mixed_order(
        [NamedOrder(task, size) for task, size in sizes.items()],
        [task.weight for task in tasks],
        seed=recipe.seed,
        temperature=recipe.data.temperature,
        global_batch_size=recipe.data.global_batch_size,
        batch_sizes=batches,
    )
    epochs, of_epoch = STEPS[name]
    assert recipe.training.epochs == epochs
    steps = steps_in(epochs, list(sizes.values()), recipe.data.global_batch_size, batches)
    assert steps == TOTAL_STEPS[name] == epochs * sum(of_epoch)
    sources, _, _ = order.at(np.arange(steps) * order.stride)
    for epoch in np.split(sources, epochs):
        assert np.bincount(epoch).tolist() == of_epoch
    if name.endswith("image"):
        shares = np.bincount(sources) / steps * 100
        # T5's batches are smaller, so the last batch of each task rounds up differently.
        assert shares == pytest.approx([27.6, 29.4, 11.9, 31.1], abs=0.07)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("t5_image", "bart_video") else pytest.mark.slow)
        for name in sorted({*COUNTS, *STEPS})
    ],
)
def test_any_recipe_runs_on_eight_ranks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", f"recipes/vl_adapter/{name}.yaml"]
    assert run_command(["plan", *config, "--ranks", "1", "2", "4", "8"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("What")]
    assert [head.removesuffix(" holds, in fp32") for head in heads] == [
        "What 1 rank",
        *(f"What each of {ranks} ranks" for ranks in (2, 4, 8)),
    ]


# docs/published.md lists every row of the papers' tables, and every row has a command.

PAGE = ROOT / "docs/published.md"
FROM_PAPERS = ("sweeps/vl_adapter", "sweeps/vl_pet", "sweeps/lst")


def counts_on_page() -> dict[tuple[str, str], Count]:
    """Sweep and row -> what the page says trains."""
    lines = PAGE.read_text("utf-8").splitlines()
    counts = {}
    for table, row in ROWS:
        # The third and fourth cell behind them, whatever the list says in the others.
        start = f"| {table.title} | {row} | "
        (cells,) = {tuple(line.split(" | ")[3:5]) for line in lines if line.startswith(start)}
        counts[table.sweep, row] = Count(int(cells[0].replace(",", "")), float(cells[1]))
    return counts


def test_the_page_is_that_of_the_lists() -> None:
    """All but the counts, which test_as_many_weights_train compares."""
    text = PAGE.read_text("utf-8")
    assert page(counts_on_page()) == text
    assert len(text.splitlines()) <= 150
    for recipe in re.findall(r"`((?:vl_adapter|vl_pet|lst)/\w+\.yaml)`", text):
        assert find(f"recipes/{recipe}").is_file()


def test_every_row_of_a_table_is_a_row_of_its_sweep_and_the_reverse() -> None:
    tables = {table.sweep: table for table, _ in ROWS}
    for name, table in tables.items():
        assert list(table.rows) == list(sweep_of(name).recipes), name
    sweeps = {n for n in shipped("sweeps") if n.startswith(FROM_PAPERS)}
    assert sweeps == {f"sweeps/{name}.yaml" for name in (*tables, *BESIDE)}


@pytest.mark.sampled(40)
@pytest.mark.parametrize(("name", "row"), dict.fromkeys((table.sweep, row) for table, row in ROWS))
def test_as_many_weights_train_as_the_page_and_the_paper_say(name: str, row: str) -> None:
    sweep = sweep_of(name)
    counted = count(sweep, row)
    trainable, percent = counts_on_page()[name, row]
    assert (counted.trainable, round(counted.percent, 3)) == (trainable, percent)
    if (published := sweep.published.get(row, {}).get("trains")) is not None:
        # The published share of multiple LoRA is 17.72, that of the script 17.714.
        assert counted.percent == pytest.approx(published, abs=0.0065)
