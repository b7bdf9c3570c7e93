"""Rows beside each other in one line are the rows alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.toys.image_text.rows import TASKS, Tiny, tiny
from tests.toys.models import shake
from vlds.models.kernels.dropout import StepDropout, dropout_by
from vlds.models.kinds.picture_forms import PACKED
from vlds.models.methods import Adapter, LoRA, Method
from vlds.schema import Example, Row, Turn

QUESTIONS = (
    ("what is red in this picture , and what is blue ? say all that you see of it", "a red car"),
    ("why ?", "a cat"),
    ("what ?", "two dogs are there"),
    ("is it ?", "no"),
    ("and what is on the left of the big table there ?", "water"),
)
METHODS: dict[str, dict[str, Method]] = {
    "LoRA": {"lora": LoRA(rank=2), "eyes": LoRA(rank=2, part="vision")},
    "an adapter for each task": {"adapter": Adapter(reduction=4, sharing="multiple")},
}


def rows(talks: bool) -> list[Row]:
    """Rows of two tasks with up to two pictures; the last one may be a conversation."""
    found, start = [], 0
    for number, ((prompt, target), count) in enumerate(
        zip(QUESTIONS, (1, 0, 2, 0, 1), strict=True)
    ):
        example = Example(str(number), TASKS[number % 2], prompt, target)
        found.append(Row(example, number % 2, 40, 20, range(start, start + count)))
        start += count
    talk = (
        Turn("user", (prompt, None)),
        Turn("assistant", ("yes",), True),
        Turn("user", ("so ?",)),
    )
    if talks:
        found[-1] = found[-1]._replace(example=replace(found[-1].example, turns=talk))
    return found


def packed(model: Tiny, methods: dict[str, Method]) -> list[torch.Tensor]:
    """Loss of each row and the gradients, packed and not."""
    found = []
    for pack in (False, True):
        built = replace(model, kind=replace(model.kind, pack=pack)).build(methods).eval()
        shake(built, 0, 0.1)
        batch = model.batch(rows(talks=model.collator.chat.has_template))
        if pack:
            lines = built.lines(built.with_dummy(batch))
            assert lines is not None
            assert len(lines.tasks) < len(batch)
        output = built(batch, torch.linspace(0.5, 1, len(batch)))
        output.loss.backward()
        losses = output.token_nll_sum
        gradients = [p.grad.flatten() for p in built.parameters() if p.grad is not None]
        found.append(torch.cat([losses.detach(), *gradients]))
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("model_type", PACKED)
def test_losses_and_gradients_are_those_of_rows_alone(model_type: str, name: str) -> None:
    apart, together = packed(tiny(model_type), METHODS[name])
    largest = apart.abs().max()
    assert (apart - together).abs().max() < 1e-5 * largest


@pytest.mark.parametrize("pack", [False, True])
def test_dropout_depends_on_no_other_row(pack: bool) -> None:
    """In lines, in batches with a row for ranks without a picture, and alone."""
    model = tiny("llava")
    built = replace(model, kind=replace(model.kind, pack=pack)).build(
        {"lora": LoRA(rank=2, dropout=0.5)}
    )
    shake(built, 0, 0.1)
    built.train()
    every = rows(talks=False)
    found = []
    for cut in (
        [[0, 1, 2, 3, 4]],
        [[4, 3, 2, 1, 0]],
        [[0], [1], [2], [3], [4]],
        [[1, 3], [0, 2, 4]],
    ):
        built.zero_grad()
        losses = torch.zeros(len(every))
        for numbers in cut:
            batch = model.batch([every[number] for number in numbers])
            with dropout_by(StepDropout(0, 0)):
                torch.manual_seed(0)
                output = built(batch, torch.ones(len(batch)))
                output.loss.backward()
            losses[numbers] = output.token_nll_sum
        gradients = [p.grad.flatten() for p in built.parameters() if p.grad is not None]
        found.append(torch.cat([losses, *gradients]))
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("model_type", ["qwen2_vl", "gemma3", "paligemma"])
def test_other_types_are_refused(model_type: str) -> None:
    model = tiny(model_type)
    message = rf"^model\.pack: vlds does not do it for {model_type}; it does for llava, .*leave it"
    with pytest.raises(ValueError, match=message):
        replace(model, kind=replace(model.kind, pack=True)).build()


def test_an_attention_without_a_mask_is_refused() -> None:
    model = tiny("internvl")
    backbone = model.build().backbone
    backbone.get_decoder().config.sliding_window = 8
    kind = replace(model.kind, pack=True)
    with pytest.raises(ValueError, match=r"^model\.pack: the language model of this internvl sees"):
        kind.check_packs(backbone)
