"""Reads right: what a task says is what the model reads and learns.

The tokens of a batch are turned back into text and compared with the example's own question and
answer, so that a dropped question, labels of other tokens than the answer's, or a template that
cuts an answer show here, before any number is computed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlds.data.shards.pictures import RESAMPLING, open_picture, to_rgb, upright
from vlds.evaluation.evaluator import cut_texts, num_cut
from vlds.prove.bench import Bench
from vlds.prove.finding import Finding, ShownRow, Token
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, ImageSpec, Row

SHOWN = 3
"""Rows of each task on the page."""
LEVELS = 4
"""Of 256: how far a picture may be from what Pillow reads, in the mean. Decoders round and resize
in other ways, most of all where `data.decode` is fast."""


def reads_right(bench: Bench) -> Finding:
    """Compare what batches hold with what the examples say."""
    numbers = list(range(len(bench.rows)))
    batch = bench.batch(numbers)
    tokenizer = getattr(bench.processor, "tokenizer", bench.processor)
    writes = not bench.compares
    faults = [*padding_faults(batch)]
    # What is asked in evaluation is made apart, without the answers.
    asked = bench.batch(numbers, evaluation=True)
    for number in numbers:
        row = bench.rows[number]
        place = f"tasks.{row.example.task}: example {row.example.id}:"
        found = [*picture_faults(bench, batch, number), *read_faults(batch, number, row, tokenizer)]
        if not found:
            found = [f"in evaluation {f}" for f in read_faults(asked, number, row, tokenizer)]
        if row.example.masking is None:  # else words are predicted in their places
            found += learned_faults(batch, number, row, tokenizer, writes)
        faults += [f"{place} {fault}" for fault in found]
    shown = [
        shown_row(bench, batch, number, tokenizer)
        for name in bench.recipe.tasks
        for number in bench.of_task(name)[:SHOWN]
    ]
    absent = [name for name in bench.recipe.tasks if not bench.of_task(name)]
    notes = [f"tasks.{name}: none of its examples is among the first of the run" for name in absent]
    notes += [*cut_shares(bench), *cut_texts(bench.prepared.train_sources, bench.collator)]
    return Finding(faults=tuple(faults), notes=tuple(notes), rows=tuple(shown))


def cut_shares(bench: Bench) -> Iterator[str]:
    """How many of the rows the limits cut; of conversations, `cut_texts` says it."""
    collator = bench.collator
    for name, task in bench.recipe.tasks.items():
        examples = [bench.rows[number].example for number in bench.of_task(name)]
        prompts = [example.prompt for example in examples if not example.turns]
        answers = [e.target for e in examples if e.target is not None and not e.turns]
        if prompts:
            asked = num_cut(collator.prompt_lengths, prompts, task.max_prompt_tokens)
            told = num_cut(collator.answer_lengths, answers, task.max_target_tokens)
            yield (
                f"tasks.{name}: cut are {asked} of {len(prompts)} questions and {told} of "
                f"{len(answers)} answers"
            )


def padding_faults(batch: Batch) -> Iterator[str]:
    """Batches are padded on the right: masks are ones, then zeros."""
    mask = batch.attention_mask.bool().cpu()
    lengths = mask.sum(1)
    # A row may begin with tokens that its answer's mask leaves out, but real ones come first.
    if not torch.equal(mask, torch.arange(mask.shape[1]) < lengths[:, None]):
        yield "attention_mask: a row's real tokens do not stand at its beginning"


def read_faults(batch: Batch, number: int, row: Row, tokenizer: Any) -> Iterator[str]:
    """What differs between an example's question and its row of a batch."""
    example = row.example
    # A model without a template drops the oldest turns and their pictures: the rest is compared.
    given = len(row.images)
    shown = int((batch.image_index[number] != NO_IMAGE).sum()) if not batch.media else given
    if shown != given and not example.turns:
        yield f"has {given} pictures, and the model is shown {shown}"
    if example.masking is not None:
        return  # words of the prompt are replaced
    read = batch.input_ids[number][batch.attention_mask[number].bool()].tolist()
    heard = spoken(tokenizer, read)
    texts = [text for turn in example.asked(0) for text in turn.texts]
    for text in texts[-1:] if example.turns else texts:
        ids = token_ids(tokenizer, text)
        # Cut questions are counted elsewhere; their beginning must be there.
        whole = len(ids) + 8 <= row.max_prompt_tokens
        wanted = spoken(tokenizer, ids if whole else ids[: row.max_prompt_tokens // 2])
        if wanted and wanted not in heard:
            yield f"asks {text!r:.80}, and the model reads {tokenizer.decode(read)!r:.160}"


def learned_faults(
    batch: Batch, number: int, row: Row, tokenizer: Any, writes: bool
) -> Iterator[str]:
    """What differs between an example's answer and its row of a batch. `writes`: the tokens of
    answers are learned, not their places among those of other rows."""
    example = row.example
    if example.class_scores is not None:
        targets = batch.class_targets
        scores = {} if targets is None else dict(enumerate(targets[number].tolist()))
        if any(abs(scores.get(c, 0.0) - score) > 1e-6 for c, score in example.class_scores.items()):
            yield f"has the scores of classes {example.class_scores}, and the batch others"
        return
    if example.target is None or batch.labels is None or not writes:
        return
    labels = batch.labels[number].cpu()
    learned = labels[labels != IGNORED_LABEL].tolist()
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad in learned[:-1] and pad != getattr(tokenizer, "eos_token_id", None):
        yield "learns padding beside its answer"
    # Answers before the last are learned where they stand in the prompt, unless they are cut.
    turns = example.turns if batch.labels_on_prompt else ()
    told = [text for turn in turns if turn.learned for text in turn.texts]
    told = [*told, example.target] if example.learned else told
    wanted_ids = [token_ids(tokenizer, text) for text in told]
    texts = [spoken(tokenizer, ids) for ids in wanted_ids]
    wanted, given_text = "".join(texts), spoken(tokenizer, learned)
    if example.turns:
        right = wanted.endswith(given_text) and given_text.endswith("".join(texts[-1:]))
    elif sum(map(len, wanted_ids)) + 2 > row.max_target_tokens:
        # The limit cuts an answer, and says so; what is left is its beginning.
        right = wanted.startswith(given_text)
    else:
        right = given_text == wanted
    if not right:
        yield (
            f"has the answer {example.target!r:.80}, and the model learns "
            f"{tokenizer.decode(learned)!r:.160}"
        )


def picture_faults(bench: Bench, batch: Batch, number: int) -> Iterator[str]:
    """What differs between the pictures of a row's sample, as Pillow reads them, and those that
    come to the model."""
    row, sample = bench.rows[number], bench.noted.stored.get(number)
    if bench.images is None or sample is None or bench.recipe.data.blank_images:
        return
    kept = [bench.images[image] for image in row.images]
    if not row.example.turns and (pictures := batch.pictures) is not None:
        index = batch.image_index[number]
        shown = pictures[index[index != NO_IMAGE]].cpu()
        if not all(map(torch.equal, shown, kept)):
            yield "is shown pictures of another row"
    spec = bench.recipe.image
    stored: Sequence[Any] = sample.features if spec is None else sample.images
    if len(stored) != len(kept):
        yield f"has {len(stored)} pictures in its shard, and {len(kept)} when it comes to the model"
        return
    mode = spec.resize if isinstance(spec, ImageSpec) else "bicubic"
    for place, (data, image) in enumerate(zip(stored, kept, strict=True), 1):
        pixels = image.float().numpy()
        wanted = data
        if spec is not None:
            size = (pixels.shape[2], pixels.shape[1])
            picture = to_rgb(upright(open_picture(data))).resize(size, RESAMPLING[mode])
            wanted = np.asarray(picture).transpose(2, 0, 1)
        far = float(np.abs(pixels - wanted.astype(np.float32)).mean())
        if far > (LEVELS if spec is not None else 0):
            yield f"picture {place} is not that of its shard, from which it differs by {far:.3g}"


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """A text's own tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def spoken(tokenizer: Any, ids: list[int]) -> str:
    """Tokens as text without spaces, which tokenizers add and take away, and without special ones,
    such as that of unknown words."""
    return "".join(tokenizer.decode(ids, skip_special_tokens=True).split())


def shown_row(bench: Bench, batch: Batch, number: int, tokenizer: Any) -> ShownRow:
    """What the page shows of a row."""
    row = bench.rows[number]
    mask, ids = batch.attention_mask[number].bool().cpu(), batch.input_ids[number].cpu()
    labels = None if batch.labels is None else batch.labels[number].cpu()
    on_prompt = labels is not None and batch.labels_on_prompt
    counts = labels != IGNORED_LABEL if on_prompt and labels is not None else torch.zeros_like(mask)
    read = [
        Token(token_text(tokenizer, token), counted)
        for token, real, counted in zip(ids.tolist(), mask.tolist(), counts.tolist(), strict=True)
        if real
    ]
    written = [] if labels is None or on_prompt else labels[labels != IGNORED_LABEL].tolist()
    return ShownRow(
        task=row.example.task,
        id=row.example.id,
        pictures=tuple(pictures_of(bench, row)),
        read=tuple(read),
        learned=tuple(Token(token_text(tokenizer, token), True) for token in written),
        target=row.example.target or "",
    )


def token_text(tokenizer: Any, token: int) -> str:
    """A token as it is read; where it is part of a character, or nothing, as the vocabulary has
    it."""
    text: str = tokenizer.decode([token])
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def pictures_of(bench: Bench, row: Row) -> Iterator[bytes]:
    """The row's pictures in the size in which they come to the model, as PNG files."""
    if bench.recipe.image is None or bench.images is None:
        return  # stored features show nothing to a reader
    for image in row.images:
        buffer = io.BytesIO()
        pixels: Any = bench.images[image].permute(1, 2, 0).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        yield buffer.getvalue()
