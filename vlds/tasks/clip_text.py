"""What the tasks on clips share: subtitles as text, and the prompt behind it."""

from __future__ import annotations

from vlds.schema import Sample


def subtitles(sample: Sample) -> str:
    """A clip's subtitles as one text; "" where it has none."""
    return " ".join(line["text"].strip() for line in sample.extra.get("subtitles") or ())


def with_prompt(text: str, prompt: str) -> str:
    """The whole input; unlike those of the tasks on pictures, the prompt comes last."""
    return f"{text} {prompt}" if prompt else text
