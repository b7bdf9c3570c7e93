"""Clips between the words: as the model's own processor writes them, or as pictures in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from tests.toys.image_text import FAST_TYPES
from tests.toys.image_text.clips import (
    CLIP,
    INDICES,
    NUM_FRAMES,
    RATE,
    SHORT,
    frames,
    mixed,
    row_of,
    talk,
)
from tests.toys.image_text.rows import Tiny, tiny
from tests.toys.image_text.theirs import generated
from vlds.models.kinds.media import READ_CLIPS
from vlds.schema import IGNORED_LABEL, Clip, Decoding, Piece, RefusedRows, Turn

TYPES = [pytest.param(t, marks=[] if t in FAST_TYPES else [pytest.mark.slow]) for t in READ_CLIPS]


@pytest.fixture(params=TYPES)
def model(request: pytest.FixtureRequest) -> Tiny:
    return tiny(request.param)


def by_hugging_face(model: Tiny, turns: Sequence[Turn], pictures: Sequence[Tensor]) -> Any:
    """The conversation as its processor makes it, told what a decoder of the clip would tell."""
    words = {type(None): {"type": "image"}, Clip: {"type": "video"}}

    def written(piece: Piece) -> dict[str, str]:
        return {"type": "text", "text": piece} if isinstance(piece, str) else words[type(piece)]

    talk = [{"role": t.speaker, "content": [*map(written, t.content)]} for t in turns]
    template = model.processor.chat_template
    alone = list(pictures[len(INDICES) :])
    prompt = model.processor.apply_chat_template(
        talk, chat_template=template, add_generation_prompt=True
    )
    about = VideoMetadata(NUM_FRAMES, RATE, duration=NUM_FRAMES / RATE, frames_indices=[*INDICES])
    return model.processor(
        text=[prompt],
        images=[alone] if alone else None,
        videos=[torch.stack(list(pictures[: len(INDICES)]))],
        video_metadata=[about],
        do_sample_frames=False,
        return_tensors="pt",
    )


@torch.no_grad()
def test_rows_losses_and_answers_are_hugging_faces(model: Tiny) -> None:
    turns = talk(model)
    pictures = frames(sum(turn.num_pictures for turn in turns))
    row = row_of(0, 0, *turns)
    asked = model.collator([row], pictures, evaluation=True)
    theirs = by_hugging_face(model, turns, pictures)
    assert asked.input_ids.tolist() == theirs["input_ids"].tolist()
    ours = asked.media[0] | asked.types
    assert ours.keys() == theirs.keys() - {"input_ids", "attention_mask"}
    for name, values in ours.items():
        assert torch.equal(values, theirs[name]), name
    batch = model.collator([row], pictures, evaluation=False)
    assert batch.labels is not None
    said = model.processor.tokenizer.decode(batch.labels[batch.labels != IGNORED_LABEL])
    assert said.index("a red car") < said.index("blue sky")
    built = model.build().eval()
    mean = built.token_nll(batch).sum() / (batch.labels != IGNORED_LABEL).sum()
    answer = batch.input_ids[:, asked.input_ids.shape[1] :]
    whole = {**theirs, "input_ids": torch.cat([theirs["input_ids"], answer], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    for name in asked.types:
        whole[name] = torch.cat([theirs[name], torch.zeros_like(answer)], 1)
    loss = built.backbone(**whole, labels=batch.labels).loss
    # Of float32, whose sums round otherwise in another order: a few units of the last place.
    assert mean.item() == pytest.approx(loss.item(), rel=1e-6)
    writer = built.writer
    (written,) = writer.write(built.prompts(asked), Decoding(max_new_tokens=6), None)
    assert written.ids == generated(built, theirs, 6)


@torch.no_grad()
def test_rows_are_the_same_alone_and_together(model: Tiny) -> None:
    built = model.build().eval()
    rows, pictures = mixed(model)
    whole = built.token_nll(model.collator(rows, pictures, evaluation=False)).sum(1)
    for row, nll in zip(rows, whole, strict=True):
        alone = model.collator([row], pictures, evaluation=False)
        assert torch.allclose(built.token_nll(alone).sum(1), nll, atol=1e-4)
    decoding = Decoding(num_beams=2, max_new_tokens=4)
    together = built.answer(model.collator(rows, pictures, evaluation=True), decoding)
    for row, answer in zip(rows, together, strict=True):
        (alone,) = built.answer(model.collator([row], pictures, evaluation=True), decoding)
        assert alone.text == answer.text


@torch.no_grad()
@pytest.mark.sampled(2)
@pytest.mark.parametrize("model_type", ["llava_onevision", "internvl", "smolvlm", "idefics3"])
def test_packed_rows_keep_their_clips(model_type: str) -> None:
    model = tiny(model_type)
    rows, pictures = mixed(model)
    rows = [rows[n % 4]._replace(task_index=0) for n in (1, 0, 2, 3, 2, 0)]
    batch = model.collator(rows, pictures, evaluation=False)
    apart = model.build().eval().token_nll(batch).sum(1)
    built = replace(model, kind=replace(model.kind, pack=True)).build().eval()
    lines = built.lines(batch)
    assert lines is not None
    assert len(lines.tasks) < len(rows)
    assert torch.allclose(built.token_nll(batch).sum(1), apart, atol=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model_type", ["llava", "idefics3", "gemma3", "smolvlm"])
def test_elsewhere_a_clip_is_its_frames(model_type: str) -> None:
    """Also in SmolVLM beside a picture, which its processor would lose."""
    model = tiny(model_type)
    turn = Turn("user", ("look: ", SHORT, "so ", None, "?"))
    spread = turn._replace(content=("look: ", None, None, "so ", None, "?"))
    batches = [
        model.collator([row_of(0, 0, said)], frames(3), evaluation=False) for said in (turn, spread)
    ]
    assert torch.equal(batches[0].input_ids, batches[1].input_ids)
    for name, values in batches[0].media[0].items():
        assert torch.equal(values, batches[1].media[0][name])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model_type", ["llava_onevision", "internvl"])
def test_unlike_clips_in_a_row_that_a_processor_does_not_take(model_type: str) -> None:
    rows = [row_of(n, 0, Turn("user", (SHORT, CLIP, "?"))) for n in range(2)]
    rows[1] = row_of(1, 0, Turn("user", (SHORT, "?")))
    message = r"takes no clips of unlike numbers of frames together \(2 and 4\)"
    with pytest.raises(RefusedRows, match=message) as error:
        tiny(model_type).collator(rows, frames(6), evaluation=False)
    assert [*error.value.reasons] == [0]


def test_times_reach_bfloat16_models_exactly() -> None:
    model = tiny("qwen2_5_vl")
    half = model.kind.collator(model.processor, torch.bfloat16)
    batch = half([row_of(0, 0, Turn("user", (CLIP, "?")))], frames(4), evaluation=False)
    seconds = torch.tensor([2 * CLIP.duration / 4])  # a grid is two of the four frames
    assert torch.equal(batch.media[0]["second_per_grid_ts"], seconds)
    built = model.build().to(torch.bfloat16)
    assert torch.equal(built.inputs(batch)["second_per_grid_ts"], seconds)
    assert built.inputs(batch)["pixel_values_videos"].dtype == torch.bfloat16
