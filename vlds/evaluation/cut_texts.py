"""Texts that are longer than a task's limit: the model reads or learns their beginning only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from vlds.data.streams.eval_order import fixed_examples
from vlds.data.streams.source import Source
from vlds.schema import Collator, Example

SAMPLES = 200
"""Samples of a task that are looked at before training."""
WHOLE = 1 << 20
"""More tokens than a text has."""
Lengths: TypeAlias = Callable[[Sequence[tuple[str, int]]], list[int]]
"""Tokens of (text, most tokens) pairs, as `Collator.prompt_lengths` counts them."""


def num_cut(lengths: Lengths, texts: Sequence[str], most: int) -> int:
    """How many of the texts have more tokens than `most`."""
    whole, kept = (lengths([(text, limit) for text in texts]) for limit in (WHOLE, most))
    return sum(a > b for a, b in zip(whole, kept, strict=True))


def cut_texts(sources: Sequence[Source], collator: Collator) -> list[str]:
    """What to tell a user whose limits cut some of the first prompts or answers of a task."""
    lines = []
    for source in sources:
        task, examples = source.task, list(first_examples(source))
        prompts = [example.prompt for example in examples]
        answers = [example.target for example in examples if example.target is not None]
        for field, most, texts, lengths in (
            ("max_prompt_tokens", task.max_prompt_tokens, prompts, collator.prompt_lengths),
            ("max_target_tokens", task.max_target_tokens, answers, collator.answer_lengths),
        ):
            if number := num_cut(lengths, texts, most):
                what = "prompts" if texts is prompts else "answers"
                lines.append(
                    f"tasks.{source.name}.{field}: {most} cuts {number:,} of the first "
                    f"{len(texts):,} {what}"
                )
    return lines


def first_examples(source: Source) -> Iterator[Example]:
    """The examples of a task's first samples, without those that cannot be read, which training
    counts."""
    for index in range(min(SAMPLES, source.first_sample[-1])):
        try:
            for _, examples in fixed_examples(source, range(index, index + 1)):
                yield from examples
        except ValueError:
            continue
