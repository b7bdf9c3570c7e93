"""What `vlds plan` says; tests/training/test_zero.py compares it with what ranks really hold, and
test_rehearsal.py with what steps take."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.files import write
from tests.toys.world import world_recipe
from vlds.cli.main import run_command
from vlds.models.build import build_model, describe
from vlds.plan import Machine, page, plan_recipe
from vlds.plan.forecast import (
    Answering,
    Forecast,
    answers_text,
    evaluation_text,
    fits,
)
from vlds.plan.needs import Held, Needs, Plan
from vlds.plan.rehearsal import Work
from vlds.recipe.config import Recipe, parse_recipe
from vlds.runtime.process import find
from vlds.schema import Decoding

FILE = str(find("recipes/vl_adapter/t5_image_single_adapter.yaml"))
ZERO2, OFFLOAD2, ZERO3, OFFLOAD3 = (
    f"ds_configs/{name}.json" for name in ("zero2", "zero2_offload", "zero3", "zero3_offload")
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe([FILE])


def test_stages_and_offload_at_real_size(recipe: Recipe) -> None:
    """T5-base with one adapter: 10,480,512 weights train, the others are frozen, all fp32."""
    plans = plan_recipe(recipe, [1, 4])
    one, four = ({file: needs.held for file, needs in plan.files.items()} for plan in plans)
    assert list(one) == [ZERO2, OFFLOAD2, ZERO3, OFFLOAD3]
    assert one[ZERO2].trainable == four[ZERO2].trainable == 4 * 10_480_512
    assert one[ZERO2].optimizer == 12 * 10_480_512
    assert four[ZERO2].optimizer == 3 * 10_480_512
    assert four[ZERO2].gradients == 10_480_512
    assert four[ZERO2].frozen == one[ZERO2].frozen > 4 * 220_000_000
    assert four[ZERO3].frozen == pytest.approx(four[ZERO2].frozen / 4, rel=0.02)
    # Adapters are smaller than the persistence threshold: whole on each rank, next to its part.
    assert four[ZERO3].trainable > four[ZERO2].trainable
    assert [one[name].offloaded for name in (ZERO2, ZERO3)] == [0, 0]
    assert four[OFFLOAD2].offloaded == four[OFFLOAD2].optimizer
    # They alone stay on the GPU.
    assert 0.8 * four[OFFLOAD3].together < four[OFFLOAD3].offloaded < four[OFFLOAD3].together
    (text,) = page(plans[1], recipe, "no data", Machine())
    # Gradients there and back, and weights, without a rank's own quarter.
    stage2 = f"{3 * 4 * 10_480_512 * 3 / 4 / 1e6:,.1f} MB with zero2.json, zero2_offload.json;"
    assert f"Each rank sends in a step: {stage2} " in text.replace("\n", " ")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80


def test_a_tokenizer_at_hand_sets_the_vocabulary(world: Path, tmp_path: Path) -> None:
    """What describe and plan count is what a run holds, not what the config of the sizes says."""
    recipe = world_recipe(world, tmp_path)
    tokenizer = recipe.model.backbone.load_tokenizer()
    assert len(tokenizer) != 60
    model = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, tokenizer)
    assert describe(recipe.model_setup, list(recipe.tasks)) == model.count_parameters()


def test_what_ranks_send(world: Path, tmp_path: Path) -> None:
    """Gradients of each micro-batch, which all but stage 3 on GPUs sends there and back. Stage 3
    keeps small weights whole, and sends them after a step as stage 2 does; others it gathers twice,
    or once if it may keep them from the forward to the backward pass.
    tests/faults/test_two_hosts.py compares with what goes by a cable."""
    recipe = world_recipe(world, tmp_path)
    trained = describe(recipe.model_setup, list(recipe.tasks)).trainable
    keeping = str(world / "zero3.json")  # nothing small, and gathered weights for long
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 1000}
    short = str(write(tmp_path / "short.json", {"zero_optimization": zero}))
    for micro_batch_size, micro_batches in ((4, 1), (2, 2)):
        data = replace(recipe.data, micro_batch_size=micro_batch_size)
        training = replace(recipe.training, deepspeed=keeping)
        for on_gpu in (False, True):
            changed = replace(recipe, data=data, training=training)
            (plan,) = plan_recipe(changed, [2], on_gpu=on_gpu)
            sent = {file: needs.sent for file, needs in plan.files.items()}
            for file in (ZERO2, ZERO3):
                sums = micro_batches * (1 if on_gpu and file == ZERO3 else 2)
                assert sent[file] == pytest.approx(4 * trained * (sums + 1) / 2, abs=1)
            whole = plan.files[ZERO2].held
            gathered = micro_batches * (whole.frozen + whole.trainable)
            sums = micro_batches * (1 if on_gpu else 2)
            assert sent[keeping] == pytest.approx((4 * trained * sums + gathered) / 2, abs=1)
            # 1,000 weights lie between the passes of the last 500, which are gathered once.
            far = replace(changed, training=replace(training, deepspeed=short))
            (plan,) = plan_recipe(far, [2], on_gpu=on_gpu)
            more = plan.files[short].sent - sent[keeping]
            assert more == pytest.approx((gathered - micro_batches * 4 * 500) / 2, abs=1)


@pytest.mark.slow
def test_the_command(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", FILE, "--ranks", "2"]
    assert run_command([*words, "--training.precision", "bf16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["2"]["files"][ZERO2]["trainable"] == 2 * 10_480_512
    assert found["2"]["unknown"].startswith("model.backbone.path: no such folder")
    own = ["--training.deepspeed", str(find("ds_configs/zero3_small.json"))]
    assert run_command([*words, *own]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "What each of 2 ranks holds, in fp32"
    assert lines[2].startswith("zero3_small.json")
    assert lines[8].startswith("`step` is not known: model.backbone.path: no such folder")
    text = " ".join(lines)
    assert "Evaluation under stage 3 gathers " in text
    assert "Main memory with zero3_small.json: up to " in text
    assert f"and {12 * 10_480_512 / 1e6:,.1f} MB of the first to save." in text
    assert run_command([*words, "--training.deepspeed", str(find(ZERO2)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["2"]
    assert len(found["files"]) == 4
    zero2, zero3 = found["files"][str(find(ZERO2))], found["files"][ZERO3]
    assert zero2["evaluation"] == {"whole": 0, "layers": 0}
    assert zero3["evaluation"]["whole"] > zero3["evaluation"]["layers"] > 0
    assert zero2["loading"] > 0
    assert zero3["loading"] > 0
    assert found["saving"] == 12 * 10_480_512
    assert run_command([*words, "7", "8"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("What")]
    assert [head.split()[3] for head in heads] == ["2", "7", "8"]


STAGE3 = Needs(
    3,
    Held(frozen=1000, trainable=10, optimizer=30, gradients=60, offloaded=40),
    extra=0,
    sent=0,
    evaluated=(500, 50),
)


@pytest.mark.parametrize(
    ("chosen", "memory", "words"),
    [
        (None, None, "(training.evaluate_whole)"),
        (True, 1, "(training.evaluate_whole is true)"),
        # 1000 + 10 + 30 bytes, 60 of sums less 40 in the CPU's memory, and twice 500.
        (None, 2060, "(all, in 2.06e-06 GB;"),
        (None, 2059, "(layer by layer, in 2.059e-06 GB;"),
    ],
)
def test_how_evaluation_gathers(chosen: bool | None, memory: int | None, words: str) -> None:
    assert words in " ".join(evaluation_text(STAGE3, chosen, memory).split())


@pytest.mark.parametrize(
    ("chosen", "memory", "end"),
    [
        (None, None, "of vqa with 3 beams take up to 0.0 MB in evaluation."),
        # 1060 bytes between steps, 500 or 50 gathered; 900 of answers.
        (None, 2060, "leave 0.0 MB for them: set a smaller data.eval_batch_size."),
        (None, 2010, "in evaluation."),
        (True, 2459, "data.eval_batch_size."),
        (True, 2460, "in evaluation."),
        (False, 2009, "data.eval_batch_size."),
    ],
)
def test_whether_answers_fit(chosen: bool | None, memory: int | None, end: str) -> None:
    answers = Answering("vqa", 1_200, Decoding(num_beams=3), 900)
    text = " ".join(answers_text(answers, STAGE3, chosen, memory).split())
    assert text.startswith("Answers to 1,200 examples of vqa with 3 beams take up to 0.0 MB in")
    assert text.endswith(end)
    assert answers_text("no data", STAGE3, chosen, memory).endswith("is not known: no data")


NEEDS = Held(frozen=1000, trainable=10, optimizer=30, gradients=0)
SMALL = Forecast(8, Work(800, 0, 0, 0), Work(100, 0, 0, 0), Counter())
"""100 bytes a row."""


@pytest.mark.parametrize(
    ("memory", "chosen"),
    [
        (4000, "Choose all.json: of those that hold 6 rows, it partitions and offloads least."),
        (1500, "Choose part.json: of those that hold 6 rows, it partitions and offloads least."),
        (1000, "Choose cpu.json: of those that hold 6 rows, it partitions and offloads least."),
        (700, "None holds 6 rows: set a smaller data.micro_batch_size, or take more ranks."),
    ],
)
def test_the_file_to_choose(memory: int, chosen: str) -> None:
    part = replace(NEEDS, frozen=500)
    files = {
        "cpu.json": Needs(2, replace(part, offloaded=300), extra=0, sent=900),
        "part.json": Needs(3, part, extra=0, sent=100),
        "all.json": Needs(2, NEEDS, extra=0, sent=900),
    }
    text = fits(Plan(2, 6, 1, 0, files), SMALL, memory)
    assert " ".join(text.split()).endswith(chosen)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "2", "101"], "tasks.nlvr.batch_size: 100 examples for 101 ranks; give at"),
        (["--methods", "{}"], "nothing trains: methods is empty"),
        (["--training.deepspeed", "mine.json"], "training.deepspeed: no such file: mine.json"),
        (["--memory", "1e300"], "--memory is '1e300'; give a number from 0.001 to 1,000,000"),
        (["--gpu", "h100"], "--gpu: 'h100' is unknown; did you mean 'h100-80g'? choose from: a10-"),
        (["--data.parts", "1000"], "data.parts: 1000, but the smallest micro-batch"),
        pytest.param(
            ["--tflops", "100"],
            "--tflops without --bandwidth: this machine has no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can be measured"),
        ),
    ],
)
def test_what_cannot_be_planned(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ["--model.train_norms", "false", "--model.train_visual_embedding", "false"]
    assert run_command(["plan", "--config", FILE, *nothing, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_card_by_its_name() -> None:
    """Its memory and rates, in the precision of the run; what is said beside it comes first."""
    assert Machine.given(None, None, None, None, "a100-40g") == Machine(
        40 * 10**9, 312e12, 1555e9, 300e9
    )
    given = Machine.given("20", None, None, "12", "a100-40g", torch.float32)
    assert given == Machine(20 * 10**9, 19.5e12, 1555e9, 12e9)
